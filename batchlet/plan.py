"""From who I am, what the node grants and what the user asked for to a plan: my role, and the workers of this node.

The sizing rule, for every launcher and for none:

* A node's memory less the headroom is *usable*. It is cut into equal shares, one for each worker and one for each head
  (scheduler, client) that lives on the node, so that the workers never squeeze a head out. Heads that are ranks of their own
  never get more than the share of a rank: asking for fewer, larger workers does not make them grow.
* CPUs likewise: a head that is a rank of its own keeps the CPUs of a rank, the workers share the rest. A head that shares
  its rank with workers (co-located) keeps one CPU, if there are enough for every worker to have one too.
* Where there are GPUs, there is one worker for each of them, unless asked otherwise (`batchlet.gpu_shares`).
* What was asked for wins over what is inferred; what does not fit is an error that shows the sum.

Nothing here reads the environment or the machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .environments.base import Figure, ProcessInfo
from .errors import PlanError
from .gpu_shares import divide, gpu_figures, gpus_in_use, workers_for
from .planned import Plan, WorkerPlan
from .resources import NodeResources
from .settings import LEAST_WORKER_MEMORY, Settings, describe_bytes

__all__ = [
    "CLIENT",
    "LOCAL",
    "SCHEDULER",
    "WORKER",
    "Plan",
    "WorkerPlan",
    "hosts_workers",
    "make_plan",
    "processes_of",
    "role_of",
]

SCHEDULER = "scheduler"
CLIENT = "client"
WORKER = "worker"
LOCAL = "local"

# With fewer ranks than roles, the head ranks must work too.
_ROLES = 3


def role_of(info: ProcessInfo, rank: int) -> str:
    """Say what a rank of the run does: 0 schedules, 1 is the client, all others work; a world of one is local."""
    if info.world_size == 1 and info.client_rank == 1:
        return LOCAL
    if rank == 0:
        return SCHEDULER
    return CLIENT if rank == info.client_rank else WORKER


@dataclass(frozen=True)
class _Shape:
    """The part of the question that is about the launch alone."""

    hosts: tuple[int, ...]  # the ranks of this node that can host workers
    heads: int  # scheduler and client on this node
    ranks: int  # ranks on this node
    kind: str  # how the heads live: "exclusive" ranks of their own, "colocated" with workers, or "local" in one process


def hosts_workers(info: ProcessInfo, settings: Settings, rank: int) -> bool:
    """Say whether a rank of this node hosts workers.

    Parameters
    ----------
    info : ProcessInfo
        Who this process is; `rank` is one of its local ranks.
    settings : Settings
        What the user asked for; ``colocate`` decides for the head ranks. "auto" lets a head work that has a node or GPUs
        for itself, which would idle otherwise, and both heads where there are fewer than three ranks.
    rank : int
        The rank.
    """
    if role_of(info, rank) in (WORKER, LOCAL):
        return True
    if settings.colocate == "auto":
        own_gpus = info.gpus_by_rank and settings.gpus_per_worker != 0
        return info.world_size < _ROLES or info.local_ranks == (rank,) or own_gpus
    return settings.colocate == "true"


def make_plan(info: ProcessInfo, resources: NodeResources, settings: Settings) -> Plan:
    """Decide on the workers of this node.

    Parameters
    ----------
    info : ProcessInfo
        Who this process is.
    resources : NodeResources
        What the node grants to all its ranks together.
    settings : Settings
        What the user asked for.

    Raises
    ------
    PlanError
        If more was asked for than the node has; the message shows the sum.
    """
    role = role_of(info, info.rank)
    if info.world_size < _ROLES and settings.colocate == "false" and role != LOCAL and info.client_rank is not None:
        raise PlanError(
            f"{info.world_size} ranks are the scheduler and the client, and colocate=False leaves nobody to host workers. "
            "Start at least 3 ranks, or leave colocate out."
        )
    shape = _shape(info, settings)
    usable = int(resources.memory.value * (1 - settings.memory_headroom_frac))
    figures: dict[str, Figure[int] | Figure[float] | Figure[str]] = {
        "cpus": resources.cpus,
        "cpus_per_rank": resources.cpus_per_rank,
        "memory": resources.memory,
        "memory_headroom_frac": Figure(settings.memory_headroom_frac, settings.sources["memory_headroom_frac"]),
        "usable_memory": Figure(usable, f"{resources.memory.source} less the headroom"),
    }
    workers: tuple[WorkerPlan, ...] = ()
    if shape.hosts:
        count, reason = _count(shape, resources, usable, settings, info)
        head_memory = _head_memory(shape, usable, count)
        head_cpus = _head_cpus(shape, resources.cpus.value, count)
        # LocalCluster calls its workers 0, 1, 2.
        names = [(n, info.rank) for n in range(count)] if shape.kind == "local" else _names(shape.hosts, count)
        gpus = gpus_in_use(resources.gpus, len(shape.hosts), settings)
        threads = _threads(names, resources, head_cpus, settings, info.node, by_launcher=gpus is None)
        memory = _memory(count, usable, head_memory, settings, info.node)
        workers = tuple(
            WorkerPlan(name, rank, number, memory) for (name, rank), number in zip(names, threads, strict=True)
        )
        shares = divide(gpus, names, info.rank, settings, info.node)
        workers = tuple(
            replace(worker, gpus=share.gpus, environ=share.environ)
            for worker, share in zip(workers, shares, strict=True)
        )
        each = "asked for" if settings.sources["threads_per_worker"] != "default" else "the workers' CPUs / workers"
        limit = "asked for" if settings.memory_per_worker is not None else "the workers' memory / workers"
        figures |= {
            "head_cpus": Figure(head_cpus, f"{shape.heads} of scheduler and client on this node"),
            "head_memory": Figure(head_memory, f"{shape.heads} of scheduler and client on this node"),
            "workers_per_node": Figure(count, reason),
            "threads_per_worker": Figure(min(threads), each),
            "memory_per_worker": Figure(memory, limit),
            **gpu_figures(gpus or resources.gpus, shares, settings),
        }
    return Plan(info.mode, role, info.rank, info.world_size, info.node, workers, figures)


def _shape(info: ProcessInfo, settings: Settings) -> _Shape:
    roles = {rank: role_of(info, rank) for rank in info.local_ranks}
    hosts = tuple(rank for rank in roles if hosts_workers(info, settings, rank))
    # In local mode the scheduler and the client are one process beside the workers.
    heads = [rank for rank, role in roles.items() if role != WORKER]
    together = info.extra_clients or set(heads) & set(hosts)
    kind = "local" if LOCAL in roles.values() else "colocated" if together else "exclusive"
    return _Shape(hosts, len(heads) + info.extra_clients, len(info.local_ranks), kind)


def _head_cpus(shape: _Shape, cpus: int, count: int) -> int:
    """CPUs that the heads keep; a local client mostly waits for its workers and keeps none."""
    if shape.kind == "local":
        return 0
    if shape.kind == "colocated":
        return min(shape.heads, max(0, cpus - count))
    return shape.heads * (cpus // max(shape.ranks, count + shape.heads))


def _head_memory(shape: _Shape, usable: int, count: int) -> int:
    """Bytes that the heads keep: a share each."""
    shares = count + shape.heads
    return shape.heads * (usable // (max(shape.ranks, shares) if shape.kind == "exclusive" else shares))


def _count(
    shape: _Shape, resources: NodeResources, usable: int, settings: Settings, info: ProcessInfo
) -> tuple[int, str]:
    """How many workers this node runs, and why."""
    node, slots = info.node, info.slots
    cpus, hosts = resources.cpus.value, len(shape.hosts)
    asked, gpus = settings.workers_per_node, gpus_in_use(resources.gpus, len(shape.hosts), settings)
    if asked is not None:
        if asked > cpus and settings.threads_per_worker is None:
            raise PlanError(
                f"{asked} workers need {asked} threads on node {node}, which has {_cpus(cpus)} ({resources.cpus.source}). "
                "Lower workers_per_node or ask for more CPUs (srun --cpus-per-task)."
            )
        return asked, settings.sources["workers_per_node"]
    fits = [] if gpus is None else [workers_for(gpus, hosts, cpus, settings, node)]
    if settings.threads_per_worker is not None:
        room = cpus - _head_cpus(shape, cpus, hosts)
        per_rank = resources.cpus_per_rank.value // settings.threads_per_worker
        number = min(room // settings.threads_per_worker, per_rank * hosts)
        fits.append((number, f"{room} CPUs / threads_per_worker"))
    if settings.memory_per_worker is not None:
        size = _asked_memory(settings.memory_per_worker, usable, node)
        # More workers than CPUs would have to share threads. The heads' share shrinks as workers get more.
        most = min(usable // size, max(hosts, min(cpus, hosts * resources.cpus_per_rank.value)))
        number = next((n for n in range(most, 0, -1) if n * size <= usable - _head_memory(shape, usable, n)), 0)
        fits.append((number, "usable memory / memory_per_worker"))
    if fits:
        number, reason = min(fits)
        if number >= 1:
            return number, reason
        raise PlanError(
            f"Not even one worker fits on node {node}: "
            + _asked_sum(1, settings, usable, node)
            + f", but the node has {_cpus(cpus)} ({resources.cpus.source}"
            + (f"; {resources.cpus_per_rank.value} for one rank" if resources.cpus_per_rank != resources.cpus else "")
            + f") and {describe_bytes(usable)} of usable memory ({resources.memory.source})"
            + (f", shared with {shape.heads} of scheduler and client" if shape.heads else "")
            + ". Ask for smaller workers or a larger allocation."
        )
    if shape.kind == "local":
        own = min(cpus, resources.cpus_per_rank.value)
        return processes_of(own), f"{_cpus(own)}, as Dask's LocalCluster divides them"
    if slots is not None:
        return max(1, slots - shape.heads), f"{slots} tasks on the node, {shape.heads} of them scheduler and client"
    return hosts, "one per worker rank"


def processes_of(cpus: int) -> int:
    """Divide CPUs into processes and threads as LocalCluster does: the least divisor not below the square root."""
    if cpus <= 4:
        return cpus
    return min(number for number in range(math.isqrt(cpus - 1) + 1, cpus + 1) if cpus % number == 0)


def _names(hosts: Sequence[int], count: int) -> list[tuple[int | str, int]]:
    """Name and host of each worker: every host gets its share, the first ones the remainder."""
    names: list[tuple[int | str, int]] = []
    for index, rank in enumerate(hosts):
        here = count // len(hosts) + (index < count % len(hosts))
        names += [(rank if number == 0 else f"{rank}-{number}", rank) for number in range(here)]
    return names


def _threads(
    names: Sequence[tuple[int | str, int]],
    resources: NodeResources,
    head_cpus: int,
    settings: Settings,
    node: str,
    *,
    by_launcher: bool,
) -> list[int]:
    """Threads of each worker, in the order of `names`."""
    count, cpus = len(names), resources.cpus.value
    of_rank = Counter(rank for _, rank in names)
    per_rank = [of_rank[rank] for _, rank in names]
    if settings.threads_per_worker is not None:
        asked = settings.threads_per_worker
        if count * asked > cpus or max(per_rank) * asked > resources.cpus_per_rank.value:
            one_rank = count * asked <= cpus
            sources = resources.cpus_per_rank if one_rank else resources.cpus
            number = max(per_rank) if one_rank else count
            raise PlanError(
                f"{number} workers x {asked} threads = {number * asked} threads on "
                + (f"one rank of node {node}" if one_rank else f"node {node}")
                + f", which has {_cpus(sources.value)} ({sources.source}). "
                "Lower threads_per_worker or workers_per_node, or ask for more CPUs (srun --cpus-per-task)."
            )
        return [asked] * count
    # Without a request for the number of workers the launcher decided on it: with --overcommit there are more ranks than
    # CPUs, and each of them still needs one thread to be a worker at all.
    room = max(cpus - head_cpus, count if settings.workers_per_node is None else 0)
    if count > room:
        raise PlanError(
            f"{count} workers need {count} threads on node {node}, which has {_cpus(cpus)} ({resources.cpus.source})"
            + (f", {head_cpus} of them kept for scheduler and client" if head_cpus else "")
            + ". Lower workers_per_node or ask for more CPUs (srun --cpus-per-task)."
        )
    most = resources.cpus_per_rank
    if max(per_rank) > most.value and not (by_launcher and settings.workers_per_node is None):
        raise PlanError(
            f"{max(per_rank)} workers on one rank of node {node} need {max(per_rank)} threads, but a rank has "
            f"{_cpus(most.value)} ({most.source}). Lower workers_per_node or ask for more CPUs (srun --cpus-per-task)."
        )
    # A rank that is bound to CPUs of its own shares those among its workers.
    found, before = [], Counter[int]()
    for index, (_, rank) in enumerate(names):
        found.append(max(1, min(_part(room, count, index), _part(most.value, of_rank[rank], before[rank]))))
        before[rank] += 1
    return found


def _part(whole: int, parts: int, index: int) -> int:
    """Share number `index` of a whole number; the first shares get the remainder."""
    return whole // parts + (index < whole % parts)


def _cpus(number: int) -> str:
    return f"{number} CPU{'' if number == 1 else 's'}"


def _asked_memory(asked: int | float, usable: int, node: str) -> int:
    size = int(asked * usable) if isinstance(asked, float) else asked
    if size < LEAST_WORKER_MEMORY:
        raise PlanError(
            f"memory_per_worker={asked} is {describe_bytes(size)} of the {describe_bytes(usable)} that node {node} may use; "
            f"a worker needs at least {describe_bytes(LEAST_WORKER_MEMORY)}."
        )
    return size


def _memory(count: int, usable: int, head_memory: int, settings: Settings, node: str) -> int:
    """Memory limit of each worker in bytes."""
    if settings.memory_per_worker is None:
        return (usable - head_memory) // count
    size = _asked_memory(settings.memory_per_worker, usable, node)
    if count * size > usable - head_memory:
        raise PlanError(
            f"{count} workers x {describe_bytes(size)} "
            + (f"+ {describe_bytes(head_memory)} for scheduler and client " if head_memory else "")
            + f"= {describe_bytes(count * size + head_memory)} on node {node}, which has {describe_bytes(usable)} of usable "
            "memory. Lower memory_per_worker or workers_per_node, or ask for more memory (srun --mem)."
        )
    return size


def _asked_sum(count: int, settings: Settings, usable: int, node: str) -> str:
    parts = []
    if settings.threads_per_worker is not None:
        parts.append(f"{count * settings.threads_per_worker} threads")
    if settings.memory_per_worker is not None:
        parts.append(describe_bytes(count * _asked_memory(settings.memory_per_worker, usable, node)))
    return f"it needs {' and '.join(parts)}"
