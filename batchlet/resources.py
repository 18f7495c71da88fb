"""What this node grants: CPUs and memory, each with its source.

Every source of memory is looked at and the least one wins: the launcher's variables, the memory cgroup that this process
is nested in (all levels, cgroup v1 and v2), the launcher's controller, and the host itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .environments.base import OVERSUBSCRIBED, Figure, Grant
from .gpus import Gpus
from .nvidia import read_gpus

__all__ = ["HostFacts", "NodeResources", "cgroup_cpus", "cgroup_memory", "node_resources", "read_host"]

# Version 1 writes "no limit" as the largest multiple of the page size below 2**63; nothing real is near it.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class HostFacts:
    """What this process can see of its host, whoever started it.

    Parameters
    ----------
    cpus : int
        CPUs of the host.
    affinity : int
        CPUs that this process may run on.
    memory : int
        Bytes of memory of the host.
    cgroup_memory : Figure of int, optional
        The least limit of the cgroups around this process, in bytes.
    cgroup_cpus : Figure of float, optional
        The least CPU quota of the cgroups around this process, in CPUs.
    gpus : Gpus, optional
        The host's GPUs, where it has any that its driver tells of.
    mask : tuple of int
        Which CPUs this process may run on, ascending; empty where the system does not tell.
    """

    cpus: int
    affinity: int
    memory: int
    cgroup_memory: Figure[int] | None = None
    cgroup_cpus: Figure[float] | None = None
    gpus: Gpus | None = None
    mask: tuple[int, ...] = ()


@dataclass(frozen=True)
class NodeResources:
    """What all the ranks on this node may use together.

    Parameters
    ----------
    cpus : Figure of int
        CPUs.
    cpus_per_rank : Figure of int
        CPUs that a single rank may run on: `cpus`, or less where the launcher has bound each rank to CPUs of its own.
    memory : Figure of int
        Bytes.
    gpus : Gpus, optional
        GPUs of the node, or of a single rank.
    """

    cpus: Figure[int]
    cpus_per_rank: Figure[int]
    memory: Figure[int]
    gpus: Gpus | None = None


def read_host(proc: Path = Path("/proc")) -> HostFacts:
    """Look at the host. Reads a few small files; a file that is missing is a source that says nothing."""
    cpus = os.cpu_count() or 1
    mask = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return HostFacts(cpus, len(mask) or cpus, memory, cgroup_memory(proc), cgroup_cpus(proc), read_gpus(proc), mask)


def node_resources(grant: Grant, host: HostFacts, controller_memory: Figure[int] | None = None) -> NodeResources:
    """Settle what the node grants.

    Parameters
    ----------
    grant : Grant
        What the launcher's variables say.
    host : HostFacts
        What this process can see.
    controller_memory : Figure of int, optional
        Bytes of memory according to the launcher's controller.
    """
    cpus = _within_quota(grant.cpus, host) if grant.cpus is not None else _own_cpus(host)
    cpus_per_rank = cpus
    # A mask of all CPUs of the host binds nobody. A smaller one may be this rank's alone (the ranks beside it have
    # others), so it bounds what one rank may run, not what the node may.
    if host.affinity < min(host.cpus, cpus.value):
        cpus_per_rank = Figure(host.affinity, f"CPU affinity ({cpus.source} says {cpus.value} for the node)")
    limits = [figure for figure in (grant.memory, host.cgroup_memory, controller_memory) if figure is not None]
    if limits:
        limits.append(Figure(host.memory, "the host's memory"))
    else:
        share = min(1.0, cpus.value / host.cpus)
        whole = Figure(host.memory, "the host's memory")
        part = Figure(int(host.memory * share), f"the host's memory x {cpus.value}/{host.cpus} CPUs")
        limits.append(whole if share == 1 else part)
    gpus = host.gpus if grant.gpus is None else grant.gpus
    return NodeResources(cpus, cpus_per_rank, min(limits, key=lambda figure: figure.value), gpus)


def _within_quota(granted: Figure[int], host: HostFacts) -> Figure[int]:
    """Bound what a launcher grants by the cgroup's quota, unless more ranks than CPUs were asked for on purpose."""
    quota = host.cgroup_cpus
    if quota is None or quota.value >= granted.value or granted.source.endswith(OVERSUBSCRIBED):
        return granted
    return Figure(max(1, int(quota.value)), quota.source)


def _own_cpus(host: HostFacts) -> Figure[int]:
    own = Figure(host.affinity, "CPU affinity" if host.affinity < host.cpus else "the host's CPUs")
    if host.cgroup_cpus is not None and host.cgroup_cpus.value < own.value:
        return Figure(max(1, int(host.cgroup_cpus.value)), host.cgroup_cpus.source)
    return own


def cgroup_memory(proc: Path = Path("/proc")) -> Figure[int] | None:
    """Find the least memory limit, in bytes, of the cgroup of this process and all those around it.

    Slurm puts a task at the bottom of a nest (``/slurm_n1/uid_0/job_1/step_0/task_0``) and the limit on one of the levels
    above, so that the first file found says nothing.
    """
    names = {"cgroup": ("memory.limit_in_bytes",), "cgroup2": ("memory.max", "memory.high")}
    limits = [
        Figure(int(text), str(file))
        for kind, level in _levels(proc, "memory")
        for file in (level / name for name in names[kind])
        if (text := _read(file)).isdigit() and int(text) < _UNLIMITED
    ]
    return min(limits, key=lambda figure: figure.value, default=None)


def cgroup_cpus(proc: Path = Path("/proc")) -> Figure[float] | None:
    """Find the least CPU quota, in CPUs, of the cgroup of this process and all those around it (containers set one)."""
    quotas: list[Figure[float]] = []
    for kind, level in _levels(proc, "cpu"):
        if kind == "cgroup2":
            file = level / "cpu.max"
            quota, _, period = _read(file).partition(" ")
        else:
            file = level / "cpu.cfs_quota_us"
            quota, period = _read(file), _read(level / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(Figure(int(quota) / int(period), str(file)))
    return min(quotas, key=lambda figure: figure.value, default=None)


def _levels(proc: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """Yield the kind and directory of each cgroup around this process that `controller` acts on, innermost first."""
    mounts = _cgroup_mounts(proc)
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        key = controllers if controllers == "" else controller if controller in controllers.split(",") else None
        if key is None or key not in mounts:
            continue
        kind = "cgroup2" if key == "" else "cgroup"
        root, point = mounts[key]
        # In a container the mount shows a part of the tree only; what lies outside cannot be read and is not tried.
        inner = os.path.relpath(path, root)
        level = point if inner.startswith("..") else point / inner
        while True:
            yield kind, level
            if level == point or level == level.parent:
                break
            level = level.parent


def _cgroup_mounts(proc: Path) -> Mapping[str, tuple[str, Path]]:
    """Root and mount point of each controller's hierarchy; version 2 is called ""."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in _read(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        place = (fields[3], Path(fields[4].replace("\\040", " ")))
        if kinds[0] == "cgroup2":
            mounts.setdefault("", place)
        elif kinds[0] == "cgroup":
            for controller in kinds[2].split(","):
                mounts.setdefault(controller, place)
    return mounts


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
