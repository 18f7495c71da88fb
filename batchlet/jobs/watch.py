"""Asking the batch system: at most once in ten seconds, for all jobs together, and only while something is unexplained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from .commands import run
from .record import JobBook
from .systems import BatchSystem, Seen

__all__ = ["Watch"]

_EVERY = 10.0
# Seconds before the first question about something: most jobs start at once.
_FIRST = 2.0


class Watch:
    """Asks what becomes of jobs.

    Parameters
    ----------
    system : BatchSystem
        Who is asked.
    environ : mapping of str to str
        The environment of its commands.
    book : JobBook
        Says which jobs are unexplained.
    seen : callable
        Gets a job's id, its state, the reason and how it has ended.
    """

    def __init__(
        self,
        system: BatchSystem,
        environ: Mapping[str, str],
        book: JobBook,
        seen: Callable[[str, str, str, str], None],
    ) -> None:
        self._system = system
        self._environ = environ
        self._book = book
        self._seen = seen
        self._wanted = asyncio.Event()
        self._last = -_EVERY

    def ask(self) -> None:
        """Have it asked soon."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask for as long as there is something to ask."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.sleep(_FIRST)
            while self._book.unexplained:
                rest = self._last + _EVERY - time.monotonic()
                if rest > 0:
                    await asyncio.sleep(rest)
                self._last = time.monotonic()
                await self._ask()

    async def _ask(self) -> None:
        ids = [job.job_id for job in self._book.unexplained]
        if not ids:
            return
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(None, run, self._system.query(ids), self._environ)
        if answer.code and not self._system.none_left(answer.code, answer.err):
            return
        found = self._system.parse(answer.out)
        missing = [job for job in ids if job not in found]
        command = self._system.finished(missing) if missing else None
        if command is not None:
            more = await loop.run_in_executor(None, run, command, self._environ)
            if not more.code:
                found |= self._system.parse_finished(more.out)
        for job in ids:
            seen = found.get(job, Seen("ended"))
            if seen.state == "unknown":
                continue
            said = ", ".join(dict.fromkeys(word for word in (seen.word, seen.reason) if word))
            code = f"exit code {seen.exit_code}" if seen.exit_code is not None and seen.exit_code >= 0 else ""
            if seen.exit_code is not None and seen.exit_code < 0:
                code = f"signal {-seen.exit_code}"
            reason = (seen.reason or seen.word) if seen.state == "pending" else said
            self._seen(job, seen.state, reason, code)
