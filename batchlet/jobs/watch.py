"""Asking the batch system: at most once in ten seconds, for all jobs together, and only while something is unexplained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from .. import report
from .commands import Answer, run, words_of
from .record import JobBook
from .systems import BatchSystem, Seen

__all__ = ["Watch"]

_EVERY = 10.0
# Seconds before the first question about something: most jobs start at once.
_FIRST = 2.0
# Seconds that the system may take to account for a job that has left the queue; gridengine does so every 15 s by default.
_ACCOUNTED = 16.0
# Failures in a row after which it is said that the system does not answer: once now and then is nobody's business.
_FAILURES = 2


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
        self._failures = 0
        self._missed: dict[str, float] = {}

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
        command = self._system.query(ids)
        answer = await loop.run_in_executor(None, run, command, self._environ)
        if answer.code and not self._system.none_left(answer.code, answer.err):
            self._failed(answer)
            return
        if self._failures >= _FAILURES:
            report.note(f"{self._system.title} answers again")
        self._failures = 0
        answered = self._system.parse(answer.out)
        found = {job: seen for job in ids if (seen := self._system.find(answered, job)) is not None}
        missing = [job for job in ids if job not in found]
        finished = self._system.finished(missing) if missing else None
        if finished is not None:
            # It may fail, where there is no accounting.
            more = await loop.run_in_executor(None, run, finished, self._environ)
            accounted = self._system.parse_finished(more.out)
            found |= {job: seen for job in missing if (seen := self._system.find(accounted, job)) is not None}
        now = time.monotonic()
        self._missed = {job: self._missed.get(job, now) for job in missing if job not in found}
        patience = 0.0 if finished is None or self._system.settled_by_query else _ACCOUNTED
        found |= {job: Seen("ended") for job, since in self._missed.items() if now - since >= patience}
        self._book.answered(ids)
        self._tell(found)

    def _failed(self, answer: Answer) -> None:
        """Say, once, that the system does not answer."""
        self._failures += 1
        if self._failures == _FAILURES:
            report.note(f"{self._system.title} does not say what jobs do ({words_of(answer)}); it will be asked again")

    def _tell(self, found: Mapping[str, Seen]) -> None:
        for job, seen in found.items():
            if seen.state == "unknown":
                continue
            said = ", ".join(dict.fromkeys(word for word in (seen.word, seen.reason) if word))
            code = f"exit code {seen.exit_code}" if seen.exit_code is not None and seen.exit_code >= 0 else ""
            if seen.exit_code is not None and seen.exit_code < 0:
                code = f"signal {-seen.exit_code}"
            reason = (seen.reason or seen.word) if seen.state == "pending" else said
            record = self._book.by_id(job)
            if seen.state == "running" and seen.end is not None and record is not None:
                # The system's clock is taken for ours.
                self._book.ends(record.name, time.monotonic() + seen.end - time.time())
            self._seen(job, seen.state, reason, code)
