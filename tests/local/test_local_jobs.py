"""`BatchletCluster("local")`: jobs that are processes of this machine, to try things out without a batch system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from run_helpers import Place, eventually

pytest.importorskip("dask_jobqueue")

SCRIPT = """
import sys, time
from batchlet import BatchletCluster
if __name__ == "__main__":
    with BatchletCluster("local", jobs=2, cores=1, memory="512MiB", job_script_prologue=["export A=b"]) as cluster:
        client = cluster.get_client()
        client.wait_for_workers(2, timeout=30)
        total = client.submit(sum, range(10)).result()
        print(total, set(client.run(lambda: __import__("os").environ["A"]).values()), flush=True)
        time.sleep(float(sys.argv[1]))
"""


def test_jobs_that_are_processes_of_this_machine_compute_and_leave_nothing(place: Place) -> None:
    result = place.run(sys.executable, place.script(SCRIPT), "0", timeout=60)
    assert (result.rc, result.stdout) == (0, "45 {'b'}\n"), result
    assert len(result.errors) == 1, result


def test_jobs_that_are_processes_of_this_machine_end_with_their_client(place: Place) -> None:
    client = subprocess.Popen(
        [sys.executable, place.script(SCRIPT), "1000"], cwd=place.cwd, env=place.environ, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert client.stdout is not None
    assert client.stdout.readline() == "45 {'b'}\n"
    os.kill(client.pid, signal.SIGKILL)
    client.communicate()
    eventually(lambda: not place.processes() and not place.files(), 30, lambda: (place.processes(), place.files()))
