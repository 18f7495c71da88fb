"""Scratch of runs that were killed so thoroughly that nobody was left to remove it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from run_helpers import WORKLOADS, Place, Run, json_line

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


KILLED_WORKER = """
import json, os, signal, sys, urllib.error, urllib.request
from pathlib import Path
import dask
from batchlet import BatchletRunner
from dask.distributed import Client, get_worker


def look():
    worker = get_worker()
    try:
        status = urllib.request.urlopen(f"http://localhost:{worker.http_server.port}/health").status
    except urllib.error.HTTPError as error:
        status = error.code
    return {
        "pid": os.getpid(),
        "directory": worker.local_directory,
        "beside it": sorted(path.name for path in Path(worker.local_directory).parent.iterdir()),
        "http": status,
        "routes": dask.config.get("distributed.worker.http.routes"),
        "target": dask.config.get("distributed.worker.memory.target"),
        "disks": "host_disk_io.read_bps" in worker.monitor.quantities,
    }


def spill():
    Path(get_worker().local_directory, "storage", "spilled").write_bytes(bytes(1_000_000))


config = {"distributed.worker.memory.target": 0.5}
with BatchletRunner(workers_per_node=1, worker_options={"config": config}) as runner, Client(runner) as client:
    client.submit(spill).result()
    first = client.submit(look, pure=False).result()
    os.kill(first["pid"], signal.SIGKILL)
    second = client.submit(look, pure=False).result()
    gone = not os.path.exists(first["directory"])
sys.stdout.write("RESULT " + json.dumps({"gone": gone, "first": first, "second": second}) + "\\n")
"""


def test_what_a_dead_worker_had_spilled_is_gone_when_it_is_back(python: Run) -> None:
    """No disk fills up with what nobody can use; and what the user configures for workers opens nothing that is closed."""
    result = python(KILLED_WORKER)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["gone"], found
    for look in (found["first"], found["second"]):
        # Nothing but the worker's own directory: no lock files, which are slow where many share a file system.
        assert look["beside it"] == [Path(look["directory"]).name], found
        assert (look["http"], look["routes"], look["target"]) == (404, [], 0.5), found
        # Who looks at the dashboard sees the node's disks.
        assert look["disks"] == Path("/proc/diskstats").exists(), found


@pytest.mark.parametrize("where", ["another host", "another boot", "nobody says where"])
def test_what_a_run_on_another_host_has_made_is_left_alone(place: Place, where: str) -> None:
    """On a network file system its lock may not be seen here, and the run may live."""
    node, boot = os.uname().nodename, Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    made_on = {"another host": f"not-{node} {boot}", "another boot": f"{node} {boot[::-1]}", "nobody says where": ""}
    theirs, ours = place.tmp / "batchlet-local-theirs", place.tmp / "batchlet-local-ours"
    for path, host in ((theirs, made_on[where]), (ours, f"{node} {boot}")):
        path.mkdir()
        (path / ".batchlet-lock").write_text(host)
        grow_old(path)
    run = Running(place, sys.executable, str(FAULTS), "fine", env=ENV)
    assert run.finish(40).rc == 0
    assert directories(place) == {theirs}
