"""How many files a process may have open: each connection is one, and many shells allow 1,024 where 128 workers need 1,200.

Slurm gives a job the limits of the shell that has submitted it. The soft limit is ours to raise, as far as the hard one.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

from .errors import PlanError

__all__ = ["for_local", "for_scheduler", "for_strangers", "for_workers", "limit", "make_room"]

# Counted with distributed 2026.8. A process has some twenty to begin with; what the user's code opens is on top of it.
_TO_BEGIN_WITH = 64
# A worker's Nanny (pipes, its two sockets, its connection to the scheduler) and its rank's connection.
_PER_WORKER = 10
# The scheduler's connections to a worker and its Nanny.
_PER_MEMBER = 2
# Connections to rank 0 of which it is not known yet who they are.
_STRANGERS = 256
# What the limit is raised to, as a multiple of that: tasks open files, and each worker may connect to each other one.
_ROOM = 4
_ROOM_AT_LEAST = 4096
_MANY = 1 << 16
# Its kernel takes no more (OPEN_MAX), whatever the hard limit says.
_MACOS = 10240


def limit() -> int:
    """How many files this process may have open, at most some 65,000."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MANY if soft == resource.RLIM_INFINITY else min(soft, _MANY)


def make_room(workers: int, total: int) -> None:
    """Let this process, and all that it starts, have what so many workers will need, as far as the hard limit goes.

    Parameters
    ----------
    workers : int
        About how many workers this process will have.
    total : int
        About how many the whole cluster will have.
    """
    _raise(_TO_BEGIN_WITH + _PER_WORKER * workers + _PER_MEMBER * total)


def for_workers(workers: int, node: str) -> None:
    """Make sure that this process can have so many workers.

    Parameters
    ----------
    workers : int
        Workers of this process.
    node : str
        Where this is, for the message.

    Raises
    ------
    PlanError
        If the hard limit is too low.
    """
    _need(_TO_BEGIN_WITH + _PER_WORKER * workers, f"The workers on node {node}, {workers} in one process, need")


def for_scheduler(total: int, node: str) -> None:
    """Make sure that this process can be the scheduler of so many workers; raises as `for_workers` does."""
    needed = _TO_BEGIN_WITH + _PER_MEMBER * total
    _raise(needed + _STRANGERS)
    _need(needed, f"The scheduler of up to {total} workers, on node {node}, needs")


def for_strangers(ranks: int) -> int:
    """Give the number of connections that rank 0 may have of which it is not known yet who they are.

    No fewer than the ranks of the run make at one moment, unless this process may open too few files.

    Parameters
    ----------
    ranks : int
        How many ranks there are.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_STRANGERS, 2 * ranks)
    return wanted if limit == resource.RLIM_INFINITY else max(1, min(wanted, limit // 4))


@contextlib.contextmanager
def for_local(workers: int) -> Iterator[None]:
    """Let this process, which is the user's, have what a cluster within it needs, and restore its limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        _need(_TO_BEGIN_WITH + (_PER_WORKER + _PER_MEMBER) * workers, f"A local cluster of {workers} workers needs")
        yield
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _raise(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_ROOM * needed, _ROOM_AT_LEAST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    for most in (wanted, min(wanted, _MACOS)):
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
            break


def _need(needed: int, who: str) -> None:
    _raise(needed)
    found, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if found != resource.RLIM_INFINITY and found < needed:
        raise PlanError(
            f"{who} about {needed:,} open files, and the hard limit is {found:,} (`ulimit -Hn`). Start fewer workers with more "
            "threads each (fewer tasks with more --cpus-per-task, or threads_per_worker=), or have the limit raised: Slurm "
            "gives a job that of the shell which submits it."
        )
