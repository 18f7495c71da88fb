"""Adaptive scaling that knows whole jobs only: those that wait count, and what was just asked for is not taken back."""

from __future__ import annotations

import math
import time
from typing import Any

from distributed.deploy.adaptive import Adaptive
from distributed.protocol import pickle

__all__ = ["JobAdaptive", "job_of"]

# How often in a row fewer jobs must be enough before one goes: seconds, by Dask's default of one look in a second.
_WAIT_COUNT = 10
# Seconds in which a job that is not there yet is not taken back. What tasks take Dask learns from the first of them, and until
# then guesses (distributed.scheduler.unknown-task-duration): what it wants in the first seconds means little.
_HOLD = 30.0


def job_of(worker: Any) -> str:
    """Name the job of a worker, as the scheduler knows it."""
    return str(worker.name).rpartition("-")[0]


class JobAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling in units of jobs; `minimum` and `maximum` are numbers of jobs.

    Parameters
    ----------
    cluster : BatchletCluster
        What is scaled.
    wait_count : int, optional
        How often in a row fewer jobs must be enough before one goes.
    **options
        Of Dask's own.
    """

    def __init__(self, cluster: Any, wait_count: int | None = None, **options: Any) -> None:
        self._surplus = 0
        self._looking = False
        super().__init__(cluster, wait_count=wait_count or _WAIT_COUNT, worker_key=job_of, **options)

    async def adapt(self) -> None:
        """Look how many jobs it takes, and ask for them, or let some go."""
        if self._looking:
            return
        self._looking = True
        try:
            await self._look()
        finally:
            self._looking = False

    async def _look(self) -> None:
        cluster = self.cluster
        wanted = math.ceil(await self.target() / cluster.workers_per_job)
        wanted = int(max(self.minimum, min(self.maximum, wanted)))
        surplus = len(cluster.worker_spec) - wanted
        if surplus <= 0:
            self._surplus = 0
            if surplus < 0 and cluster.keeper.book.gave_up is None:
                self._note("up", wanted)
                cluster._scale_to(wanted)
            return
        self._surplus += 1
        if self._surplus < self.wait_count:
            return
        leaving = await self._leaving(surplus)
        if leaving:
            self._surplus = 0
            self._note("down", wanted)
            cluster.let_go(leaving)

    async def _leaving(self, surplus: int) -> list[str]:
        """Choose who goes: first those that have been waiting for long, then those that have the least to do."""
        cluster, records = self.cluster, self.cluster.keeper.book.records
        absent = [name for name in cluster.worker_spec if name not in records or not records[name].hosts]
        now = time.monotonic()
        old = [name for name in absent if name in records and now - records[name].since > _HOLD]
        leaving: list[str] = cluster.keeper.book.by_use(old)[:surplus]
        # What waits and may not go yet is there soon, and then there is one too many of the others, or not.
        rest = surplus - len(absent)
        if rest > 0:
            # All of them in this order: workers that have joined from elsewhere are among them, and never go.
            names = await self.scheduler.workers_to_close(target=0, key=pickle.dumps(self.worker_key), attribute="name")
            jobs = dict.fromkeys(str(name).rpartition("-")[0] for name in names)
            leaving += [name for name in jobs if name in cluster.worker_spec and name not in leaving][:rest]
        return leaving

    def _note(self, status: str, wanted: int) -> None:
        self.log.append((time.time(), {"status": status, "n": wanted}))
