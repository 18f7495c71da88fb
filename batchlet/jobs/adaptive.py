"""Adaptive scaling that knows whole jobs only: those that wait count, those that retire do not, and only idle ones go."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from distributed.deploy.adaptive import Adaptive
from distributed.protocol import pickle

from .job_record import RETIRING

__all__ = ["JobAdaptive", "job_of"]

# How often in a row a job must have been idle before it goes, and fewer jobs enough before one goes that waits: seconds, by
# Dask's default of one look in a second.
_WAIT_COUNT = 10
# Seconds in which a job that is not there yet is not taken back. What tasks take Dask learns from the first of them, and until
# then guesses (distributed.scheduler.unknown-task-duration): what it wants in the first seconds means little.
_HOLD = 30.0


def job_of(worker: Any) -> str:
    """Name the job of a worker, as the scheduler knows it."""
    return str(worker.name).rpartition("-")[0]


def _is_busy(workers: Iterable[Any]) -> bool:
    return any(state.processing for state in workers)


class JobAdaptive(Adaptive):  # type: ignore[misc]
    """Dask's adaptive scaling in units of jobs; `minimum` and `maximum` are numbers of jobs.

    Parameters
    ----------
    cluster : BatchletCluster
        What is scaled.
    wait_count : int, optional
        How often in a row a job must have had nothing to do before it goes.
    **options
        Of Dask's own.
    """

    def __init__(self, cluster: Any, wait_count: int | None = None, **options: Any) -> None:
        self._surplus = 0
        self._idle: dict[str, int] = {}
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
        workers: dict[str, list[Any]] = {}
        for state in cluster.scheduler.workers.values():
            workers.setdefault(job_of(state), []).append(state)
        self._idle = {name: self._idle.get(name, 0) + 1 for name, states in workers.items() if not _is_busy(states)}
        # More than there are, Dask wants for the work. Up to that it looks at what there is, jobs that retire among it.
        target = await self.target()
        enough = target <= sum(map(len, workers.values()))
        # Those that have joined from elsewhere do their part, for as long as they are there.
        guests = sum(len(states) for name, states in workers.items() if name not in cluster.keeper.book.records)
        wanted = self._needed(workers) if enough else math.ceil((target - guests) / cluster.workers_per_job)
        wanted = int(max(self.minimum, min(self.maximum, wanted)))
        surplus = len(cluster.worker_spec) - wanted
        self._surplus = self._surplus + 1 if surplus > 0 else 0
        if surplus < 0:
            if cluster.keeper.book.gave_up is None:
                self._note("up", wanted)
                cluster._scale_to(wanted)
            return
        cluster.keeper.let_succeeded_go([name for name in self._succeeded(workers) if self._is_idle(name)])
        leaving = await self._leaving(surplus, workers) if surplus else []
        if leaving:
            self._note("down", wanted)
            cluster.let_go(leaving)

    def _needed(self, workers: dict[str, list[Any]]) -> int:
        """How many jobs it takes where those that are there are enough for the work."""
        succeeded = self._succeeded(workers)
        counted = [states for name, states in workers.items() if name in self.cluster.worker_spec]
        busy = [states for states in counted if _is_busy(states)]
        # Those that will retire and are at work: others go on with that.
        needed = len(busy) + sum(
            self.cluster.keeper.book.records[name].state != RETIRING and _is_busy(workers[name]) for name in succeeded
        )
        # As Dask has it: twice as much memory as there are results, those of jobs that retire among them.
        results = 2 * sum(state.nbytes for states in workers.values() for state in states)
        room = sum(state.memory_limit for states in busy for state in states)
        for states in counted:
            if room >= results:
                break
            if states not in busy:
                needed += 1
                room += sum(state.memory_limit for state in states)
        return int(max(needed, 1) if results else needed)

    def _succeeded(self, names: Iterable[str]) -> list[str]:
        """Name the jobs that count no more."""
        records = self.cluster.keeper.book.records
        return [name for name in names if name in records and records[name].succeeded]

    def _is_idle(self, name: str) -> bool:
        return bool(self._idle.get(name, 0) >= self.wait_count)

    async def _leaving(self, surplus: int, workers: dict[str, list[Any]]) -> list[str]:
        """Choose who goes: first those that have been waiting for long, then those that have had nothing to do for long."""
        cluster, records = self.cluster, self.cluster.keeper.book.records
        absent = [name for name in cluster.worker_spec if name not in workers]
        now = time.monotonic()
        leaving: list[str] = []
        if self._surplus >= self.wait_count:
            old = [name for name in absent if name in records and now - records[name].since > _HOLD]
            leaving = cluster.keeper.book.by_use(old)[:surplus]
        # What waits and may not go yet is there soon, and then there is one too many of the others, or not.
        rest = surplus - len(absent)
        if rest > 0:
            idle = [name for name in workers if name in cluster.worker_spec and self._is_idle(name)]
            leaving += sorted(idle, key=lambda name: sum(state.nbytes for state in workers[name]))[:rest]
        over = len(cluster.worker_spec) - len(leaving) - self.maximum
        if over > 0:
            # The user wants fewer than there are, whatever they are doing. All of them in this order: workers that have joined
            # from elsewhere are among them, and never go.
            names = await self.scheduler.workers_to_close(target=0, key=pickle.dumps(self.worker_key), attribute="name")
            jobs = dict.fromkeys(str(name).rpartition("-")[0] for name in names)
            busy = [name for name in jobs if name in cluster.worker_spec and name not in leaving]
            leaving += busy[: int(over)]
        return leaving

    def _note(self, status: str, wanted: int) -> None:
        self.log.append((time.time(), {"status": status, "n": wanted}))
