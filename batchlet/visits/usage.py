"""What the workers of a run are doing, out of what its scheduler says of them; figures as Dask's workers report them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Total", "Worker", "percent", "total_of", "workers_of"]


def percent(part: float) -> str:
    """Write a part of one for people."""
    return f"{100 * part:.0f} %"


@dataclass(frozen=True)
class Worker:
    """One worker at this moment.

    Parameters
    ----------
    name, host : str
        Of it.
    threads : int
        How many it has.
    cpu : float
        Part of its threads' CPUs that it uses; more than 1 where its tasks have threads of their own.
    memory, limit : int
        In bytes; a limit of 0 is none.
    spilled : int
        Bytes on disk.
    executing, waiting : int
        Tasks that it computes, and that it has ready.
    network : float
        Bytes a second that its host receives and sends.
    paused : bool
        Whether it takes no tasks, mostly because its memory is full.
    """

    name: str
    host: str
    threads: int
    cpu: float
    memory: int
    limit: int
    spilled: int
    executing: int
    waiting: int
    network: float
    paused: bool

    @property
    def filled(self) -> float:
        """Part of the limit that is in use."""
        return self.memory / self.limit if self.limit else 0.0

    @property
    def order(self) -> tuple[Any, ...]:
        """The more interesting, the smaller: paused, then busy, then full ones; in steps, so that lines stay in place."""
        busy = max(self.cpu, self.executing / self.threads)
        digits = [int(part) if part.isdigit() else -1 for part in re.split(r"(\d+)", self.name)]
        return not self.paused, -round(busy, 1), -round(self.filled, 1), digits, self.name


@dataclass(frozen=True)
class Total:
    """All workers together; the fields as those of `Worker`."""

    workers: int
    nodes: int
    threads: int
    cpu: float
    memory: int
    limit: int
    spilled: int
    executing: int
    waiting: int
    network: float
    paused: int


def workers_of(identity: Mapping[str, Any]) -> list[Worker]:
    """Read what a scheduler says of its workers, the most interesting one first."""
    found = [_worker(known) for known in identity.get("workers", {}).values()]
    return sorted(found, key=lambda worker: worker.order)


def _worker(known: Mapping[str, Any]) -> Worker:
    metrics = known.get("metrics") or {}
    tasks = metrics.get("task_counts") or {}
    network = metrics.get("host_net_io") or {}
    threads = max(1, int(known.get("nthreads") or 1))
    return Worker(
        name=str(known.get("name")),
        host=str(known.get("host")),
        threads=threads,
        cpu=float(metrics.get("cpu") or 0.0) / 100 / threads,
        memory=int(metrics.get("memory") or 0),
        limit=int(known.get("memory_limit") or 0),
        spilled=int((metrics.get("spilled_bytes") or {}).get("disk") or 0),
        executing=int(tasks.get("executing") or 0),
        waiting=int(tasks.get("ready") or 0) + int(tasks.get("constrained") or 0),
        network=float(network.get("read_bps") or 0.0) + float(network.get("write_bps") or 0.0),
        paused=str(known.get("status")) == "paused",
    )


def total_of(workers: list[Worker]) -> Total:
    """Add workers up."""
    threads = sum(worker.threads for worker in workers)
    return Total(
        workers=len(workers),
        nodes=len({worker.host for worker in workers}),
        threads=threads,
        cpu=sum(worker.cpu * worker.threads for worker in workers) / threads if threads else 0.0,
        memory=sum(worker.memory for worker in workers),
        limit=sum(worker.limit for worker in workers),
        spilled=sum(worker.spilled for worker in workers),
        executing=sum(worker.executing for worker in workers),
        waiting=sum(worker.waiting for worker in workers),
        # Of each host once: its workers all say the same, within a moment.
        network=sum({worker.host: worker.network for worker in workers}.values()),
        paused=sum(worker.paused for worker in workers),
    )
