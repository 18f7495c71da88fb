"""Jobs that come to their end: others take over in time, and nothing is lost nor done twice. Many jobs are one array."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
from run_helpers import REPOSITORY, Place, json_line

pytestmark = pytest.mark.slurm

EXAMPLES = REPOSITORY / "slurm_examples"


@pytest.fixture
def login(cluster: SlurmCluster, place: Place) -> Login:
    return Login(cluster, place)


ENDURES = """
from pathlib import Path

marks = str(Path(sys.argv[1]) / "marks")

def work(i):
    with open(marks, "a") as file:
        file.write(f"{i}\\n")
    # Some take long: they are under way whenever a job retires.
    time.sleep(1.5 if i % 10 == 0 else 0.1)
    return i

with made(jobs=2, walltime="00:10:00", job_lifetime=8, retire_before=4) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(4)
    done, total, began, most = [], 0, time.monotonic(), 0
    # The results of the first stay in memory all the time.
    while time.monotonic() < began + 26:
        done.append(client.map(work, range(total, total + 100)))
        total += 100
        while not all(future.done() for future in done[-1]):
            most = max(most, len(cluster.worker_spec))
            time.sleep(0.1)
    found = sum(sum(client.gather(futures)) for futures in done)
    print("RESULT", json.dumps({
        "right": found == sum(range(total)),
        "twice": len(Path(marks).read_text().split()) - total,
        "jobs": len(cluster.jobs),
        "counted": most,
        "states": sorted({job.state for job in cluster.jobs}),
        "times": (time.monotonic() - began) / 8,
    }))
    client.close()
"""


def test_a_computation_of_many_job_times_loses_nothing_and_does_nothing_twice(login):
    result = login.run(ENDURES, str(login.place.base), timeout=90)
    assert result.rc == 0, result
    found = json.loads(json_line(result.stdout))
    assert found["times"] > 3
    assert (found["right"], found["twice"]) == (True, 0), result
    # Those that retire are not counted, and each was replaced by one.
    assert found["counted"] == 2
    assert 6 <= found["jobs"] <= 2 * (found["times"] * 8 / 3.5 + 1)
    assert set(found["states"]) <= {"joined", "retiring", "ended", "submitted", "pending", "running"}
    assert len(result.errors) == 1, result


def test_the_examples_of_clusters_that_grow_run_as_they_are(login):
    interface = json.dumps({"interface": login.environ["LOGIN_INTERFACE"]})
    site = {"BATCHLET_DASK_CLUSTER__SCHEDULER_OPTIONS": interface}
    size = ["2", "600MiB"]
    for script, words, printed in (
        (
            "many_walltimes.py",
            [*size, "7", "8"],
            r"after 8000 steps: \[(-?\d+, ){3}-?\d+\]\n([4-9]|1\d) jobs, two at a time",
        ),
        ("adaptive.py", size, r"pi is about 3\.1\d+\njob \d+"),
    ):
        result = login.place.run_only(sys.executable, str(EXAMPLES / script), *words, env=site)
        login.assert_nothing_left(result)
        assert result.rc == 0, result
        assert re.match(printed, result.stdout), result
        assert len(result.errors) == 1, result


ARRAY = """
with made(jobs=3, cores=8, workers_per_node=1, max_pending=500, walltime="00:10:00") as cluster:
    client = cluster.get_client()
    client.wait_for_workers(3)
    until(lambda: states() == ["joined"] * 3)
    ids = [job.job_id for job in cluster.jobs]
    logs = sorted(path for path in os.listdir(cluster.keeper.logs.own) if path.endswith(".err"))
    until(lambda: all(job.limit for job in cluster.jobs))
    limits = [job.limit - time.monotonic() for job in cluster.jobs]
    subprocess.run(["scancel", ids[1]], check=True)
    until(lambda: states() == ["joined"] * 3 + ["lost"])
    found = {"ids": ids, "logs": logs, "limits": limits, "states": [job.state for job in cluster.jobs],
             "new": cluster.jobs[3].job_id}
    # Far more than there is room for; those that wait are one array, and the client has time for other things.
    cluster.scale(jobs=900)
    until(lambda: sum(job.state == "pending" for job in cluster.jobs) > 400, 60)
    found["held"] = sum(job.state == "held" for job in cluster.jobs)
    found["queued"] = int(subprocess.run("squeue --noheader --array --states=pending | wc -l", shell=True,
                                         capture_output=True, text=True).stdout)
    found["arrays"] = len({job.job_id.partition("_")[0] for job in cluster.jobs if job.job_id})
    slowest = 0
    for number in range(40):
        began = time.monotonic()
        assert client.submit(lambda i: i, number, pure=False).result() == number
        slowest = max(slowest, time.monotonic() - began)
    found["slowest"] = slowest
    cluster.scale(jobs=2)
    until(lambda: len(cluster.scheduler.workers) == 2)
    began = time.monotonic()
    until(lambda: subprocess.run(["squeue", "--noheader", "--states=pending"], capture_output=True).stdout == b"")
    found["shown"] = "and " in cluster._repr_html_()
    client.close()
print("RESULT", json.dumps(found))
"""


def test_jobs_asked_for_at_once_are_one_array_and_no_more_wait_than_may(login):
    result = login.run(ARRAY, timeout=150)
    assert result.rc == 0, result
    found = json.loads(json_line(result.stdout))
    array = found["ids"][0].partition("_")[0]
    assert found["ids"] == [f"{array}_{number}" for number in range(3)]
    assert found["logs"] == [f"dask-worker-{job}.err" for job in found["ids"]]
    # What Slurm says of the time limit.
    assert all(500 < left < 600 for left in found["limits"]), found
    # One of the array was cancelled, that one was named, and another submitted in its place, by itself.
    assert found["states"] == ["joined", "lost", "joined", "joined"]
    assert found["new"].isdecimal()
    lost = [line for line in result.errors if "is lost" in line]
    assert len(lost) == 1, result
    assert lost[0].startswith(f"batchlet: job {found['ids'][1]} ")
    assert "CANCELLED" in lost[0]
    assert 400 < found["queued"] <= 500
    assert found["held"] >= 380
    # Those for which there was room when others began were handed in together, too.
    assert found["arrays"] < 30
    assert found["slowest"] < 2
    assert found["shown"]


# As a site that has arrays switched off.
NO_ARRAYS = """#!/bin/sh
for last; do :; done
grep -q '^#SBATCH --array' "$last" || exec {sbatch} "$@"
echo "sbatch: error: Batch job submission failed: Invalid job array specification" >&2
exit 1
"""
ONE_BY_ONE = """
with made(jobs=3, cores=8, workers_per_node=1) as cluster:
    cluster.wait_for_workers(3)
    print("RESULT", json.dumps([job.job_id.isdecimal() for job in cluster.jobs]))
"""


def test_where_arrays_are_not_allowed_jobs_are_submitted_one_by_one(login):
    own = login.place.base / "bin"
    own.mkdir()
    sbatch = shutil.which("sbatch", path=login.place.environ["PATH"])
    (own / "sbatch").write_text(NO_ARRAYS.format(sbatch=sbatch))
    (own / "sbatch").chmod(0o755)
    result = login.run(ONE_BY_ONE, env={"PATH": f"{own}{os.pathsep}{login.place.environ['PATH']}"})
    assert result.rc == 0, result
    assert json.loads(json_line(result.stdout)) == [True] * 3
    assert len(result.errors) == 1, result
