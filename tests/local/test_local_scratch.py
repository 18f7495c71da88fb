"""Scratch of runs that were killed so thoroughly that nobody was left to remove it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from run_helpers import WORKLOADS, Place

sys.path.append(str(WORKLOADS.parent))
from fault_helpers import FAULTS, Running, options

ENV = options(workers_per_node=1, threads_per_worker=1, memory_per_worker="256MiB")


def directories(place: Place) -> set[Path]:
    return {path for path in place.tmp.iterdir() if path.name.startswith("batchlet-local-")}


def semaphores(directory: Path) -> list[Path]:
    """Those of the run that has this directory."""
    return [path for path in Path("/dev/shm").iterdir() if path.name.startswith(f"sem.{directory.name}-")]


def grow_old(directory: Path) -> None:
    """As if the run had begun an hour ago."""
    then = time.time() - 3600
    os.utime(directory / ".batchlet-lock", (then, then))


def test_the_next_run_removes_what_a_killed_one_has_left_and_nothing_else(place: Place) -> None:
    """All of a run's processes are killed in one moment, as Slurm does it; the next run on this node cleans up."""
    mine = place.tmp / "batchlet-local-results"
    mine.mkdir()
    (mine / "precious").write_text("of the user's")
    first = Running(place, sys.executable, str(FAULTS), "sleeps", env=ENV)
    first.wait_for("strike")
    processes = place.processes()
    # None of them sees another one end.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            process.send_signal(number)
    first.process.wait(10)
    [left] = directories(place) - {mine}
    assert semaphores(left), "a worker has semaphores"
    grow_old(left)
    second = Running(place, sys.executable, str(FAULTS), "sleeps", env=ENV)
    try:
        second.wait_for("strike")
        [used] = directories(place) - {mine}
        assert used != left
        assert not semaphores(left)
        assert semaphores(used)
        # However long it runs, it is in use.
        grow_old(used)
        third = Running(place, sys.executable, str(FAULTS), "fine", env=ENV)
        assert third.finish(20).rc == 0
        assert directories(place) == {used, mine}
        assert (mine / "precious").exists()
        second.process.send_signal(signal.SIGTERM)
        assert second.finish(20).rc == 143
        assert directories(place) == {mine}
        assert not semaphores(used)
    finally:
        second.end()
