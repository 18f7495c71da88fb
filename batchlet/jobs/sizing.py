"""The size of a submitted job: from what is asked for a node to its workers, and from what was granted to their limits."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..cuda_workers import refuse_unfit
from ..environments import Figure, ProcessInfo
from ..errors import PlanError
from ..gpu_shares import divide, gpus_in_use
from ..gpus import numbered
from ..plan import WorkerPlan, make_plan, processes_of
from ..resources import NodeResources
from ..settings import Settings, describe_bytes

__all__ = ["JobSize", "fit", "size_of_job"]

# A rank that hosts workers and is neither scheduler nor client: so the sizing rule sees a node of a job.
_RANK = 2
# Parts of a worker's memory that a grant may be smaller without a word: batch systems count in MiB.
_ROUNDING = 0.01


@dataclass(frozen=True)
class JobSize:
    """What a job asks for, and what its workers are to be.

    Parameters
    ----------
    nodes : int
        Nodes of the job.
    cores, memory : int
        CPUs and bytes of each node.
    threads : tuple of int
        Threads of each worker of a node.
    limit : int
        Bytes that each worker may use.
    gpus : int
        GPUs of each node.
    """

    nodes: int
    cores: int
    memory: int
    threads: tuple[int, ...]
    limit: int
    gpus: int = 0

    @property
    def workers_per_node(self) -> int:
        """Workers of a node."""
        return len(self.threads)

    @property
    def workers(self) -> int:
        """Workers of the job."""
        return self.nodes * len(self.threads)

    def jobs(self, workers: float = 0, cores: float = 0, memory: float = 0) -> tuple[float, float, float]:
        """Say in jobs what is said in workers, in CPUs or in bytes; not in whole ones."""
        return workers / self.workers, cores / (self.nodes * self.cores), memory / (self.nodes * self.memory)

    def names(self, job: str, node: int) -> list[str]:
        """Name the workers of one node of a job."""
        first = node * self.workers_per_node
        return [f"{job}-{number}" for number in range(first, first + self.workers_per_node)]


def size_of_job(settings: Settings, cores: Figure[int], memory: Figure[int]) -> JobSize:
    """Settle the workers of a job by the rule that holds for runs.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    cores, memory : Figure of int
        CPUs and bytes of each node of the job, and who said so.

    Raises
    ------
    PlanError
        If more was asked for than a node has, or workers cannot be of the kind that was asked for, whatever the node.
    """
    info = ProcessInfo(
        mode="jobs", rank=_RANK, world_size=_RANK + 1, node="(each of a job)", nodes=settings.nodes_per_job,
        local_ranks=(_RANK,), run_id="", slots=processes_of(cores.value),
    )  # fmt: skip
    # Numbers only; which ones they are is known on the node.
    gpus = numbered([str(number) for number in range(settings.gpus)], "gpus=") if settings.gpus else None
    workers = make_plan(info, NodeResources(cores, cores, memory, gpus), settings).workers
    refuse_unfit(workers, settings)
    asked = settings.gpus or len(workers) * (settings.gpus_per_worker or 0)
    return JobSize(
        settings.nodes_per_job,
        cores.value,
        memory.value,
        tuple(worker.threads for worker in workers),
        workers[0].memory,
        asked,
    )


def fit(
    names: Sequence[str], threads: Sequence[int], limit: int, granted: NodeResources, settings: Settings
) -> tuple[tuple[WorkerPlan, ...], str | None]:
    """Have the workers of a node keep to what their job was granted there, which may be less than was asked for.

    Parameters
    ----------
    names : sequence of str
        Names of the workers. How many there are, is settled.
    threads : sequence of int
        Threads that each is to have.
    limit : int
        Bytes that each may use.
    granted : NodeResources
        What this node of the job has.
    settings : Settings
        What the user asked for.

    Returns
    -------
    plans : tuple of WorkerPlan
        The workers.
    difference : str or None
        What was granted less than was asked for.

    Raises
    ------
    PlanError
        If it was granted fewer GPUs than its workers are to have.
    """
    count, differences = len(names), []
    cpus = min(granted.cpus.value, granted.cpus_per_rank.value)
    if sum(threads) > cpus:
        source = min(granted.cpus, granted.cpus_per_rank, key=lambda figure: figure.value).source
        differences.append(f"{cpus} CPUs instead of {sum(threads)} ({source})")
        threads = [max(1, cpus // count + (number < cpus % count)) for number in range(count)]
    share = int(granted.memory.value * (1 - settings.memory_headroom_frac)) // count
    if share < limit:
        if share < limit * (1 - _ROUNDING):
            had = describe_bytes(granted.memory.value)
            differences.append(
                f"{had} of memory ({granted.memory.source}), so that a worker has {describe_bytes(share)} instead of "
                f"{describe_bytes(limit)}"
            )
        limit = share
    gpus = gpus_in_use(granted.gpus, 1, settings)
    if gpus is None and settings.gpus_per_worker:
        raise PlanError(
            f"gpus_per_worker={settings.gpus_per_worker}, but no variable names a GPU that the job was granted on this node. "
            "Ask for them in job_extra_directives (--gres=gpu:N)."
        )
    gpus = gpus and replace(gpus, bound=False)
    shares = divide(gpus, [(name, 0) for name in names], 0, settings, socket.gethostname())
    plans = tuple(
        WorkerPlan(name, 0, number, limit, part.gpus, environ=part.environ)
        for name, number, part in zip(names, threads, shares, strict=True)
    )
    return plans, " and ".join(differences) or None
