"""How a job leaves: what it is computing may come to its end, what it has computed is brought to others; then it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from .. import report
from .desk import Desk
from .record import JobBook

__all__ = ["Departures", "Drained"]

# Part of the time between the batch system's signal and the end of a job that its results have to move; the rest is for ending.
_PART = 0.8


class Drained(Protocol):
    """The cluster, as far as it is asked here; see `batchlet.jobs.kept_cluster`."""

    async def drain(self, job: str, until: float, in_vain: Callable[[], bool], *, patient: bool) -> int:
        """Have a job's workers finish and hand over, until this moment or until it is in vain; count what is cut off."""

    def part_with(self, name: str) -> None:
        """Count a job no more."""


class Departures:
    """Has jobs leave, each in its own time; made in the cluster's event loop.

    Parameters
    ----------
    book : JobBook
        All jobs.
    desk : Desk
        Cancels those whose agents do not end.
    cluster : Drained
        Has the workers.
    stop : callable
        Tells the agents of a job to end.
    timeout : float
        Seconds that the workers of a job that the user does not want any more have, and then its agents.
    """

    def __init__(
        self, book: JobBook, desk: Desk, cluster: Drained, stop: Callable[..., object], timeout: float
    ) -> None:
        self._book = book
        self._desk = desk
        self._cluster = cluster
        self._stop = stop
        self._timeout = timeout
        self._ended: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurried: set[str] = set()
        self._closing = False

    async def close_job(self, name: str) -> None:
        """End a job that is not wanted any more: in its own time, unless the whole cluster ends."""
        job = self._book.records.get(name)
        if job is None or job.is_over or job.closing:
            return
        self._book.closes(name)
        if self._closing:
            await self._leave(name, None)
        else:
            self._start(self._leave(name, time.monotonic() + self._timeout, patient=False))

    def retire(self, name: str, until: float) -> None:
        """Have a job retire that comes to its end."""
        if self._book.retires(name):
            self._cluster.part_with(name)
            self._start(self._leave(name, until))

    def let_go(self, names: Iterable[str]) -> None:
        """Have jobs that count no more retire now."""
        for name in names:
            self.retire(name, time.monotonic() + self._timeout)

    def hurry(self, name: str, seconds: float) -> None:
        """Bring the results of a job that the batch system is about to end to others, while there is time."""
        job = self._book.records.get(name)
        if job is not None and not job.closing and not job.is_over and name not in self._hurried:
            self._hurried.add(name)
            self._start(self._hurry(name, time.monotonic() + _PART * seconds))

    def went(self, name: str) -> None:
        """Note that a job is over."""
        if name in self._ended:
            self._ended[name].set()

    async def close(self) -> None:
        """Have all jobs end that are still leaving, and those that count no more; from now on none is given time."""
        self._closing = True
        rest = [job.name for job in self._book.active if job.succeeded and not job.closing]
        for name in rest:
            self._start(self.close_job(name))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # One job

    def _start(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave(self, name: str, until: float | None, *, patient: bool = True) -> None:
        """End a job, with its results handed over until a moment if there is one."""
        job = self._book.records[name]
        ended = self._ended.setdefault(name, asyncio.Event())
        whole = len(job.hosts) == job.nodes
        if whole and until is not None:
            cut = await self._cluster.drain(name, until, self._in_vain, patient=patient)
            if cut and patient and not self._closing:
                tasks = report.count(cut, "task")
                report.note(
                    f"{job.title} comes to its end while it computes {tasks}, to be computed anew elsewhere; retire_before= "
                    "gives tasks more time"
                )
        if job.is_over:
            return
        self._book.closes(name)
        self._stop(name)
        if whole:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(ended.wait(), self._timeout)
        if not job.is_over and job.job_id:
            await self._desk.cancel([job.job_id])
        self._book.ended(name)
        self._ended.pop(name, None)

    async def _hurry(self, name: str, until: float) -> None:
        await self._cluster.drain(name, until, self._in_vain, patient=False)
        # The system may put it back into its queue.
        self._stop(name, for_good=False)
        self._hurried.discard(name)

    def _in_vain(self) -> bool:
        return self._closing
