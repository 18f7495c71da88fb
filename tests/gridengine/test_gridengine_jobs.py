"""`BatchletCluster("sge")`: jobs of a real gridengine are one Dask cluster, within what they were granted."""

from __future__ import annotations

import json
import os
import re
import shutil
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
import os, time
from batchlet import BatchletCluster
if __name__ == "__main__":
    for options in ({"queue": "nosuch.q"}, {"job_extra_directives": ["-nonsense"]}, {}):
        if not options:
            os.environ["PATH"] = "/nowhere"
        began = time.monotonic()
        try:
            BatchletCluster("sge", jobs=1, cores=1, memory="1GiB", **options)
        except SystemExit as error:
            print(error.code, time.monotonic() - began < 8)
"""
# Fails every second time, as on a system that is too busy.
QSUB = """#!/bin/sh
echo >>{calls}
[ $(($(wc -l <{calls}) % 2)) = 1 ] || exec {qsub} "$@"
echo "error: commlib error: got select error (Connection refused)" >&2
exit 1
"""
COMES = """
from batchlet import BatchletCluster
if __name__ == "__main__":
    with BatchletCluster("sge", jobs=1, cores=1, memory="1GiB") as cluster:
        cluster.wait_for_workers(1, timeout=40)
        while cluster.jobs[0].state != "joined":
            pass
        print([job.state for job in cluster.jobs])
"""
DIES = """
import json, os, signal, subprocess, time
from pathlib import Path
from batchlet import BatchletCluster

def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, [str(job) for cluster in (limited, others) for job in cluster.jobs]
        time.sleep(0.1)

def lasts(path):
    if not Path(path).exists():
        Path(path).touch()
        time.sleep(60)
    return os.uname().nodename

def joined(cluster):
    return [job for job in cluster.jobs if job.state == "joined"]

def lost(*jobs):
    return all(job.state == "lost" for job in jobs)

if __name__ == "__main__":
    size = {"cores": 1, "memory": "1GiB"}
    with (BatchletCluster("sge", jobs=1, walltime="00:00:10", **size) as limited,
          BatchletCluster("sge", jobs=2, **size) as others):
        client = limited.get_client()
        task = client.submit(lasts, mark := os.path.abspath("began"))
        until(lambda: Path(mark).exists())
        late = limited.jobs[0]
        other = others.get_client()
        until(lambda: len(joined(others)) == 2)
        killed, deleted = others.jobs
        # The worker's parent is the fork server, and that one's is the agent.
        server = other.submit(os.getppid, workers=[killed.name + "-0"]).result()
        os.kill(int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
        until(lambda: lost(killed) and len(joined(others)) == 2)
        every = joined(others)
        subprocess.run(["qdel", *(job.job_id for job in every)], check=True, stdout=subprocess.DEVNULL)
        # It retires before its time limit, where gridengine has said in time what that is.
        until(lambda: late.is_over and lost(*every) and len(joined(others)) == 2)
        found = {"killed": killed.job_id, "late": late.job_id, "deleted": [job.job_id for job in every],
                 "node": bool(task.result(timeout=30)), "sum": other.submit(sum, [1, 2]).result(timeout=30)}
        Path(mark).unlink()
        other.close()
        client.close()
    print(json.dumps(found))
"""
STAYS = """
import sys
from batchlet import BatchletCluster
if __name__ == "__main__":
    cluster = BatchletCluster("sge", jobs=2, cores=8, memory="1GiB", workers_per_node=1)
    cluster.scale(jobs=4)
    cluster.get_client().wait_for_workers(2)
    print("up", flush=True)
    sys.stdin.readline()
    sys.exit(3)
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


def test_what_gridengine_refuses_is_told_in_its_words(gridengine: GridEngine, place: Place) -> None:
    """An unknown queue, a bad directive, and no gridengine at all: one sentence each, at once."""
    result = place.run(*gridengine.enter(sys.executable, place.script(REFUSED)), timeout=40)
    assert (result.rc, result.stdout) == (0, "2 True\n" * 3), result
    assert len(result.errors) == 3, result
    for words, line in zip(
        ('unknown queue "nosuch.q"', "nonsense", "qsub: there is no such command on this machine"),
        result.errors,
        strict=True,
    ):
        assert line.startswith("batchlet: error: gridengine "), result
        assert words in line, result
    assert is_empty(gridengine)


def test_a_qsub_that_fails_now_and_then_is_tried_again(gridengine: GridEngine, place: Place) -> None:
    own = place.base / "bin"
    own.mkdir()
    qsub = shutil.which("qsub", path=place.environ["PATH"])
    (own / "qsub").write_text(QSUB.format(calls=own / "calls", qsub=qsub))
    (own / "qsub").chmod(0o755)
    env = {"PATH": f"{own}{os.pathsep}{place.environ['PATH']}"}
    result = place.run(*gridengine.enter(sys.executable, place.script(COMES)), env=env, timeout=60)
    assert (result.rc, result.stdout) == (0, "['joined']\n"), result
    assert len(result.errors) == 1, result
    assert (own / "calls").read_text().count("\n") >= 4
    eventually(lambda: is_empty(gridengine), 10, "jobs are left")


def test_jobs_that_die_are_named_each_in_its_way(gridengine: GridEngine, place: Place) -> None:
    """An agent that is killed, a time limit in the middle of a task, `qdel`: the work goes on while jobs are replaced."""
    result = place.run_only(*gridengine.enter(sys.executable, place.script(DIES)), timeout=120)
    for scratch in place.tmp.glob("batchlet-*"):
        # The next job on that node would sweep it away.
        shutil.rmtree(scratch)
    place.assert_nothing_left(set(), result)
    assert result.rc == 0, result
    seen = json.loads(result.stdout)
    lost = {
        match[1]: match[2]
        for line in result.errors
        if (match := re.match(r"batchlet: job (\S+) (?:is lost|comes to its end)(.*)", line))
    }
    assert "signal 9" in lost[seen["killed"]], result
    # Whichever of gridengine's daemons was quicker.
    assert re.search("killed by qdel or for a limit|enforced h_rt|computes 1 task", lost[seen["late"]]), result
    assert all("killed by qdel or for a limit" in lost[job] for job in seen["deleted"]), result
    assert (seen["node"], seen["sum"]) == (True, 3), result
    assert "Traceback" not in result.stderr, result
    eventually(lambda: is_empty(gridengine), 10, "jobs are left")


@pytest.mark.parametrize("how", ["killed", "exit"])
def test_jobs_end_with_their_client(gridengine: GridEngine, place: Place, how: str) -> None:
    """A client that is killed, or ends without `close`, leaves within 30 s no job that runs or pends, and no file."""
    script = place.script(STAYS)
    client = subprocess.Popen(
        gridengine.enter(sys.executable, script), cwd=place.cwd, env=place.environ, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "up\n"
        eventually(lambda: gridengine.call("qstat", "-g", "d", "-u", "*").stdout.count("dask-worke") == 4, 10)
        if how == "exit":
            client.communicate("\n", timeout=30)
    finally:
        client.kill()
        client.communicate()
    assert client.returncode == (-9 if how == "killed" else 3)
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
