"""What a plan is: what a process will do, the workers of its node, and every figure with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .environments.base import Figure
from .settings import describe_bytes
from .topology import describe_cpus

__all__ = ["Plan", "WorkerPlan", "shown"]


@dataclass(frozen=True)
class WorkerPlan:
    """One Dask worker.

    Parameters
    ----------
    name : int or str
        Dask's name for it: the rank for the first worker of a rank (as under SLURMRunner), then "2-1", "2-2".
    rank : int
        The rank that hosts it.
    threads : int
        Its threads.
    memory : int
        Its memory limit in bytes.
    gpus : tuple of str
        The GPUs that it is to use, as `environ` names them; "of rank 3" where only that rank can see which ones they are.
    cpus : tuple of int
        The CPUs that it is bound to; empty if it runs wherever its rank may.
    environ : mapping of str to str
        Variables of its own: which GPUs it sees, its own ones first.
    worker_class : str
        The class that runs it, where that was chosen for it; else that which the user has named, or Dask's own.
    """

    name: int | str
    rank: int
    threads: int
    memory: int
    gpus: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    worker_class: str = ""


@dataclass(frozen=True)
class Plan:
    """What this process will do, and what its node will run.

    Parameters
    ----------
    mode, role : str
        Which launcher, and what this rank is: "scheduler", "client", "worker", or "local" for all in one.
    rank, world_size : int
        This process's number and how many there are.
    node : str
        Name of this node.
    workers : tuple of WorkerPlan
        The workers of this node, on whichever of its ranks.
    figures : mapping of str to Figure
        Every figure that the plan rests on, with its source. Memory is in bytes.
    notes : tuple of str
        What the user is to hear when workers start, since it is other than one would expect.
    """

    mode: str
    role: str
    rank: int
    world_size: int
    node: str
    workers: tuple[WorkerPlan, ...]
    figures: Mapping[str, Figure[int] | Figure[float] | Figure[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def hosted(self) -> tuple[WorkerPlan, ...]:
        """The workers that this rank hosts."""
        return tuple(worker for worker in self.workers if worker.rank == self.rank)

    def __str__(self) -> str:
        return f"{self.mode}, rank {self.rank} of {self.world_size}, {self.role}\n{self.node_text()}"

    def node_text(self) -> str:
        """Describe this node: its figures with their sources, and its workers."""
        lines = [f"node {self.node}"]
        for name, figure in self.figures.items():
            lines.append(f"  {name:<20} {shown(name, figure.value):>10}  {figure.source}")
        lines += [
            f"  worker {worker.name!s:<13} {worker.threads} thread{'s' if worker.threads > 1 else ''}, "
            f"{describe_bytes(worker.memory)}{_gpus(worker)}, rank {worker.rank}"
            + (f", CPUs {describe_cpus(worker.cpus)}" if worker.cpus else "")
            for worker in self.workers
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Give the plan as plain dicts, lists, numbers and texts; memory in bytes."""
        return asdict(self)


def shown(name: str, value: float | str) -> str:
    """Write the value of a figure of the plan for people.

    Parameters
    ----------
    name : str
        What the figure is called.
    value : float or str
        What it is.
    """
    if isinstance(value, str):
        return value
    return describe_bytes(int(value)) if "memory" in name and "frac" not in name else f"{value:g}"


def _gpus(worker: WorkerPlan) -> str:
    if not worker.gpus:
        return ""
    return f", GPU{'s' if len(worker.gpus) > 1 else ''} {' '.join(worker.gpus)}"
