"""dask-jobqueue's cluster in whole jobs, which a keeper keeps: what happens to them where the user does not look.

What is used of dask-jobqueue and of Dask beside their documentation, is used here, in `batchlet.jobs.job` and in
`batchlet.jobs.cluster`; tests/contract/test_jobqueue.py names it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from distributed.core import Status

from ..dask_backend.compat.scheduler_state import addresses_of, are_computing, lose_worker
from . import job as jobs_of_dask
from .adaptive import job_of
from .keeper import JobKeeper
from .options import JobOptions

__all__ = ["KeptCluster"]

# Seconds in which jobs that are cancelled by one command are all told so.
_TOGETHER = 0.5
# Seconds between two looks at workers that are about to leave, between two times that their results are brought elsewhere, and
# the most between two tries where that does not succeed.
_LOOK, _AGAIN, _LONGEST = 0.3, 1.5, 30.0

jobs_of_dask.load()
from dask_jobqueue import JobQueueCluster  # noqa: E402


class KeptCluster(JobQueueCluster):  # type: ignore[misc]
    """A cluster of jobs, as their keeper and adaptive scaling see it."""

    keeper: JobKeeper
    _job: JobOptions
    _numbers: Iterator[int]

    def __init__(self, **options: Any) -> None:
        # Jobs whose workers hand over what they have, until their agents are gone.
        self._leaving: set[str] = set()
        super().__init__(**options)

    @property
    def is_ending(self) -> bool:
        """Whether the whole cluster is being closed."""
        return bool(self.status in (Status.closing, Status.closed))

    @property
    def scheduler_contact(self) -> str:
        """Address of the scheduler for workers."""
        return str(self.scheduler.address)

    async def drain(self, job: str, until: float, in_vain: Callable[[], bool], *, patient: bool) -> int:
        """Have the workers of a job take no new tasks, finish what they are at, and hand over what they have; then forget them.

        Parameters
        ----------
        job : str
            Which.
        until : float
            When they are forgotten at the latest, in seconds of `time.monotonic`. What they are computing then is computed
            anew by others.
        in_vain : callable
            Whether nobody needs their results any more.
        patient : bool
            Whether to wait for workers that could take over, where there are none.

        Returns
        -------
        int
            How many tasks they are computing all the same.
        """
        self._leaving.add(job)
        # Others that leave at the same moment say so first, and are given nothing.
        await asyncio.sleep(_TOGETHER)
        names = [f"{job}-{number}" for number in range(self.workers_per_job)]
        paused, quiet, pause = 0.0, False, _LOOK

        def over() -> bool:
            return in_vain() or time.monotonic() >= until

        while not over() and (there := addresses_of(self.scheduler, names)):
            states = [self.scheduler.workers[address] for address in there]
            if all(job_of(state) in self._leaving for state in self.scheduler.running):
                if not patient or not any(state.processing or state.has_what for state in states):
                    break
                await asyncio.sleep(_LOOK)
                continue
            paused = paused or time.time()
            moved = await self._retire(there, until - time.monotonic())
            if moved and quiet:
                break
            if not moved:
                # Dask has logged why, and some of them take tasks again.
                await asyncio.sleep(min(pause, max(0.0, until - time.monotonic())))
                paused, pause = 0.0, min(2 * pause, _LONGEST)
                continue
            # What they are computing, they say about once a second. Meanwhile, and when they are done, there is more to bring.
            again = time.monotonic() + _AGAIN
            while not (quiet := not are_computing(self.scheduler, there, paused + _LOOK)):
                if over() or time.monotonic() >= again:
                    break
                await asyncio.sleep(_LOOK)
        there = addresses_of(self.scheduler, names)
        computing = are_computing(self.scheduler, there)
        for address in there:
            lose_worker(self.scheduler, address, expected=True)
        return computing

    async def _retire(self, addresses: list[str], timeout: float) -> bool:
        """Have all results of some workers brought to others, and say whether that was done."""
        try:
            done = await asyncio.wait_for(self.scheduler_comm.retire_workers(workers=addresses, remove=False), timeout)
        except Exception:  # noqa: BLE001 - whatever it is, the time will be over
            await asyncio.sleep(_LOOK)
            return False
        return set(done) >= set(addresses_of(self.scheduler, None)) & set(addresses)

    def lose(self, names: list[str], *, wanted: bool) -> None:
        """Forget workers whose agent is gone: Dask itself would find out later."""
        self._leaving.difference_update(name.rpartition("-")[0] for name in names)
        for address in addresses_of(self.scheduler, names):
            lose_worker(self.scheduler, address, expected=not wanted)

    def part_with(self, name: str) -> None:
        """Count a job no more: it is lost, or will retire in its own time."""
        self.worker_spec.pop(name, None)
        job = self.workers.pop(name, None)
        if job is not None:
            job.status = Status.closed

    def replace_job(self) -> None:
        """Ask for a job in the place of one that is lost, unless adaptive scaling does so where need be."""
        adaptive = self._adaptive
        if not self.is_ending and (adaptive is None or adaptive.periodic_callback is None):
            self._scale_to(len(self.worker_spec) + 1)

    def let_go(self, names: list[str]) -> None:
        """Let these jobs go."""
        for name in names:
            self.worker_spec.pop(name, None)
        self.loop.add_callback(self._correct_state)

    @property
    def n_workers(self) -> int:
        """Workers that are there."""
        return len(self.scheduler_info["workers"])

    @property
    def workers_per_job(self) -> int:
        """Workers that each job brings."""
        return self._job.size.workers

    def new_worker_spec(self) -> dict[str, Any]:
        """Give a job that is still to be submitted a name; no name comes back."""
        return {f"{self._name}-{next(self._numbers)}": self.new_spec}

    def _scale_to(self, jobs: int) -> None:
        """Have so many jobs; those that are the least use go first."""
        surplus = len(self.worker_spec) - jobs
        if not jobs:
            self.keeper.let_succeeded_go()
        if surplus > 0:
            self.let_go(self.keeper.book.by_use(self.worker_spec)[:surplus])
        if self.status not in (Status.closing, Status.closed):
            while len(self.worker_spec) < jobs:
                self.worker_spec.update(self.new_worker_spec())
        self.loop.add_callback(self._correct_state)

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        waiting = asyncio.ensure_future(super()._wait_for_workers(n_workers, timeout=timeout))
        while not waiting.done():
            gave_up = self.keeper.book.gave_up
            if gave_up is not None and len(self.keeper.book.active) * self._job.size.workers < n_workers:
                waiting.cancel()
                raise RuntimeError(f"{n_workers} workers will not come: {gave_up}.")
            await asyncio.wait([waiting], timeout=0.2)
        await waiting

    def _get_worker_security(self, security: Any) -> None:
        """Give jobs no credentials: dask-jobqueue would write them into files, and those into the command line."""
