"""dask-jobqueue's cluster in whole jobs, which a keeper keeps: what happens to them where the user does not look.

What is used of dask-jobqueue and of Dask beside their documentation, is used here, in `batchlet.jobs.job` and in
`batchlet.jobs.cluster`; tests/contract/test_jobqueue.py names it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from distributed.core import Status

from ..dask_backend.compat.dask_internals import lose_worker
from . import job as jobs_of_dask
from .adaptive import job_of
from .keeper import JobKeeper
from .options import JobOptions

__all__ = ["KeptCluster"]

jobs_of_dask.load()
from dask_jobqueue import JobQueueCluster  # noqa: E402


class KeptCluster(JobQueueCluster):  # type: ignore[misc]
    """A cluster of jobs, as their keeper and adaptive scaling see it."""

    keeper: JobKeeper
    _job: JobOptions
    _numbers: Iterator[int]

    def __init__(self, **options: Any) -> None:
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

    async def retire(self, job: str, timeout: float, pause: float = 0.0) -> None:
        """Have what the workers of a job have computed brought to others, if any stay, for as long as that may take.

        Others that leave at the same moment say so within the pause, and are given nothing.
        """
        self._leaving.add(job)
        await asyncio.sleep(pause)
        workers = list(self.scheduler.workers.values())
        names = [state.name for state in workers if job_of(state) == job]
        if names and any(job_of(state) not in self._leaving and state.status == Status.running for state in workers):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.scheduler_comm.retire_workers(names=names, remove=False), timeout)

    def lose(self, names: list[str]) -> None:
        """Forget workers whose agent is gone: Dask itself would find out later."""
        self._leaving.difference_update(name.rpartition("-")[0] for name in names)
        for address in [state.address for state in self.scheduler.workers.values() if state.name in names]:
            lose_worker(self.scheduler, address)

    def drop_job(self, name: str) -> None:
        """Forget a job that is lost."""
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
