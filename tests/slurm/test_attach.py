"""Runs on Slurm, in all the ways in which ranks meet, and clusters of jobs, seen and used from the login node."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import Running, options
from jobs_helpers import Login
from run_helpers import Place, eventually, json_line, poll

pytestmark = pytest.mark.slurm

BATCHLET = (sys.executable, "-m", "batchlet")
RUN = """
import os, sys, time
from batchlet.early import BatchletRunner
from dask.distributed import Client

def say(*words):
    print(*words, flush=True)

def until(name):
    end = time.monotonic() + 100
    while not os.path.exists(f"{sys.argv[1]}/{name}"):
        assert time.monotonic() < end
        time.sleep(0.02)

for block in (1, 2):
    with BatchletRunner() as runner, Client(runner) as client:
        say("in block", block)
        until(f"leave-{block}")
        assert client.submit(abs, -block).result() == block
        assert client.scheduler_info()["workers"]
    say("after block", block)
    until(f"go-on-{block}")
"""


def register(place: Place) -> list[Path]:
    return list((place.base / "state" / "batchlet" / "runs").iterdir())


@pytest.mark.parametrize("how", ["srun", "allocation"])
def test_a_run_is_attached_to_in_each_of_its_blocks_and_its_end_waits_for_nobody(place: Place, how: str):
    before = place.files()
    # In an allocation without srun the ranks meet through a pipe: the record is there for visitors alone.
    launcher = ["srun", "-N2", "-n4"] if how == "srun" else ["salloc", "-N2", "-n2"]
    run = Running(
        place, *launcher, sys.executable, place.script(RUN), str(place.base),
        env=options(attach="true", workers_per_node=1),
    )  # fmt: skip
    try:
        run.wait_for("in block 1", 90)
        name = re.search(r"attach: python -m batchlet attach (\S+)", run.stderr)[1]  # type: ignore[index]
        record = place.cwd / ".batchlet" / f"{name}.json"
        assert record.stat().st_mode & 0o777 == 0o600
        assert [entry.readlink() for entry in register(place)] == [record]
        # From the login node, by the job's number.
        number = re.search(r" job (\d+)", run.stderr)[1]  # type: ignore[index]
        [listed] = json.loads(place.run_only(*BATCHLET, "ps", "--json").stdout)
        assert (listed["run"], listed["state"], listed["use"]["nodes"]) == (name, "alive", 2)
        assert f"job {number}" in listed["job"]
        code = "print(sorted(set(client.run(lambda: __import__('socket').gethostname()).values())))"
        used = place.run_only(*BATCHLET, "attach", number, "-c", code)
        assert (used.rc, used.stderr) == (0, ""), used
        assert len(json.loads(used.stdout.replace("'", '"'))) == 2
        link, tunnel = place.run_only(*BATCHLET, "dashboard", number).stdout.splitlines()
        port = re.match(r"http://localhost:(\d+)/[0-9a-f]{32}/status$", link)[1]  # type: ignore[index]
        assert re.fullmatch(rf"ssh -N -L {port}:localhost:{port} -J \S+ \S+n\d", tunnel)
        # One that stays, one that stands still, one that is killed, one that floods.
        top = Running(place, *BATCHLET, "top", name, "--interval=0.3", name="top-")
        waits = "import time; f = client.submit(time.sleep, 0); f.result(); print('here', flush=True); time.sleep(1000)"
        stays = [Running(place, *BATCHLET, "attach", name, "-c", waits, name=f"stays{n}-") for n in range(3)]
        for each in (top, *stays):
            each.wait_for("here" if each is not top else "2 workers on 2 nodes", 60)
        stays[0].process.send_signal(signal.SIGSTOP)
        stays[1].process.kill()
        flood = Running(place, sys.executable, place.script(FLOOD), str(record), name="flood-")
        flood.wait_for("flooding", 60)
        (place.base / "leave-1").touch()
        run.wait_for("after block 1", 60)
        assert "after block 1" in run.stdout, run.stderr
        stays[2].wait_for("has no cluster at the moment; its client is closed", 30)
        top.wait_for("no cluster at the moment", 30)
        refused = place.run_only(*BATCHLET, "attach", name, "-c", "1")
        assert refused.rc == 2
        assert "has no cluster at the moment. Its script is starting, or between two `with` blocks" in refused.stderr
        assert "no cluster at the moment" in place.run_only(*BATCHLET, "ps").stdout
        (place.base / "go-on-1").touch()
        run.wait_for("in block 2", 60)

        def used_again() -> bool:
            words = (name, "-c", "print(client.submit(abs, -2).result())")
            return place.run_only(*BATCHLET, "attach", *words).stdout == "2\n"

        eventually(used_again, 60, lambda: run.stderr)
        (place.base / "leave-2").touch()
        (place.base / "go-on-2").touch()
        assert run.process.wait(60) == 0, run.stderr
        assert top.process.wait(30) == 0
        assert top.stderr == f"batchlet: run {name} is over\n"
        assert "Traceback" not in run.stderr, run.stderr
        assert not [line for line in run.stderr.splitlines() if "visitor" in line]
        assert register(place) == []
    finally:
        place.kill_processes()
    place.assert_nothing_left(before, run.stderr)


# The owner's own process, gone mad: it proves who it is, and says whatever there is to say, without end.
FLOOD = """
import asyncio, sys
from pathlib import Path
from batchlet.control import messages as m
from batchlet.control.handshake import connect
from batchlet.control.wire import encode
from batchlet.rendezvous import CoordinatorRecord
from batchlet.security import pinned

record = CoordinatorRecord.from_json(Path(sys.argv[1]).read_text())

async def flood():
    hello = m.Hello("1", "visitor", "login", (0, 1, 2), ("1", "2"))
    _, writer, _ = await connect(record.host, record.port, record.secret, hello, pinned(record.certificate))
    said = b"".join(map(encode, (m.Ping(), m.Finish(), m.Done(), m.Stop(), m.Gone("2"), m.ReportFailure("PlanError", "no"))))
    while True:
        writer.write(said * 1000)
        print("flooding", flush=True)
        await writer.drain()

async def main():
    await asyncio.gather(*(flood() for _ in range(10)))

asyncio.run(main())
"""


def test_a_run_that_was_killed_on_its_nodes_is_recognised_and_its_record_removed(place: Place):
    env = options(attach="true")
    run = Running(place, "srun", "-N2", "-n4", sys.executable, place.script(RUN), str(place.base), env=env)
    run.wait_for("in block 1", 90)
    [record] = (place.cwd / ".batchlet").glob("*.json")
    watcher = Running(place, *BATCHLET, "attach", "-c", "import time; print(1, flush=True); time.sleep(100)", name="w-")
    watcher.wait_for("1\n", 60)
    for process in place.processes():
        if process.pid not in (watcher.process.pid, run.process.pid):
            process.kill()
    assert run.process.wait(60) != 0
    watcher.wait_for("its client is closed", 60)
    said = r"batchlet: run \S+ is lost: nothing is heard any more from node \S+; its client is closed\n"
    assert re.fullmatch(said, watcher.stderr), f"{watcher.stderr}\n{run.stderr}"
    place.kill_processes()
    if record.exists():
        listed = place.run_only(*BATCHLET, "ps")
        assert "batchlet: 1 record of runs that are over is removed" in listed.stderr, listed
    eventually(lambda: not record.exists(), 10)
    poll(lambda: not register(place), 10)
    assert place.run_only(*BATCHLET, "ps").stdout == ""
    assert register(place) == []
    for scratch in place.tmp.glob("batchlet-*"):
        shutil.rmtree(scratch)


CLUSTER = """
def attached(*words):
    done = subprocess.run([sys.executable, "-m", "batchlet", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout

with made(jobs=1) as cluster:
    cluster.wait_for_workers(2, 60)
    [listed] = json.loads(attached("ps", "--json"))
    assert (listed["run"], listed["job"], listed["use"]["workers"]) == (cluster.name, "slurm jobs", 2), listed
    said = attached("attach", "-c", "print(client.submit(abs, -5).result(), client.dashboard_link)")
    assert said == f"5 {cluster.dashboard_link}\\n", said
    assert "2 workers on 1 node" in attached("top", "--once")
    command = [sys.executable, "-m", "batchlet", "attach", "-c", "import time; print(1, flush=True); time.sleep(100)"]
    stays = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert stays.stdout.readline() == "1\\n"
    began = time.monotonic()
said = stays.stderr.readline()
stays.kill()
print("RESULT", json.dumps([said, cluster.name, time.monotonic() - began]))
"""


def test_a_cluster_of_jobs_is_attached_to_without_further_ado(cluster: SlurmCluster, place: Place):
    result = Login(cluster, place).run(CLUSTER, timeout=120)
    assert result.rc == 0, result
    said, name, _ = json.loads(json_line(result.stdout))
    assert said == f"batchlet: run {name} is over; its client is closed\n"
    assert register(place) == []
    assert "Traceback" not in result.stderr, result
