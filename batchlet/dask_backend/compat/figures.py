"""Corners of Dask that know what its workers do. Seen with distributed 2024.8.0 to 2026.8.0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .dask_internals import nannies_of

__all__ = ["METRIC", "count_traffic", "done_with", "figures_of", "pids_of"]

#: Under which a worker tells the scheduler of its traffic, with each heartbeat.
METRIC = "batchlet"


def pids_of(servers: Iterable[Any]) -> dict[str, int]:
    """Give the process ids of the workers of these servers by their names.

    A Nanny has its `WorkerProcess` as ``process``, with a ``pid``. Without it a worker's CPU time and memory are not seen.
    """
    found = {}
    for nanny in (nanny for server in servers for nanny in nannies_of(server)):
        pid = getattr(getattr(nanny, "process", None), "pid", None)
        if pid:
            found[str(nanny.name)] = int(pid)
    return found


def count_traffic(worker: Any) -> None:
    """Have a worker tell with each heartbeat what it has sent, received, and written to disk, in all.

    A worker has ``metrics``, a dict of functions (as in `distributed.worker.DEFAULT_METRICS`) whose results its heartbeats take
    along. ``Worker.transfer_outgoing_bytes_total`` is what it has sent; ``transfer_incoming_log`` has the newest transfers to
    it, each with its ``total``, and ``state.transfer_incoming_count_total`` how many there were; ``data``, where it spills,
    counts in ``cumulative_metrics`` by ("disk-write", "bytes"). What is missing is not counted.
    """
    metrics = getattr(worker, "metrics", None)
    if isinstance(metrics, dict):
        metrics[METRIC] = _Traffic()


class _Traffic:
    """Says what has come together."""

    def __init__(self) -> None:
        self._received = 0.0
        self._count = 0

    def __call__(self, worker: Any) -> dict[str, float]:
        spilling: Mapping[Any, float] = getattr(getattr(worker, "data", None), "cumulative_metrics", None) or {}
        return {
            "sent": getattr(worker, "transfer_outgoing_bytes_total", 0),
            "received": self._incoming(worker),
            "written": spilling.get(("disk-write", "bytes"), 0),
        }

    def _incoming(self, worker: Any) -> float:
        """Add the transfers since the last time; the log may not have them all any more."""
        log = getattr(worker, "transfer_incoming_log", None)
        count = getattr(getattr(worker, "state", None), "transfer_incoming_count_total", 0)
        new = count - self._count
        if log and new > 0:
            newest = [entry["total"] for entry, _ in zip(reversed(log), range(new), strict=False)]
            self._received += sum(newest) * new / len(newest)
            self._count = count
        return self._received


def figures_of(state: Any) -> dict[str, float]:
    """Give what a worker has told with its last heartbeat; `state` is the scheduler's `WorkerState`.

    ``metrics`` has ``spilled_bytes`` ("disk") and ``task_counts`` ("executing"), and what `count_traffic` has added.
    """
    metrics: Mapping[str, Any] = getattr(state, "metrics", None) or {}
    spilled, counts = metrics.get("spilled_bytes"), metrics.get("task_counts")
    return {
        "sent": 0.0,
        "received": 0.0,
        "written": 0.0,
        **(metrics.get(METRIC) or {}),
        "spilled": spilled.get("disk", 0) if isinstance(spilled, dict) else 0,
        "executing": counts.get("executing", 0) if isinstance(counts, dict) else 0,
    }


def done_with(arguments: Mapping[str, Any]) -> tuple[Any, float, float, float | None, float | None, float]:
    """Give what a scheduler knows of a task that a worker has done, from the arguments of ``SchedulerPlugin.transition``.

    They are ``worker`` (address), ``nbytes`` of the result, and ``startstops``: dicts with "action" ("compute", "transfer",
    ...), "start" and "stop".

    Returns
    -------
    worker : str
        Address.
    seconds, transfer_seconds : float
        Time in the task, and for fetching what it needed.
    first, last : float or None
        When the task itself began and ended, in seconds since the epoch.
    nbytes : float
        Size of its result.
    """
    seconds = transfer = 0.0
    first = last = None
    for entry in arguments.get("startstops") or ():
        action = entry["action"]
        if action == "compute":
            first, last = entry["start"], entry["stop"]
            seconds += last - first
        elif action == "transfer":
            transfer += entry["stop"] - entry["start"]
    return arguments.get("worker"), seconds, transfer, first, last, arguments.get("nbytes") or 0
