"""Nodes of a second job join a run that is under way, and leave it again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import Running, options
from jobs_helpers import Login
from run_helpers import BatchJob, Place, eventually, json_line

from batchlet.rendezvous import CoordinatorRecord

pytestmark = pytest.mark.slurm

JOIN = (sys.executable, "-m", "batchlet", "join")
# The workers of other jobs have names that begin with their run's.
RUN = """
import json, os, socket, sys, time
from batchlet import BatchletRunner
from dask.distributed import Client, wait

def say(*words):
    print(*words, flush=True)

def mark(i, log=sys.argv[1], seconds=0.0):
    time.sleep(seconds)
    with open(f"{log}/{i}-{os.getpid()}-{time.monotonic_ns()}", "w"):
        return [socket.gethostname(), i * i]

with BatchletRunner(join=True) as runner, Client(runner) as client:
    mine = runner.n_workers

    def others():
        workers = client.scheduler_info(n_workers=-1)["workers"]
        return {address: worker for address, worker in workers.items() if str(worker["name"]).startswith("slurm-")}

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, client.scheduler_info(n_workers=-1)
            time.sleep(0.05)

    say("started", mine)
    until(lambda: len(others()) == 2)
    there = others()
    say("RESULT", json.dumps([[worker["nthreads"], worker["memory_limit"]] for worker in there.values()]))
    kept = client.map(mark, range(30), workers=list(there), allow_other_workers=True)
    wait(kept)
    hosts = {host for host, _ in client.gather(kept)}
    assert len(hosts & {socket.gethostname()}) == 0, hosts
    slow = client.map(mark, range(100, 140), seconds=0.5)
    until(lambda: any(client.processing().get(address) for address in there))
    say("computed")
    until(lambda: not others())
    say("departed")
    assert [square for _, square in client.gather(kept)] == [i * i for i in range(30)]
    assert [square for _, square in client.gather(slow)] == [i * i for i in range(100, 140)]
    again = [name for name in os.listdir(sys.argv[1]) if int(name.split("-")[0]) < 100]
    assert len(again) == 30, f"computed again: {sorted(again)}"
    until(lambda: len(others()) == 2)
    assert client.submit(mark, 7, workers=list(others())).result()[1] == 49
    say("came again")
"""


def run_name(running: Running) -> str:
    running.wait_for("more nodes: ", 60)
    found = re.search(r"more nodes: python -m batchlet join (\S+)", running.stderr)
    assert found, running.stderr
    return found[1]


def test_a_second_job_brings_its_nodes_and_takes_them_away_without_losing_a_result(place: Place):
    log = place.base / "log"
    log.mkdir()
    before = place.files()
    run = Running(place, "srun", "-N2", "-n4", "--exclusive", "--mem=600M", sys.executable, place.script(RUN), str(log))
    name = run_name(run)
    assert re.fullmatch(r"slurm-\S*\d+\.0", name)
    record = place.cwd / ".batchlet" / f"{name}.json"
    assert record.stat().st_mode & 0o777 == 0o600
    guest = Running(place, "srun", "-N2", "--ntasks-per-node=1", "-c3", "--mem=500M", *JOIN, name, name="guest-")
    run.wait_for("computed", 60)
    assert "computed" in run.stdout, f"{run.stdout}\n{run.stderr}\n{guest.stderr}"
    # Sized from the grant of their own job.
    sizes = json.loads(json_line(run.stdout))
    assert [threads for threads, _ in sizes] == [3, 3], run.stdout
    assert all(0.9 * 500 * 2**20 < limit <= 500 * 2**20 for _, limit in sizes), run.stdout
    jobs = subprocess.run(
        ["squeue", "--noheader", "--format=%i %D"], env=place.environ, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    second = max(int(job.split()[0]) for job in jobs if job)
    subprocess.run(["scancel", str(second)], env=place.environ, check=True)
    run.wait_for("departed", 60)
    assert "departed" in run.stdout, f"{run.stdout}\n{run.stderr}\n{guest.stderr}"
    guest.process.wait(60)
    assert guest.process.returncode != 0
    assert "Traceback" not in guest.stderr, guest.stderr
    # A batch script without srun: its nodes by Batchlet's own step.
    job = BatchJob(place, "-N2", "-c2", "--mem=500M", script=f"#!/bin/sh\nexec {' '.join(JOIN)} {name}\n")
    assert run.process.wait(90) == 0, f"{run.stdout}\n{run.stderr}"
    assert "came again" in run.stdout
    ended = job.wait(30)
    assert ended.rc == 0, ended.output
    assert f"batchlet: run {name} is over" in ended.output, ended.output
    lines = [line for line in run.stderr.splitlines() if line.startswith("batchlet: ")]
    assert len(lines) <= 6, run.stderr
    assert sum("joins with its workers" in line for line in lines) == 2, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    assert not record.exists()
    place.assert_nothing_left(before, run.stderr)


def test_what_cannot_be_joined_is_a_sentence(place: Place):
    def joined(run: str) -> str:
        result = place.run_only(*JOIN, run)
        assert result.rc == 2, result
        assert len(result.errors) == 1, result
        return result.errors[0]

    assert "There is no run slurm-1.0 in" in joined("slurm-1.0")
    assert "--join" in joined("slurm-1.0")
    directory = place.cwd / ".batchlet"
    directory.mkdir(mode=0o700)
    record = directory / "slurm-2.0.json"
    record.write_text(CoordinatorRecord("slurm-2.0", "n", "n1", "127.0.0.1", 1, "ab" * 32).to_json())
    record.chmod(0o600)
    assert "Run slurm-2.0 is over, or cannot be reached" in joined("slurm-2.0")
    assert "Runs that can be joined there: slurm-2.0" in joined("slurm-3.0")
    record.chmod(0o666)
    assert "a record that others may have written" in joined(str(record))
    directory.chmod(0o755)
    assert "others may use it" in joined("slurm-2.0")
    directory.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(directory, 12345, 12345)
        assert "it belongs to user 12345, not to you (0)" in joined("slurm-2.0")
    for words in ([], ["one", "two"]):
        refused = place.run_only(*JOIN, *words)
        assert refused.rc == 2
        assert "usage: python -m batchlet join" in refused.stderr


def test_a_script_called_join_is_run_by_its_path(place: Place):
    (place.cwd / "join").write_text("print('the script')\n")
    result = place.run_only(sys.executable, "-m", "batchlet", "./join")
    assert (result.rc, result.stdout) == (0, "the script\n"), result
    result = place.run_only(*JOIN, "nothing")
    assert result.rc == 2
    assert "the script of that name in this directory is ./join" in result.stderr


CLUSTER = """
def join():
    command = ["srun", "-N2", "--ntasks-per-node=1", "-c2", "--mem=400M", sys.executable, "-m", "batchlet", "join"]
    return subprocess.Popen([*command, cluster.name])

def guests():
    found = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = open(f"/proc/{entry}/cmdline").read().split("\\0")
        except OSError:
            continue
        if "srun" not in words and words[2:5] == ["batchlet", "join", os.path.abspath(f".batchlet/{cluster.name}.json")]:
            found[int(entry)] = int(open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[1])
    # The fork server and the workers have the same command line.
    tops = [pid for pid, parent in found.items() if parent not in found]
    assert len(tops) == 2, found
    return tops

with made(threads_per_worker=1) as cluster:
    client = cluster.get_client()
    first = join()
    client.wait_for_workers(4, timeout=60)
    assert client.gather(client.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    for guest in guests():
        os.kill(guest, signal.SIGKILL)
    until(lambda: not client.scheduler_info(n_workers=-1)["workers"], 10)
    assert first.wait(30) != 0
    second = join()
    cluster.scale(jobs=1)
    client.wait_for_workers(6, timeout=60)
    assert client.gather(client.map(abs, range(-20, 0), pure=False)) == list(range(20, 0, -1))
began = time.monotonic()
assert second.wait(30) == 0
print("RESULT", json.dumps(time.monotonic() - began))
"""


def test_nodes_of_another_job_join_a_cluster_of_jobs(cluster: SlurmCluster, place: Place):
    result = Login(cluster, place).run(CLUSTER, timeout=120, swept=True)
    assert result.rc == 0, result
    assert float(json_line(result.stdout)) < 10
    assert len(re.findall(r"job [\d.]+ joins with its workers", result.stderr)) == 2, result
    assert len(re.findall("which had joined, is lost", result.stderr)) == 1, result
    assert "is over" in result.stderr
    assert "Traceback" not in result.stderr, result


BLOCKS = """
import json, sys, time
from batchlet import BatchletRunner
from dask.distributed import Client

for block in range(2):
    with BatchletRunner() as runner, Client(runner) as client:
        client.wait_for_workers(runner.n_workers + 2, timeout=60)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        [address, _] = sorted(address for address, worker in workers.items() if str(worker["name"]).startswith("slurm-"))
        print("block", block, client.submit(abs, -block, workers=[address]).result(), flush=True)
if sys.argv[1] == "killed":
    with BatchletRunner() as runner, Client(runner) as client:
        client.wait_for_workers(runner.n_workers + 2, timeout=60)
        print("ready", flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("end", ["done", "killed"])
def test_a_run_of_one_node_is_joined_for_all_its_blocks_and_its_guests_see_its_end(place: Place, end: str):
    before = place.files()
    # In salloc the ranks meet through a pipe: the record is there for guests alone.
    how = ["srun", "-n3"] if end == "done" else ["salloc"]
    command = [*how, "-N1", "--exclusive", sys.executable, place.script(BLOCKS), end]
    run = Running(place, *command, env=options(join="true", workers_per_node=2))
    name = run_name(run)
    record = place.cwd / ".batchlet" / f"{name}.json"
    assert record.stat().st_mode & 0o777 == 0o600
    # Three tasks, two workers (workers_per_node).
    guest = Running(place, "srun", "-N1", "-n3", "-c1", "--mem-per-cpu=300M", *JOIN, name, name="guest-")
    if end == "killed":
        run.wait_for("ready", 60)
        run.rank(0).kill()
    code = 81 if end == "killed" else 0
    assert run.process.wait(60) == code, run.stderr
    assert "block 0 0\nblock 1 1\n" in run.stdout, f"{run.stdout}\n{run.stderr}\n{guest.stderr}"
    assert guest.process.wait(20) == code, guest.stderr
    assert len([line for line in guest.stderr.splitlines() if line.startswith("batchlet: ")]) == 2, guest.stderr
    assert "Traceback" not in guest.stderr
    for scratch in place.tmp.glob("batchlet-*") if end == "killed" else ():
        # Slurm has killed the agent of the only rank, and what removes its scratch.
        shutil.rmtree(scratch)
    place.assert_nothing_left(before, run.stderr)


TIME = """
import json, os, sys, time
from batchlet import BatchletRunner
from dask.distributed import Client

def mark(i, log=sys.argv[1], seconds=0.0):
    with open(f"{log}/{i}-{time.monotonic_ns()}", "w"):
        time.sleep(seconds)
        return i * i

with BatchletRunner(join=True) as runner, Client(runner) as client:
    def others():
        workers = client.scheduler_info(n_workers=-1)["workers"]
        return [address for address, worker in workers.items() if str(worker["name"]).startswith("slurm-")]

    def until(condition, seconds):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, client.scheduler_info(n_workers=-1)
            time.sleep(0.1)

    until(others, 60)
    kept = client.map(mark, range(20), workers=others(), allow_other_workers=True)
    client.gather(kept)
    # A task that is under way when the time comes, and more than can be done by then.
    slow = client.map(mark, range(100, 140), seconds=4.0, workers=others(), allow_other_workers=True)
    until(lambda: not others(), 120)
    print("left", flush=True)
    assert client.gather(kept) == [i * i for i in range(20)]
    assert client.gather(slow) == [i * i for i in range(100, 140)]
    names = [int(name.split("-")[0]) for name in os.listdir(sys.argv[1])]
    print("RESULT", json.dumps(sorted({i for i in names if names.count(i) > 1})))
"""


def test_nodes_leave_before_their_own_job_ends_and_nothing_is_computed_twice(place: Place):
    log = place.base / "log"
    log.mkdir()
    run = Running(place, "srun", "-N1", "-n4", "--mem=600M", sys.executable, place.script(TIME), str(log))
    name = run_name(run)
    guest = Running(place, "srun", "-N1", "-n1", "-c3", "--mem=500M", "--time=1", *JOIN, name, name="guest-")
    guest.process.wait(150)
    # By itself, before Slurm's SIGTERM: that would be 143.
    assert guest.process.returncode == 0, guest.stderr
    assert re.search(rf"batchlet: leaves run {name}: this job ends at [\d:]+ \(scontrol show job", guest.stderr), (
        guest.stderr
    )
    assert run.process.wait(120) == 0, f"{run.stdout}\n{run.stderr}"
    assert json.loads(json_line(run.stdout)) == [], run.stdout
    assert "Traceback" not in run.stderr + guest.stderr, f"{run.stderr}\n{guest.stderr}"


LEAVES = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import mine
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner(join=True, worker_class=mine.Worker) as runner, Client(runner) as client:
    while not os.path.exists(sys.argv[1] + "/leave"):
        time.sleep(0.02)
    began = time.monotonic()
print("RESULT", time.monotonic() - began, flush=True)
"""
# What a guest imports of the user's before it can say which workers it will have.
SLOW = """
import os, pathlib, time
from distributed import Nanny

here = pathlib.Path(__file__).parent
if "SLOW_GUEST" in os.environ:
    (here / "imports").touch()
    while not (here / "imported").exists():
        time.sleep(0.05)

class Worker(Nanny):
    pass
"""


def test_the_end_of_a_block_waits_for_no_guest_that_has_no_workers_yet(place: Place):
    (place.base / "mine.py").write_text(SLOW)
    env = options(join="true", stop_timeout=60)
    run = Running(place, "srun", "-n3", "--mem=600M", sys.executable, place.script(LEAVES), str(place.base), env=env)
    name = run_name(run)
    command = ["srun", "-n1", "-c2", "--mem=400M", *JOIN, name]
    guest = Running(place, *command, name="guest-", env={"SLOW_GUEST": "1"})
    eventually((place.base / "imports").exists, 90, lambda: guest.stderr + run.stderr)
    (place.base / "leave").touch()
    run.wait_for("RESULT", 90)
    (place.base / "imported").touch()
    assert run.process.wait(90) == 0, run.stderr
    assert guest.process.wait(90) == 0, guest.stderr
    assert float(json_line(run.stdout)) < 30, run.stderr
    assert "Traceback" not in run.stderr + guest.stderr, f"{run.stderr}\n{guest.stderr}"
