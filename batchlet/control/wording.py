"""How ranks, workers and what has become of them are called in messages to people."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "by_rank",
    "called",
    "called_together",
    "cannot_replace",
    "client_lost",
    "died_at_start",
    "died_between",
    "died_with_workers",
    "guest_came",
    "guest_left",
    "incomplete",
    "missing_parts",
    "other_versions",
    "replaced",
    "replaced_in_vain",
    "socket_taken",
    "workers_counted",
]

# Names that a message shows; the rest is counted.
_SHOWN = 8
_AGENT = "agent-"


def by_rank(name: str) -> int:
    """Rank in the name of a participant or worker: "3", "3w", "3-1"; the client that has none comes last."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else sys.maxsize


def called(name: str) -> str:
    """Name a participant, or who is at the other end of a connection."""
    name = name.removeprefix(_AGENT)
    if name.endswith("w"):
        return f"the worker host of rank {name[:-1]}"
    return f"rank {name}" if name.isdigit() else f"the {name}"


def called_together(participants: Sequence[str]) -> str:
    """Name ranks that have died at once: with the process that has their workers."""
    if len(participants) == 1:
        return called(participants[0])
    ranks = sorted(by_rank(participant) for participant in participants)
    return f"the worker host of ranks {', '.join(map(str, ranks[:_SHOWN]))}{_and_more(participants)}"


def workers_counted(number: int) -> str:
    """Say how many workers."""
    return f"{number} worker{'' if number == 1 else 's'}"


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def other_versions(name: str, node: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Say that somebody has other versions than rank 0."""
    names = [package for package in ours if ours[package] != theirs.get(package)]
    return (
        f"{called(name)} on node {node} has "
        + ", ".join(f"{package} {theirs.get(package)}" for package in names)
        + ", but rank 0 has "
        + ", ".join(f"{package} {ours[package]}" for package in names)
        + ". All ranks need the same environment: activate it in the batch script, before srun or mpirun."
    )


def client_lost(name: str, node: str) -> str:
    """Say that the client has died."""
    who = "the client" if name == "client" else f"the client, rank {name}"
    return f"{who} on node {node}, ended without leaving the `with` block; the run ends with the client's exit code"


def socket_taken(node: str, user: int | None) -> str:
    """Say that a stranger holds the name of a node's socket."""
    who = "another user" if user is None else f"another user (uid {user})"
    return f"on node {node} {who} holds the name of this run's socket; the ranks there meet under another one"


def died_at_start(where: str) -> str:
    """Say that a rank has died."""
    return f"{where} died while the cluster was starting"


def died_with_workers(where: str, gone: int) -> str:
    """Say that a rank has died that had workers."""
    return f"{where} died and {workers_counted(gone)} with it"


def died_between(what: str, node: str) -> str:
    """Say that ranks have died while there was no block."""
    return f"{what} on node {node} died after a block; there is none of its workers in the next one"


def _host(node: str, how: str) -> str:
    return f"the host of the workers on node {node} {how or 'died'}"


def replaced(node: str, how: str, workers: int) -> str:
    """Say that an agent has died and another one is in its place, with so many workers of the other one."""
    if not workers:
        return f"{_host(node, how)}; a new one has taken its place"
    back = "its worker" if workers == 1 else f"its {workers} workers"
    return f"{_host(node, how)}; a new one has brought {back} back"


def replaced_in_vain(node: str, how: str) -> str:
    """Say that an agent has died, and so has the one in its place, before it had the workers of the other one."""
    return f"{_host(node, how)}; the new one died before it had brought the workers back"


def cannot_replace(node: str, error: BaseException) -> str:
    """Say why an agent in the place of a dead one has no workers."""
    return f"the new host of the workers on node {node} cannot bring them back: {error}"


def guest_came(name: str) -> str:
    """Say that another job brings its nodes."""
    return f"{name} joins with its workers"


def guest_left(name: str, node: str, *, lost: bool) -> str:
    """Say that nodes of another job have gone."""
    if lost:
        return f"{name}, which had joined, is lost (on node {node}); the run goes on without its workers"
    return f"{name}, which had joined, has left"


def missing_parts(
    participants: Sequence[str], workers: Sequence[str], scheduler: bool, node_of: Callable[[str], str | None]
) -> str:
    """Say who has not come.

    Parameters
    ----------
    participants, workers : sequence of str
        Names of those who have not come, and of workers that have not joined.
    scheduler : bool
        Whether the scheduler has not started either.
    node_of : callable
        Gives the node of a participant, if it is known.
    """

    def place(name: str) -> str:
        node = node_of(name)
        return f"on node {node}" if node else "on a node that nobody came from"

    parts = []
    if participants:
        shown = ", ".join(f"{called(name)} {place(name)}" for name in participants[:_SHOWN])
        parts.append(f"{shown}{_and_more(participants)} did not arrive")
    if workers:
        names = f"{'worker' if len(workers) == 1 else 'workers'} {', '.join(workers[:_SHOWN])}{_and_more(workers)}"
        parts.append(f"{names} did not join the scheduler")
    if scheduler:
        parts.append("the scheduler did not start")
    return " and ".join(parts)


def incomplete(missing: str, joined: int, seconds: float) -> str:
    """Say that the deadline has passed, and what to do about it."""
    return (
        f"The cluster was not complete after {seconds:g} s (start_timeout): {missing}; "
        f"{joined} workers had joined. The output of the ranks that are missing says why, if they started at all. "
        "If they are only slow, raise start_timeout (BATCHLET_DASK_CLUSTER__START_TIMEOUT); to go on without "
        "them, set min_workers (BATCHLET_DASK_CLUSTER__MIN_WORKERS)."
    )
