"""`BatchletCluster("local")`: jobs that are processes of this machine, to try things out without a batch system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from run_helpers import Place, eventually, report_of

pytest.importorskip("dask_jobqueue")

SCRIPT = """
import sys, time
from batchlet import BatchletCluster
if __name__ == "__main__":
    with BatchletCluster("local", jobs=2, cores=1, memory="512MiB", job_script_prologue=["export A=b"],
                         report=sys.argv[2]) as cluster:
        client = cluster.get_client()
        client.wait_for_workers(2, timeout=30)
        total = client.submit(sum, range(10)).result()
        print(total, set(client.run(lambda: __import__("os").environ["A"]).values()), flush=True)
        time.sleep(float(sys.argv[1]))
"""


def test_jobs_that_are_processes_of_this_machine_compute_and_leave_nothing_but_their_report(place: Place) -> None:
    reports = place.base / "reports"
    result = place.run(sys.executable, place.script(SCRIPT), "0", str(reports), timeout=60)
    assert (result.rc, result.stdout) == (0, "45 {'b'}\n"), result
    assert len(result.errors) == 1, result
    found = report_of(reports)
    assert (found["run"]["mode"], found["outcome"]["state"], found["outcome"]["exit_code"]) == ("jobs", "done", 0), (
        found
    )
    assert len(found["workers"]) == 2, found
    assert all(worker["rank"] is None for worker in found["workers"].values()), found
    assert all(worker["cpu_seconds"] > 0 for worker in found["workers"].values()), found
    assert sum(group["tasks"] for group in found["task_groups"]) == 1, found
    assert "<html" in (reports / "report.html").read_text()


def test_jobs_that_are_processes_of_this_machine_end_with_their_client(place: Place) -> None:
    command = [sys.executable, place.script(SCRIPT), "1000", str(place.base / "reports")]
    client = subprocess.Popen(
        command, cwd=place.cwd, env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "45 {'b'}\n"
    path = place.base / "reports" / "report.json"
    eventually(lambda: path.exists() and len(report_of(path.parent)["workers"]) == 2, 30, "no report of both workers")
    os.kill(client.pid, signal.SIGKILL)
    client.communicate()
    eventually(lambda: not place.processes() and not place.files(), 30, lambda: (place.processes(), place.files()))
    found = report_of(place.base / "reports")
    assert (found["outcome"]["state"], len(found["workers"])) == ("running", 2), found


LEAVES = """
import time
from batchlet import BatchletCluster
if __name__ == "__main__":
    with BatchletCluster("local", jobs=2, cores=1, memory="512MiB", report="out") as cluster:
        client = cluster.get_client()
        client.wait_for_workers(2, timeout=60)
        cluster.scale(jobs=1)
        while len(client.scheduler_info(n_workers=-1)["workers"]) > 1:
            time.sleep(0.1)
        time.sleep(20)
"""


def test_the_report_counts_a_job_for_as_long_as_it_was_there(place: Place) -> None:
    result = place.run_only(sys.executable, place.script(LEAVES), timeout=120)
    assert result.rc == 0, result
    found = report_of(place.cwd / "out")
    workers = found["workers"].values()
    [stayed] = [worker for worker in workers if worker["went"] is None]
    [left] = [worker for worker in workers if worker["went"] is not None]
    assert left["went"] < found["time"]["ended"] - 15, found
    expected = left["went"] - left["came"] + found["time"]["ended"] - stayed["came"]
    assert found["use"]["cpu_granted_seconds"] == pytest.approx(expected, abs=8), (expected, found)
