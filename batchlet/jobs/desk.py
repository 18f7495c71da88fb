"""Where jobs are handed in and taken back: the batch system's check, its submit command, its cancel command."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import report
from .commands import Answer, run, words_of
from .job import SubmitError
from .systems import BatchSystem

__all__ = ["Desk"]

# Seconds after which a submit command that has failed is tried again; then it is not.
_PAUSES = (1.0, 4.0, 0.0)
# Seconds in which jobs that are to be cancelled come together for one command.
_TOGETHER = 0.05
# Exit codes of commands that did not answer, or could not be run.
_NO_ANSWER = (124, 126, 127)


class Desk:
    """Submits and cancels the jobs of one cluster; made in its event loop.

    Parameters
    ----------
    system : BatchSystem
        Where.

    Attributes
    ----------
    environ : mapping of str to str
        The environment of the system's commands.
    checked : bool
        Whether the system has looked at the script of a job.
    uncancelled : bool
        Whether it could not be told to cancel jobs.
    """

    def __init__(self, system: BatchSystem) -> None:
        self.environ: Mapping[str, str] = system.environ(os.environ)
        self.checked = False
        self.uncancelled = False
        self._system = system
        self._to_cancel: set[str] = set()
        self._cancelling: asyncio.Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Try nothing again from here on."""
        self._closed = True

    async def check(self, script: str, path: Path) -> None:
        """Have the system look at the script of a job, once.

        Parameters
        ----------
        script : str
            The script.
        path : Path
            Where it may be written.

        Raises
        ------
        SubmitError
            If such a job can never start.
        """
        command = self._system.check(str(path))
        if self.checked or command is None:
            self.checked = True
            return
        for last in (False, True):
            answer = await asyncio.get_running_loop().run_in_executor(None, self._look_at, script, path, command)
            if not self._system.refused(answer.code, answer.out + answer.err):
                break
            if last or answer.code in _NO_ANSWER:
                what = "cannot be asked" if answer.code in _NO_ANSWER else "would never start such a job"
                raise SubmitError(f"{self._system.title} {what}: {words_of(answer)}.")
            # What fails now and then on a busy system is no refusal.
            await asyncio.sleep(_PAUSES[0])
        self.checked = True

    def _look_at(self, script: str, path: Path, command: list[str]) -> Answer:
        try:
            path.write_text(script)
            return run(command, self.environ)
        except OSError as error:
            return Answer(126, "", f"its script cannot be written into {path.parent}: {error.strerror or error}")
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    async def submit(self, job: Any, count: int = 1) -> list[str]:
        """Submit a job, or so many as one array, and try again where that fails for once.

        Returns
        -------
        list of str
            The ids.

        Raises
        ------
        SubmitError
            If it is not taken.
        """
        for pause in _PAUSES:
            try:
                return [await job.submit()] if count == 1 else await job.submit_array(count)
            except SubmitError:
                if not pause or self._closed:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs, with one command for all that are to be cancelled at this moment."""
        self._to_cancel.update(job_ids)
        if self._cancelling is None:
            self._cancelling = asyncio.get_running_loop().create_task(self._cancel_all())
        await asyncio.shield(self._cancelling)

    async def _cancel_all(self) -> None:
        await asyncio.sleep(_TOGETHER)
        ids, self._to_cancel, self._cancelling = sorted(self._to_cancel), set(), None
        answer = await self._run(self._system.cancel(ids))
        # Some systems fail where a job has just ended; that is as well.
        if answer.code in _NO_ANSWER:
            self.uncancelled = True
            report.note(f"{self._system.title} does not cancel jobs: {words_of(answer)}")

    async def _run(self, command: list[str]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(None, run, command, self.environ)
