"""The ranks of a node share one agent: who attaches to it, who does not, and what each worker still has of its rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import psutil
import pytest
from affinity_cluster import bound_cluster
from cluster_slurm import SlurmCluster
from fault_helpers import FAULTS, WAITING, Fault, Running, options, run_fault, slurmd_of
from run_helpers import Place, Run, json_line, unavailable

import batchlet

pytestmark = pytest.mark.slurm

KILL = int(signal.SIGKILL)
DONE = r"^batchlet: done after"

REPORT = """
import json, os
from batchlet import BatchletRunner

def look(dask_worker):
    import os
    names = ("SLURM_PROCID", "SLURM_LOCALID", "CUDA_VISIBLE_DEVICES", "ONLY_MINE", "OMP_NUM_THREADS")
    threads = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
    return {
        "name": dask_worker.name,
        "environ": {name: os.environ[name] for name in names if name in os.environ},
        "cpus": sorted(os.sched_getaffinity(0)),
        "all_threads_there": all(cpus == threads[0] for cpus in threads),
        "host": os.getppid(),
        "parents": [process.pid for process in __import__("psutil").Process().parents()],
        "node": os.environ["SLURMD_NODENAME"],
        "main": sorted(vars(__import__("__main__"))),
    }

if os.environ["SLURM_PROCID"] == "3":
    os.environ["ONLY_MINE"] = "three"
with BatchletRunner() as runner:
    from distributed import Client
    with Client(runner) as client:
        print("RESULT " + json.dumps(list(client.run(look).values())))
"""


def reports(stdout: str) -> dict[int, dict]:
    return {report["name"]: report for report in json.loads(json_line(stdout))}


def forks(found: dict[int, dict]) -> set[int]:
    """The processes from which workers were forked."""
    return {report["host"] for report in found.values()}


def test_one_agent_for_all_ranks_of_a_node(srun: Run) -> None:
    """The workers of a node have one parent, and each has its own rank's variables."""
    result = srun("-N2", "-n8", "--ntasks-per-node=4", script=REPORT)
    assert result.rc == 0, str(result)
    found = reports(result.stdout)
    assert sorted(found) == [2, 3, 4, 5, 6, 7]
    assert len(forks(found)) == 2
    for rank, report in found.items():
        assert report["environ"]["SLURM_PROCID"] == str(rank)
        assert report["environ"]["SLURM_LOCALID"] == str(rank % 4)
        assert report["environ"].get("ONLY_MINE") == ("three" if rank == 3 else None)
        assert report["environ"]["OMP_NUM_THREADS"] == "1"
        # Not the agent's, nor the script's.
        assert "REPORT" not in report["main"]
        assert "BatchletRunner" not in report["main"]


def test_the_users_threads_variable_wins(srun: Run) -> None:
    """What the user has set for BLAS and OpenMP is the workers'."""
    result = srun("-n4", script=REPORT, env={"OMP_NUM_THREADS": "3"})
    assert result.rc == 0, str(result)
    assert {report["environ"]["OMP_NUM_THREADS"] for report in reports(result.stdout).values()} == {"3"}


@pytest.mark.parametrize("why", ["asked for", "GPU", "another Python"])
def test_ranks_that_do_not_share(srun: Run, place: Place, why: str) -> None:
    """Where ranks may not share, each has an agent of its own."""
    env: dict[str, str] = {}
    prefix: tuple[str, ...] = ()
    if why == "asked for":
        env = options(share_node=False)
    elif why == "GPU":
        prefix = ("sh", "-c", 'export CUDA_VISIBLE_DEVICES=$SLURM_LOCALID; exec "$@"', "sh")
    else:
        other = place.base / "other"
        venv.create(other, symlinks=True)
        paths = [path for path in sys.path if path.endswith("site-packages")]
        paths.append(str(Path(batchlet.__file__).parent.parent))
        (next(other.glob("lib/python*/site-packages")) / "parent.pth").write_text("\n".join(paths) + "\n")
        prefix = ("sh", "-c", f'[ $SLURM_PROCID = 3 ] || exec "$@"; shift; exec {other}/bin/python "$@"', "sh")
    result = srun("-n4", script=REPORT, env=env, prefix=prefix)
    assert result.rc == 0, str(result)
    found = reports(result.stdout)
    assert sorted(found) == [2, 3]
    assert len(forks(found)) == 2
    if why == "GPU":
        assert {rank: report["environ"]["CUDA_VISIBLE_DEVICES"] for rank, report in found.items()} == {2: "2", 3: "3"}


SQUAT = """
import os, socket, sys, time
os.setuid(65534)
held = []
for job in range(1, 400):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind(f"\\0batchlet-0-{sys.argv[1]}-{job}-0--{sys.argv[2]}")
    held[-1].listen(100)
print("held", flush=True)
time.sleep(100)
"""


def test_squatted_name(place: Place, cluster: SlurmCluster) -> None:
    """Another user who has bound the name of the agent's socket on the node stops nobody."""
    node = cluster.node_names[0]
    enter = [
        "nsenter",
        f"--target={slurmd_of(node).pid}",
        "--net",
        sys.executable,
        "-c",
        SQUAT,
        f"test{cluster.instance}",
        node,
    ]
    with subprocess.Popen(enter, stdout=subprocess.PIPE, text=True) as squatter:
        try:
            assert squatter.stdout is not None
            assert squatter.stdout.readline() == "held\n"
            result = place.run("srun", "-w", node, "-N1", "-n4", sys.executable, place.script(REPORT))
        finally:
            squatter.kill()
    assert result.rc == 0, str(result)
    # The ranks have met under another name.
    assert len(forks(reports(result.stdout))) == 1
    assert sum("another user (uid 65534) holds the name" in line for line in result.errors) == 1, str(result)


def test_ranks_that_wait_are_small(place: Place) -> None:
    """A rank that waits for the end is a shell, and uses no CPU."""
    running = Running(place, "srun", "-N2", "-n6", "--ntasks-per-node=3", sys.executable, str(FAULTS), "waits")
    try:
        running.wait_for("strike")
        ranks = [running.rank(rank) for rank in (2, 3, 4, 5)]
        # Also the one of each node that has started its agent and sees it end.
        assert all(rank.cmdline()[-1] == WAITING for rank in ranks)
        assert sorted(len(rank.children()) for rank in ranks) == [0, 0, 1, 1]
        assert all(rank.memory_full_info().uss < 2 << 20 for rank in ranks)
        before = [sum(rank.cpu_times()[:2]) for rank in ranks]
        psutil.cpu_percent(1.0)
        assert [sum(rank.cpu_times()[:2]) for rank in ranks] == before
    finally:
        running.end()


def starter(running: Running) -> psutil.Process:
    """The rank that has started the agent of rank 4's node."""
    parent = running.agent(4).parent()
    assert parent is not None
    assert parent in [running.rank(rank) for rank in (3, 4, 5)]
    return parent


def go_on(running: Running, process: psutil.Process) -> None:
    """Kill a process, and let the client go on once that is known."""
    process.kill()
    running.struck = time.monotonic()
    running.wait_for("the run goes on with")
    running.go_on()


MATRIX = {
    "starter killed": Fault(
        "The rank that has started the agent dies: its own worker is lost, those of the others are not.",
        "works-on", 137, [r"^batchlet: rank \d on node \S+ died and 1 worker with it; the run goes on with 3$", DONE],
        ["sum 190"], srun="-N2 -n6 --ntasks-per-node=3", act=lambda running: go_on(running, starter(running)),
        client_rc=0, within=10,
    ),
    "SIGTERM to a rank that waits": Fault(
        "A signal to a rank that waits is for the client.",
        "cleans-up", 143, [r"SIGTERM.*rank 3|rank 3.*SIGTERM"], srun="-n4", ready="under way",
        act=lambda running: running.signal(int(signal.SIGTERM), 3), client_rc=143, within=10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MATRIX)
def test_faults(place: Place, case: str) -> None:
    """Ranks that wait and the agent that they share, each may die."""
    run_fault(place, MATRIX[case])


def test_each_worker_runs_on_the_cpus_of_its_rank() -> None:
    """With task/affinity every worker is bound as its rank is, and no two share a CPU."""
    if (os.cpu_count() or 1) < 2:
        unavailable("one CPU cannot be shared out")
    with bound_cluster() as cluster:
        place = Place(cluster.env(), on_timeout=cluster.end_jobs)
        try:
            script = place.script(REPORT)
            # Two ranks a node, a CPU each; on the second node both of them work.
            result = place.run(
                "srun", "-N2", "-n4", "-c1", "--ntasks-per-node=2", "--cpu-bind=cores", sys.executable, script
            )
            assert result.rc == 0, str(result)
            found = reports(result.stdout)
        finally:
            place.close()
    assert sorted(found) == [2, 3]
    assert len(forks(found)) == 1
    assert all(report["all_threads_there"] for report in found.values())
    assert all(len(report["cpus"]) == 1 for report in found.values())
    assert found[2]["cpus"] != found[3]["cpus"]


HANGS_AT_THE_END = """
import time
from batchlet import BatchletRunner

with BatchletRunner(stop_timeout=2) as runner:
    from dask.distributed import Client, NannyPlugin

    class Hangs(NannyPlugin):
        def teardown(self, nanny):
            time.sleep(600)

    with Client(runner) as client:
        client.register_plugin(Hangs())
        print(client.submit(sum, [1, 2]).result())
"""


def test_an_agent_that_hangs_at_the_end_is_ended(place: Place) -> None:
    """The rank that has started it waits for its end, and Slurm for that rank: not for ever."""
    result = place.run("srun", "-N2", "-n6", sys.executable, place.script(HANGS_AT_THE_END), timeout=40)
    assert (result.rc, result.stdout) == (0, "3\n"), str(result)
    assert not any("error" in line for line in result.errors), str(result)
    place.assert_nothing_left(result=result)
