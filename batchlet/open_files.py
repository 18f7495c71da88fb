"""How many files a process may have open: each connection is one, and many shells allow 1,024 where 128 workers need 1,300.

Slurm gives a job the limits of the shell that has submitted it. The soft limit is ours to raise, as far as the hard one.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

from .errors import PlanError

__all__ = ["for_local", "for_scheduler", "for_workers"]

# Counted with distributed 2026.8. A process has some twenty to begin with; what the user's code opens is on top of it.
_TO_BEGIN_WITH = 64
# A worker's Nanny (pipes, its socket, its connection to the scheduler) and its rank's connection.
_PER_WORKER = 9
# The scheduler's connections to a worker, to its Nanny and, where rank 0 is the scheduler itself, to its host.
_PER_MEMBER = 3
# What the limit is raised to, as a multiple of that: tasks open files, and each worker may connect to each other one.
_ROOM = 4
_ROOM_AT_LEAST = 4096
# Its kernel takes no more (OPEN_MAX), whatever the hard limit says.
_MACOS = 10240


def for_workers(workers: int, total: int, node: str) -> None:
    """Let this process, and all that it starts, have what so many workers need.

    Parameters
    ----------
    workers : int
        Workers of this process.
    total : int
        Workers of the whole cluster.
    node : str
        Where this is, for the message.

    Raises
    ------
    PlanError
        If the hard limit is too low.
    """
    needed = _TO_BEGIN_WITH + _PER_WORKER * workers
    _raise(needed, needed + _PER_MEMBER * total, f"The {workers} workers on node {node} need")


def for_scheduler(total: int, node: str) -> None:
    """Let this process have what a scheduler of so many workers needs; raises as `for_workers` does."""
    needed = _TO_BEGIN_WITH + _PER_MEMBER * total
    _raise(needed, needed, f"The scheduler of {total} workers, on node {node}, needs")


@contextlib.contextmanager
def for_local(workers: int) -> Iterator[None]:
    """Let this process, which is the user's, have what a cluster within it needs, and restore its limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _TO_BEGIN_WITH + (_PER_WORKER + _PER_MEMBER) * workers
    _raise(needed, needed, f"A local cluster of {workers} workers needs")
    try:
        yield
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _raise(needed: int, likely: int, who: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_ROOM * likely, _ROOM_AT_LEAST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    for most in (wanted, min(wanted, _MACOS)):
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
            break
    found, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if found < needed:
        raise PlanError(
            f"{who} about {needed:,} open files, and the hard limit is {found:,} (`ulimit -Hn`). Start fewer workers with more "
            "threads each (fewer tasks with more --cpus-per-task, or threads_per_worker=), or have the limit raised: Slurm "
            "gives a job that of the shell which submits it."
        )
