"""Handing jobs in: those asked for at one moment as one array, where the system has arrays, and never too many at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ..errors import InputError
from .desk import Desk
from .job import SubmitError
from .record import Action, JobBook
from .systems import BatchSystem

__all__ = ["Submitter"]

# Seconds in which jobs that are asked for come together, and between two times that jobs are handed in.
_TOGETHER, _PACE = 0.05, 0.25
# Jobs that are submitted at one moment, where each is submitted by itself.
_AT_ONCE = 4


class Submitter:
    """Hands in the jobs of one cluster; made in its event loop.

    Parameters
    ----------
    system : BatchSystem
        Whether there are arrays.
    book : JobBook
        Says which jobs are still wanted, and how many wait in the queue.
    desk : Desk
        Where they are handed in.
    most : int
        How many may wait in the batch system's queue (`max_pending`).
    prepare : callable
        Is awaited, with a job, before jobs are handed in; may raise `InputError`.
    follow : callable
        Gets what follows for each of them.
    handed_in : callable
        Is called when jobs have ids.
    """

    def __init__(
        self,
        system: BatchSystem,
        book: JobBook,
        desk: Desk,
        most: int,
        prepare: Callable[[Any], Awaitable[None]],
        follow: Callable[[Iterable[Action]], None],
        handed_in: Callable[[], None],
    ) -> None:
        self._book = book
        self._desk = desk
        self._most = most
        self._prepare = prepare
        self._follow = follow
        self._handed_in = handed_in
        self._array = max(1, system.most_in_array)
        # Names in the order in which they were asked for.
        self._jobs: dict[str, Any] = {}
        self._wanted = asyncio.Event()
        self._free = asyncio.Lock()
        self._closed = False

    def add(self, job: Any) -> None:
        """Have a job handed in."""
        self._jobs[job.name] = job
        self._wanted.set()

    def look(self) -> None:
        """See whether there is room for those that were held back."""
        if self._jobs:
            self._wanted.set()

    async def close(self) -> None:
        """Hand in nothing any more, once what is under way has come back."""
        self._closed = True
        self._desk.close()
        self._jobs.clear()
        async with self._free:
            pass

    async def run(self) -> None:
        """Hand jobs in, for as long as the cluster lives."""
        while not self._closed:
            await self._wanted.wait()
            await asyncio.sleep(_TOGETHER)
            async with self._free:
                jobs = self._take()
                if jobs:
                    await self._hand_in(jobs)
                else:
                    self._wanted.clear()
            await asyncio.sleep(_PACE)

    def _take(self) -> list[Any]:
        """Choose those that are next: as many as there is room for, and as one array can be."""
        self._jobs = {name: job for name, job in self._jobs.items() if self._is_wanted(name)}
        # An array numbers its jobs one after the other.
        names = sorted(self._jobs, key=lambda name: self._book.records[name].number)
        first = self._book.records[names[0]].number if names else 0
        if self._array > 1:
            names = [name for at, name in enumerate(names) if self._book.records[name].number == first + at]
        room = max(0, self._most - self._book.queued)
        names = names[: min(room, self._array if self._array > 1 else _AT_ONCE)]
        taken = [self._jobs.pop(name) for name in names]
        for name in self._jobs if not room else ():
            self._book.held(name, f"{self._most} jobs are waiting in the queue (max_pending)")
        return taken

    async def _hand_in(self, jobs: Sequence[Any]) -> None:
        try:
            await self._prepare(jobs[0])
        except (InputError, OSError) as error:
            self._refused(jobs, error)
            return
        if self._array > 1 and len(jobs) > 1:
            await self._hand_in_as_array(jobs)
        else:
            await asyncio.gather(*map(self._hand_in_one, jobs))
        self._handed_in()
        late = [job.job_id for job in jobs if job.job_id and not self._is_wanted(job.name)]
        if late:
            # Nobody has wanted them any more when their ids came.
            await self._desk.cancel(late)

    def _is_wanted(self, name: str) -> bool:
        record = self._book.records.get(name)
        return record is not None and not (record.closing or record.is_over)

    async def _hand_in_as_array(self, jobs: Sequence[Any]) -> None:
        try:
            ids = await self._desk.submit(jobs[0], len(jobs))
        except SubmitError as error:
            # It may be for the array: a site may forbid them, or allow smaller ones only.
            if await self._hand_in_one(jobs[0], jobs, error):
                self._array = 1
                for job in jobs[1:]:
                    self.add(job)
            return
        for job, job_id in zip(jobs, ids, strict=True):
            self._submitted(job, job_id)

    async def _hand_in_one(self, job: Any, like: Sequence[Any] = (), before: SubmitError | None = None) -> bool:
        """Submit one job, and say whether it was taken; if not, nor are those like it."""
        try:
            (job_id,) = await self._desk.submit(job)
        except SubmitError as error:
            self._refused(like or [job], before or error)
            return False
        self._submitted(job, job_id)
        return True

    def _submitted(self, job: Any, job_id: str) -> None:
        job.job_id = job_id
        self._follow(self._book.submitted(job.name, job_id, time.monotonic()))

    def _refused(self, jobs: Sequence[Any], error: InputError | OSError) -> None:
        text = str(error).rstrip(".")
        self._follow(self._book.not_submitted([job.name for job in jobs if self._is_wanted(job.name)], text))
        if self._book.gave_up is not None and self._jobs:
            rest, self._jobs = [name for name in self._jobs if self._is_wanted(name)], {}
            self._follow(self._book.not_submitted(rest, text))
