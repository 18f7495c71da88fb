"""Settings of Dask that suit a batch job: what its processes do while they have nothing to do, and how long they wait.

By default a worker looks 100 times a second at what its threads do and 50 times a second at its event loop. With 62 idle
workers on 2 cores, all that took 70 % of both, and 25 % with the values below (most of it for watching memory). Where a node
has more workers than CPUs, they look less often still: 500 workers on 2 cores had no time left to start.
"""

from __future__ import annotations

import os
from typing import Any

import dask.config

__all__ = ["be_patient", "for_jobs", "intervals"]

# Name, Dask's default, ours with a CPU for each worker, and the longest, in seconds. What the user has set stays.
_INTERVALS = (
    ("distributed.worker.profile.interval", "10ms", 0.1, 2.0),
    # Above 3 s (tick.limit) Dask would warn of itself.
    ("distributed.admin.tick.interval", "20ms", 0.5, 1.0),
    ("distributed.admin.system-monitor.interval", "500ms", 1.0, 10.0),
    ("distributed.worker.memory.monitor-interval", "100ms", 0.1, 1.0),
)
_CONNECT = ("distributed.comm.timeouts.connect", "30s")
# What the scheduler takes for the duration of tasks of which none has ended: Dask's default, and ours where workers are jobs.
# Where each worker takes minutes to come, half a second for each task means that one worker is enough for ten of them, however
# long they take. With this, as many threads are asked for as there are tasks, and none that was just asked for is taken back.
_UNKNOWN = ("distributed.scheduler.unknown-task-duration", "500ms", "10s")
# All workers connect to one process at the same moment; this many seconds for each of them are plenty.
_EACH = 0.1


def intervals(workers: int = 1, total: int = 1) -> dict[str, Any]:
    """Give the configuration, for `dask.config.set`.

    Parameters
    ----------
    workers : int
        About how many workers this node has.
    total : int
        About how many the cluster has.
    """
    crowd = max(1.0, workers / _cpus())
    found = {
        name: f"{min(ours * crowd, most):g}s"
        for name, default, ours, most in _INTERVALS
        if dask.config.get(name, default) == default
    }
    return found | _patience(total)


def for_jobs() -> dict[str, Any]:
    """Give the configuration of a scheduler whose workers come with submitted jobs; what the user has set stays."""
    name, default, ours = _UNKNOWN
    return {name: ours} if dask.config.get(name, default) == default else {}


def be_patient(total: int) -> None:
    """Configure the client's process, whose configuration is the user's: with so many workers, connecting takes longer."""
    dask.config.set(_patience(total))


def _patience(total: int) -> dict[str, Any]:
    name, default = _CONNECT
    needed = _EACH * total
    return {name: f"{needed:g}s"} if needed > 30.0 and dask.config.get(name, default) == default else {}


def _cpus() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
