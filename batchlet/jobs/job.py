"""dask-jobqueue's jobs, with Batchlet's agent in the place of a dask worker: how one is written, submitted and closed."""

from __future__ import annotations

import asyncio
import importlib
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distributed.core import Status

from ..errors import InputError, SettingsError
from .commands import run, words_of
from .systems import BatchSystem

__all__ = ["Keeper", "SubmitError", "SubmittedJob", "job_class", "load"]

# Seconds that submitting may take.
_TIMEOUT = 120.0


class SubmitError(InputError):
    """The batch system does not take a job, and says why."""


class Keeper(Protocol):
    """Who keeps the jobs of a cluster; see `batchlet.jobs.keeper`."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of the submit command."""

    def submit(self, job: Any) -> None:
        """Have a job submitted, soon; never raises."""

    async def close_job(self, name: str) -> None:
        """End a job; never raises."""


class SubmittedJob:
    """What is put in front of dask-jobqueue's class of a job."""

    keeper: Keeper
    system: BatchSystem
    nodes: int
    status: Status
    name: str
    job_id: str | None
    worker_cores: int
    worker_memory: int
    worker_processes: int

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self._made_with = (args, keywords)
        of_dask: Any = super()
        of_dask.__init__(*args, **keywords)

    @property
    def worker_process_threads(self) -> int:
        """Threads of each worker, for the command line; what counts, agents are told."""
        return max(1, self.worker_cores * self.nodes // self.worker_processes)

    @property
    def worker_process_memory(self) -> str:
        """Memory of each worker, for the command line."""
        return str(self.worker_memory * self.nodes // self.worker_processes)

    async def start(self) -> None:
        """Have the job submitted. What goes wrong is the keeper's to tell: Dask would log a traceback."""
        self.keeper.submit(self)
        self.status = Status.running

    async def submit(self) -> str:
        """Write the script, submit it, and give the job's id.

        Raises
        ------
        SubmitError
            If it is not taken.
        """
        job: Any = self
        try:
            with job.job_file() as script:
                command = self.system.submit(script, job.log_directory)
                text = await (job._submit_job(script) if command is None else self._call(command))
        except OSError as error:
            raise SubmitError(f"its script cannot be written: {error.strerror or error}") from None
        try:
            return str(job._job_id_from_submit_output(text))
        except ValueError:
            raise SubmitError(
                f"{job.submit_command} has answered, but not with the id of a job: {text.strip()[:200]!r}"
            ) from None

    async def submit_array(self, count: int) -> list[str]:
        """Submit so many jobs as one array, of which this is the first, and give their ids.

        The script is dask-jobqueue's own for one more directive; the agent of each job knows its name by its number.

        Raises
        ------
        SubmitError
            If it is not taken.
        """
        array = self.system.array(count)
        assert array is not None
        args, keywords = self._made_with
        job: Any = self
        logs = self.system.array_logs(job.log_directory, job.job_name or "worker") if job.log_directory else ()
        whole = type(self)(
            *args,
            **{
                **keywords,
                # What the user has said comes last, and counts.
                "job_extra_directives": [*array.directives, *logs, *keywords["job_extra_directives"]],
                "worker_extra_args": [
                    *keywords["worker_extra_args"],
                    "--array",
                    f"{array.variable}:{array.numbers[0]}",
                ],
            },
        )
        return self.system.array_ids(await whole.submit(), count)

    async def close(self) -> None:
        """End the job."""
        await self.keeper.close_job(self.name)
        self.status = Status.closed
        job: Any = self
        job._event_finished.set()

    async def _call(self, command: Sequence[str], *, shell: bool = False, **_: Any) -> str:
        """Run the submit command, in an environment without the variables of a job that the client is in itself."""
        words = ["/bin/sh", "-c", *command] if shell else list(command)
        answer = await asyncio.get_running_loop().run_in_executor(None, run, words, self.keeper.environ, _TIMEOUT)
        if answer.code:
            raise SubmitError(words_of(answer))
        return answer.out


def load() -> Any:
    """Import dask-jobqueue, which replaces the handler of SIGINT when it is imported.

    Raises
    ------
    SettingsError
        If it is not installed.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module("dask_jobqueue")
    except ImportError as error:
        raise SettingsError(
            f"Submitting jobs needs dask-jobqueue, which cannot be imported ({error}): `pip install dask-jobqueue`."
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


def job_class(system: BatchSystem, keeper: Any, nodes: int) -> type:
    """Make the class of a cluster's jobs."""
    module, _, name = system.job_class.rpartition(".")
    base = getattr(importlib.import_module(module), name)
    return type(name, (SubmittedJob, base), {"keeper": keeper, "system": system, "nodes": nodes})


def python_command(python: str | None, prefix: Sequence[str]) -> str:
    """Say how a job's script runs Python: in the place of its shell, which the batch system's signals would end first."""
    return " ".join(["exec", *map(shlex.quote, prefix), python or shlex.quote(sys.executable)])
