"""`BatchletCluster("sge")`: jobs of a real gridengine are one Dask cluster, within what they were granted."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from cluster_gridengine import GridEngine
from run_helpers import Place, eventually

pytestmark = pytest.mark.gridengine

pytest.importorskip("dask_jobqueue")

COMPUTES = """
import json, subprocess, time
from batchlet import BatchletCluster
if __name__ == "__main__":
    # Four threads are asked for, and two slots: what is granted rules.
    with BatchletCluster("sge", jobs=2, cores=4, memory="2GiB", workers_per_node=2, queue="all.q", walltime="00:10:00",
                         job_extra_directives=["-pe smp 2"]) as cluster:
        client = cluster.get_client()
        client.wait_for_workers(4, timeout=60)
        workers = client.scheduler_info()["workers"].values()
        first = cluster.jobs[0]
        subprocess.run(["qdel", first.job_id], check=True, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end and [job.state for job in cluster.jobs] != ["lost", "joined", "joined"]:
            time.sleep(0.1)
        print(json.dumps({
            "sum": client.submit(sum, range(10)).result(),
            "threads": [worker["nthreads"] for worker in workers],
            "first": first.job_id,
            "jobs": [job.state for job in cluster.jobs],
            "workers": len(client.scheduler_info()["workers"]),
        }))
"""
REFUSED = """
from batchlet import BatchletCluster
if __name__ == "__main__":
    BatchletCluster("sge", jobs=1, cores=1, memory="1GiB", queue="nosuch.q")
"""
STAYS = """
import time
from batchlet import BatchletCluster
if __name__ == "__main__":
    cluster = BatchletCluster("sge", jobs=2, cores=8, memory="1GiB", workers_per_node=1)
    cluster.scale(jobs=4)
    cluster.get_client().wait_for_workers(2)
    print("up", flush=True)
    time.sleep(1000)
"""
WAITS = """
import time
from batchlet import BatchletCluster
if __name__ == "__main__":
    with BatchletCluster("sge", jobs=1, cores=99, memory="1GiB", workers_per_node=1, start_timeout=4) as pends:
        began = time.monotonic()
        with BatchletCluster("sge", jobs=1, cores=1, memory="1GiB", max_restarts=0,
                             job_extra_directives=["-o /nonexistent/"]) as fails:
            try:
                fails.wait_for_workers(1, timeout=30)
            except RuntimeError as error:
                print(error)
            while pends.jobs[0].state != "pending" or time.monotonic() < began + 6:
                time.sleep(0.1)
"""


def is_empty(gridengine: GridEngine) -> bool:
    return gridengine.call("qstat", "-u", "*").stdout == ""


def test_jobs_compute_and_one_that_is_deleted_is_named_and_replaced(gridengine: GridEngine, place: Place) -> None:
    """Two jobs; each keeps to its slots and says so; `qdel` of one is told with gridengine's words; nothing is left."""
    result = place.run(*gridengine.enter(sys.executable, place.script(COMPUTES)), timeout=90)
    assert result.rc == 0, result
    seen = json.loads(result.stdout)
    assert seen["sum"] == 45
    assert seen["threads"] == [1, 1, 1, 1], result
    assert (seen["jobs"], seen["workers"]) == (["lost", "joined", "joined"], 4), result
    differences = [line for line in result.errors if "2 CPUs instead of 4" in line]
    # The job in the place of the lost one has no more than that either.
    assert len(differences) == 3, result
    assert re.search(r"NSLOTS|PE_HOSTFILE", differences[0])
    lost = [line for line in result.errors if "is lost" in line]
    assert len(lost) == 1, result
    # Both were one array, of which this was the first.
    assert seen["first"].endswith(".1")
    assert f"job {seen['first']} " in lost[0]
    assert "killed by qdel or for a limit" in lost[0], result
    eventually(lambda: is_empty(gridengine), 10, "jobs are left")


def test_a_job_that_gridengine_refuses_is_told_in_its_words(gridengine: GridEngine, place: Place) -> None:
    result = place.run(*gridengine.enter(sys.executable, place.script(REFUSED)), timeout=20)
    assert result.rc == 2, result
    assert 'unknown queue "nosuch.q"' in result.stderr
    assert "Traceback" not in result.stderr
    assert is_empty(gridengine)


def test_jobs_end_with_their_client(gridengine: GridEngine, place: Place) -> None:
    """A client that is killed leaves, within 30 s, no job that runs or pends, and no file."""
    script = place.script(STAYS)
    client = subprocess.Popen(
        gridengine.enter(sys.executable, script), cwd=place.cwd, env=place.environ, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "up\n"
        eventually(lambda: gridengine.call("qstat", "-g", "d", "-u", "*").stdout.count("dask-worke") == 4, 10)
    finally:
        client.kill()
        client.communicate()
    eventually(lambda: is_empty(gridengine), 30, lambda: gridengine.call("qstat", "-u", "*").stdout)
    eventually(lambda: not place.files(), 10, lambda: place.files())
    place.assert_nothing_left()


def test_jobs_that_do_not_start_say_why(gridengine: GridEngine, place: Place) -> None:
    """One that pends is told with the scheduler's reason; one that can never start is told, and removed."""
    result = place.run(*gridengine.enter(sys.executable, place.script(WAITS)), timeout=40)
    assert result.rc == 0, result
    waits = [line for line in result.errors if "has been waiting" in line]
    assert len(waits) == 1, result
    assert 'cannot run in PE "smp"' in waits[0]
    lost = [line for line in result.errors if "is lost: Eqw, can't open output file" in line]
    assert len(lost) == 1, result
    assert "workers will not come" in result.stdout
    eventually(lambda: is_empty(gridengine), 10, "jobs are left")
