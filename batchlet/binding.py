"""Which CPUs each of the workers that share a node runs on: whole cores of one NUMA domain.

The memory of a machine with several NUMA domains is nearer to some of its CPUs than to others. What a worker allocates lies
near the CPU that it runs on at that moment; the kernel may move it to any other one. A worker that is bound to the cores of one
domain stays near its memory, and keeps its caches. On a machine with one domain there is nothing to gain, and the kernel, which
sees what is idle, does better; so "auto" leaves that alone.

Never are workers bound to CPUs that may not be theirs: a binding that the launcher has made is kept, and where the job has been
granted fewer CPUs than its processes may use nobody knows which of them are its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import report
from .environments.base import Figure
from .plan import LOCAL, Plan, WorkerPlan
from .resources import HostFacts, NodeResources
from .settings import Settings
from .topology import Domain, read_domains, read_topology

__all__ = ["Binding", "bind", "bind_plan", "bind_workers"]

#: What the plan calls the number of workers that are bound; its source says how, or why not.
FIGURE = "bound_workers"

_KEPT = "the launcher's binding is kept: "


@dataclass(frozen=True)
class Binding:
    """Where the workers of a node run.

    Parameters
    ----------
    cpus : tuple of tuple of int
        The CPUs of each worker, in the order in which the workers were given; no two share one.
    whole_cores : bool
        Whether no two share a core.
    spread : int
        How many of them have CPUs of more than one NUMA domain, since they fit into none.
    far : int
        How many of them are in no domain of the CPUs that they should be near.
    """

    cpus: tuple[tuple[int, ...], ...]
    whole_cores: bool
    spread: int = 0
    far: int = 0


@functools.lru_cache(maxsize=8)
def bind(
    domains: tuple[Domain, ...],
    threads: tuple[int, ...],
    reserve: int = 0,
    near: tuple[frozenset[int], ...] = (),
) -> Binding | None:
    """Give each worker CPUs of its own.

    Each gets at least as many as it has threads, and all as many more as there are for all of them. They are spread evenly over
    the domains, so that they share the bandwidth of all.

    Parameters
    ----------
    domains : tuple of Domain
        The CPUs that there are, as `batchlet.topology.read_topology` gives them.
    threads : tuple of int
        Threads of each worker.
    reserve : int
        CPUs that are to be left over: those of scheduler and client.
    near : tuple of frozenset of int
        For each worker CPUs near which it should be, such as those of its GPU; may be empty, as a whole or for a worker.

    Returns
    -------
    Binding or None
        `None` if there are more threads than CPUs.
    """
    spare = sum(len(core) for domain in domains for core in domain) - sum(threads) - reserve
    if spare < 0 or not threads:
        return None
    single = tuple(tuple((cpu,) for core in domain for cpu in core) for domain in domains)
    # Whole cores unless that tears workers apart which would fit into a domain otherwise.
    attempts = [
        (found, units)
        for units, whole in ((domains, True), (single, False))
        if (found := _place(units, threads, reserve, near, whole=whole)) is not None
    ]
    least, units = min(attempts, key=lambda attempt: (attempt[0].spread, not attempt[0].whole_cores, attempt[0].far))
    for more in range(spare // len(threads), 0, -1):
        larger = tuple(number + more for number in threads)
        found = _place(units, larger, reserve, near, whole=least.whole_cores)
        if found is not None and (found.spread, found.far) <= (least.spread, least.far):
            return found
    return least


def _place(
    domains: tuple[Domain, ...],
    needs: tuple[int, ...],
    reserve: int,
    near: tuple[frozenset[int], ...],
    *,
    whole: bool,
) -> Binding | None:
    """Place workers that need so many CPUs each, the largest first; units (cores or CPUs) are never divided."""
    # Into the emptiest domain is even, into the fullest that has room is tight: for workers of different sizes.
    attempts = [
        found
        for choose in (max, min)
        if (found := _fill(domains, needs, reserve, near, choose, whole=whole)) is not None
    ]
    return min(attempts, key=lambda found: (found.spread, found.far), default=None)


def _fill(
    domains: tuple[Domain, ...],
    needs: tuple[int, ...],
    reserve: int,
    near: tuple[frozenset[int], ...],
    choose: Callable[..., int],
    *,
    whole: bool,
) -> Binding | None:
    cpus: list[tuple[int, ...]] = [()] * len(needs)
    numbers = range(len(domains))
    # What is left of each domain, the next unit last, and how many CPUs that is.
    left = [list(reversed(domain)) for domain in domains]
    room = [sum(map(len, domain)) for domain in domains]
    close = [
        {number for number in numbers if any(not wished.isdisjoint(unit) for unit in domains[number])}
        for wished in near
    ]
    torn, far = [], 0

    def take(number: int, need: int) -> tuple[int, ...]:
        taken: list[int] = []
        while len(taken) < need and left[number]:
            taken += left[number].pop()
        room[number] -= len(taken)
        return tuple(taken)

    for index in sorted(range(len(needs)), key=lambda index: -needs[index]):
        fitting = [number for number in numbers if room[number] >= needs[index]]
        wanted = close[index] if index < len(close) else set()
        if not fitting:
            torn.append(index)
            continue
        far += bool(wanted) and wanted.isdisjoint(fitting)
        home = choose([number for number in fitting if number in wanted] or fitting, key=room.__getitem__)
        cpus[index] = take(home, needs[index])
    for index in torn:
        for number in sorted(numbers, key=room.__getitem__, reverse=True):
            cpus[index] += take(number, needs[index] - len(cpus[index]))
        if len(cpus[index]) < needs[index]:
            return None
    if sum(room) < reserve:
        return None
    return Binding(tuple(tuple(sorted(own)) for own in cpus), whole, len(torn), far)


def bind_plan(
    plan: Plan,
    resources: NodeResources,
    host: HostFacts,
    settings: Settings,
    *,
    in_job: bool = True,
    near: tuple[frozenset[int], ...] = (),
) -> Plan:
    """Give the plan of a node with the CPUs of its workers, and with the figure that says how they are bound.

    Parameters
    ----------
    plan : Plan
        The plan.
    resources : NodeResources
        What the node grants.
    host : HostFacts
        What its ranks can see.
    settings : Settings
        What the user asked for.
    in_job : bool
        Whether a batch system or an MPI launcher has granted this node. On a laptop other programs want its CPUs as well: only
        what was asked for explicitly is done there.
    near : tuple of frozenset of int
        As for `bind`, for each of the workers.
    """
    heads = plan.figures.get("head_cpus")
    workers, figure = bind_workers(
        plan.workers,
        resources,
        host,
        settings,
        reserve=int(heads.value) if heads is not None else 0,
        alone=LOCAL in (plan.role, plan.mode) and not in_job,
        near=near,
    )
    return plan if figure is None else replace(plan, workers=workers, figures={**plan.figures, FIGURE: figure})


def bind_workers(
    workers: Sequence[WorkerPlan],
    resources: NodeResources,
    host: HostFacts,
    settings: Settings,
    *,
    reserve: int = 0,
    alone: bool = False,
    near: tuple[frozenset[int], ...] = (),
) -> tuple[tuple[WorkerPlan, ...], Figure[int] | None]:
    """Give the workers of a node with their CPUs, where they are to be bound and can be.

    Parameters
    ----------
    workers : sequence of WorkerPlan
        All of the node.
    resources : NodeResources
        What the node grants.
    host : HostFacts
        What its ranks can see.
    settings : Settings
        What the user asked for.
    reserve : int
        CPUs of scheduler and client.
    alone : bool
        Whether nobody has granted the node, so that another job here may choose the same CPUs, and "auto" means no.
    near : tuple of frozenset of int
        As for `bind`.

    Returns
    -------
    workers : tuple of WorkerPlan
        The workers.
    figure : Figure of int or None
        How many of them are bound, and how or why not; `None` where there is nothing to say.
    """
    as_before, mask = tuple(workers), host.mask
    if settings.bind == "false" or len(workers) < 2 or not mask:
        return as_before, None
    numa = len(read_domains(mask))
    if numa == 1 and settings.bind == "auto":
        return as_before, None
    problem = _problem(resources, host, sum(worker.threads for worker in workers), alone and settings.bind == "auto")
    if numa == 0:
        problem = "the host does not tell its NUMA domains (/sys/devices/system/node)"
    if problem is not None:
        return as_before, Figure(0, problem)
    threads = tuple(worker.threads for worker in workers)
    # Where all CPUs were asked for as threads, scheduler and client share them.
    found = bind(read_topology(mask), threads, min(reserve, len(mask) - sum(threads)), near)
    if found is None:
        return as_before, Figure(0, "more threads than CPUs")
    bound = tuple(replace(worker, cpus=cpus) for worker, cpus in zip(workers, found.cpus, strict=True))
    how = f"each to {'whole cores' if found.whole_cores else 'CPUs of its own'}"
    if numa > 1:
        how += f" of one of {numa} NUMA domains" + (f", {found.spread} to several domains" if found.spread else "")
    return bound, Figure(len(bound), how)


def _problem(resources: NodeResources, host: HostFacts, threads: int, alone: bool) -> str | None:
    """Say why workers are not bound though there are several NUMA domains, or it was asked for."""
    cpus, mask = resources.cpus, host.mask
    if alone:
        return "left to the kernel outside of jobs, unless bind=True"
    if resources.cpus_per_rank.value < cpus.value:
        return _KEPT + resources.cpus_per_rank.source
    if threads > len(mask):
        return f"{threads} threads share {report.count(len(mask), 'CPU')}"
    if len(mask) > cpus.value and not _counted_in_cores(cpus.value, host):
        granted = report.count(cpus.value, "CPU")
        return f"{granted} granted ({cpus.source}), but which of the {len(mask)} in the CPU mask is not known"
    return None


def _counted_in_cores(cpus: int, host: HostFacts) -> bool:
    """Whether the launcher has counted cores, and has bound the job to their hyperthreads as well."""
    return len(host.mask) < host.cpus and sum(map(len, read_topology(host.mask))) <= cpus
