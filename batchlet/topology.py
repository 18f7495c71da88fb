"""How the CPUs of this host belong together: which share a core, and which are near the same memory.

Linux says so in small files. Where it does not, as in some containers, nothing is known and nothing is guessed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Core", "Domain", "describe_cpus", "parse_cpus", "read_domains", "read_topology"]

#: The CPUs of a core: one, or with hyperthreads two or more.
Core = tuple[int, ...]
#: The cores of a NUMA domain.
Domain = tuple[Core, ...]

_SYSTEM = Path("/sys/devices/system")


@functools.lru_cache(maxsize=8)
def read_domains(cpus: tuple[int, ...], root: Path = _SYSTEM) -> tuple[tuple[int, ...], ...]:
    """Divide CPUs by the NUMA domain that they belong to.

    Reads one small file for each domain of the host, once in a process.

    Parameters
    ----------
    cpus : tuple of int
        The CPUs in question.
    root : Path
        Where Linux describes the host.

    Returns
    -------
    tuple of tuple of int
        Domains that have any of these CPUs, in the kernel's order; empty where the kernel does not say where each CPU is.
    """
    wanted, domains = set(cpus), []
    try:
        numbers = sorted(int(name[4:]) for name in os.listdir(root / "node") if re.fullmatch(r"node\d+", name))  # noqa: PTH208
        for number in numbers:
            # A domain may have memory alone: it has no CPUs then.
            found = parse_cpus(_read(f"{root}/node/node{number}/cpulist"))
            domains.append(tuple(sorted(wanted.intersection(found))))
    except (OSError, ValueError):
        return ()
    known = [cpu for domain in domains for cpu in domain]
    return tuple(filter(None, domains)) if sorted(known) == sorted(wanted) else ()


@functools.lru_cache(maxsize=8)
def read_topology(cpus: tuple[int, ...], root: Path = _SYSTEM) -> tuple[Domain, ...]:
    """Divide CPUs by NUMA domain and core.

    Reads one small file for each core, once in a process.

    Parameters
    ----------
    cpus : tuple of int
        The CPUs in question.
    root : Path
        Where Linux describes the host.

    Returns
    -------
    tuple of Domain
        As `read_domains` gives them. Of each core only those CPUs that were asked for; where the kernel does not say which
        CPUs share a core, each is one.
    """
    return tuple(_cores(domain, root) for domain in read_domains(cpus, root))


def _cores(cpus: tuple[int, ...], root: Path) -> Domain:
    cores: list[Core] = []
    seen: set[int] = set()
    for cpu in cpus:
        if cpu in seen:
            continue
        core = tuple(sorted({cpu, *_siblings(cpu, root)}.intersection(cpus) - seen))
        cores.append(core)
        seen.update(core)
    return tuple(cores)


def _siblings(cpu: int, root: Path) -> tuple[int, ...]:
    try:
        return parse_cpus(_read(f"{root}/cpu/cpu{cpu}/topology/thread_siblings_list"))
    except (OSError, ValueError):
        return ()


def _read(file: str) -> str:
    """Read a file of at most a page, hundreds of which are read in a row."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096).decode()
    finally:
        os.close(descriptor)


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read a list of CPUs as Linux writes it: ``"0-3,8"`` is (0, 1, 2, 3, 8), an empty text none.

    Raises
    ------
    ValueError
        If it has another form.
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def describe_cpus(cpus: Iterable[int]) -> str:
    """Write a list of CPUs as Linux does: (0, 1, 2, 3, 8) is ``"0-3,8"``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
