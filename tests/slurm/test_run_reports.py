"""The report of a run, however it ends: it is there, whole, of the schema's form, and says what has happened."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import FAULTS, Running, in_step, options
from run_helpers import Place, Run, eventually, json_line, report_of, unavailable

pytestmark = pytest.mark.slurm

KILL = int(signal.SIGKILL)


def private_report_of(directory: Path) -> dict[str, Any]:
    """Read the report, which must be whole and for its owner alone."""
    path, found = directory / "report.json", report_of(directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.resolve().parent.stat().st_mode) == 0o700
    left = [entry for entry in path.resolve().parent.iterdir() if entry.name.endswith("~")]
    assert left == []
    return found


def kill_all(running: Running) -> None:
    """Kill all processes of the step in one moment."""
    for process in [process for process in running.place.processes() if in_step(process)]:
        os.kill(process.pid, KILL)


def strike(number: int, rank: int) -> Callable[[Running], object]:
    return lambda running: running.signal(number, rank)


@dataclass(frozen=True)
class Ending:
    """A way to end, and what the report says of it: state, class of the error, exit code; texts of its events."""

    args: str
    state: str
    kind: str | None = None
    exit_code: int | None = None
    events: tuple[str, ...] = ()
    act: Callable[[Running], object] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    within: float = 30


ENDINGS = {
    "done": Ending("fine", "done", exit_code=0),
    "exception": Ending("raises", "ended", "ValueError", 1, ("of the user",)),
    "sys.exit(3)": Ending("exits 3", "ended", "SystemExit", 3),
    "os._exit": Ending("exits-hard", "failed", "ClientLost", None, ("ended without leaving",)),
    "client killed": Ending(f"signals-itself {KILL}", "failed", "ClientLost", None, ("ended without leaving",)),
    "scancel": Ending("sleeps", "ended", "TerminatedError", 143, ("SIGTERM",), act=lambda running: running.scancel()),
    "deaf": Ending(
        "ignores-sigterm", "ended", "TerminatedError", 143, ("SIGTERM",),
        act=lambda running: running.scancel(), env=options(grace=2, stop_timeout=4),
    ),
    "time is up": Ending("sleeps", "ended", "TimeIsUpError", 84, ("time is up",), env=options(time_limit=15, stop_before=12)),
    "worker killed": Ending("worker-killed", "done", None, 0, ("was killed by SIGKILL",)),
    "scheduler killed": Ending(
        "waits", "failed", "ClusterLostError", 81, ("was killed by SIGKILL",), act=lambda running: running.scheduler().kill()
    ),
    "rank 0 killed": Ending("waits", "failed", "ClusterLostError", 81, ("is lost",), act=strike(KILL, 0)),
    "a rank killed": Ending("works-on", "done", None, 0, ("rank 3",), act=lambda running: lose_rank(running)),
    "all killed": Ending("sleeps", "running", None, None, act=kill_all),
}  # fmt: skip


def lose_rank(running: Running) -> None:
    running.signal(KILL, 3)
    running.wait_for("rank 3 on node")
    running.go_on()


@pytest.mark.parametrize("name", list(ENDINGS))
def test_a_run_has_its_report_however_it_ends(place, tmp_path, name):
    ending = ENDINGS[name]
    # Slurm ends the step with its first task that is killed, unless it is told not to.
    command = ["srun", "-n4", "--kill-on-bad-exit=0", sys.executable, str(FAULTS), *ending.args.split()]
    running = Running(place, *command, env={**options(report=tmp_path / "reports"), **ending.env})
    try:
        running.wait_for("strike")
        if ending.act is not None:
            eventually(lambda: (tmp_path / "reports" / "report.json").exists(), 30, lambda: running.stderr, pause=0.1)
            ending.act(running)
        result = running.finish(ending.within)
    finally:
        running.end()
    found = private_report_of(tmp_path / "reports")
    outcome = found["outcome"]
    said = f"{json.dumps(outcome)}\n{json.dumps(found['events'])}\n{result}"
    assert (outcome["state"], (outcome["error"] or {}).get("kind"), outcome["exit_code"]) == (
        ending.state, ending.kind, ending.exit_code,
    ), said  # fmt: skip
    for text in ending.events:
        assert any(text in event["text"] for event in found["events"]), said
    assert found["time"]["ready"] is not None
    assert (found["time"]["ended"] is None) == (ending.state == "running")
    assert set(found["workers"]) == {"2", "3"}
    assert found["run"]["ranks"] == 4
    assert "no report" not in result.stderr


JOINED = """
import logging
from batchlet.early import BatchletRunner
from dask.distributed import Client

def speak():
    logging.getLogger("mine").warning("of a guest")

with BatchletRunner(join=True) as runner, Client(runner) as client:
    client.wait_for_workers(runner.n_workers + 1, timeout=90)
    names = [str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    client.submit(speak, workers=[name for name in names if name.startswith("slurm-")]).result()
    while "Warnings" not in runner.get_logs():
        pass
    raise ValueError("mine")
"""


def test_nodes_of_another_job_are_in_the_report_of_the_run_that_they_have_joined(place: Place, tmp_path):
    run = Running(
        place, "srun", "-n3", "--mem=600M", sys.executable, place.script(JOINED),
        env=options(report=tmp_path / "reports", join="true"),
    )  # fmt: skip
    run.wait_for("more nodes: ", 90)
    name = run.stderr.partition("more nodes: python -m batchlet join ")[2].split()[0]
    join = (sys.executable, "-m", "batchlet", "join", name)
    guest = Running(place, "srun", "-n1", "-c2", "--mem=400M", *join, name="guest-")
    assert run.process.wait(120) == 1, f"{run.stderr}\n{guest.stderr}"
    assert guest.process.wait(60) == 0, guest.stderr
    found = private_report_of(tmp_path / "reports")
    [(joined, worker)] = [(name, worker) for name, worker in found["workers"].items() if name != "2"]
    assert (worker["rank"], worker["threads"], worker["tasks"]) == (None, 2, 1), worker
    assert worker["cpu_seconds"] > 0, worker
    # On the run's own node it comes on top of what the run was granted there.
    node = found["nodes"][worker["node"]]
    of_run = node["figures"]["cpus"]["value"] if node["figures"] else 0
    assert node["cpus"] == of_run + 2, node
    [line] = found["logs"]
    assert (line["who"], line["rank"], line["node"], line["text"]) == (
        f"worker {joined}", None, worker["node"], "of a guest",
    ), line  # fmt: skip
    assert (found["outcome"]["state"], found["outcome"]["exit_code"], found["run"]["ranks"]) == ("ended", 1, 3)
    assert any("joins with its workers" in event["text"] for event in found["events"]), found["events"]
    shown = place.run_only(sys.executable, "-m", "batchlet", "report", str(tmp_path / "reports"))
    assert joined in shown.stdout, shown
    # The second job is no part of this run's plan.
    assert shown.stdout.count("The plan. ") == 1, shown


USE = """
import contextlib, glob, json, os, subprocess, sys, time
from batchlet.early import BatchletRunner

def step():
    of_us = [line.split(":")[2].strip() for line in open("/proc/self/cgroup") if "cpuacct" in line][0]
    return of_us.rsplit("/task", 1)[0]

def used():
    of_memory = [line.split(":")[2].strip() for line in open("/proc/self/cgroup") if ":memory:" in line][0]
    return (int(open(f"{ROOT}/cpuacct{step()}/cpuacct.usage").read()) / 1e9,
            int(open(f"{ROOT}/memory{of_memory.rsplit('/task', 1)[0]}/memory.max_usage_in_bytes").read()))

def half_busy(cpu, size):
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    end = time.thread_time() + cpu
    while time.thread_time() < end:
        began, before = time.monotonic(), time.thread_time()
        while time.thread_time() - before < 0.2:
            pass
        time.sleep(time.monotonic() - began)

def burn():
    code = "import time\\nwhile time.process_time() < 2: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)

if __name__ == "__main__":
    ROOT = sys.argv[1]
    with BatchletRunner() as runner:
        from dask.distributed import Client
        with Client(runner) as client:
            [(worker, began)] = client.run(lambda: (os.getpid(), sum(os.times()[:4]))).values()
            def others():
                # What the kernel counts too: scheduler, client, the host of the worker, rank 0, shells.
                total = 0
                for path in glob.glob(f"{ROOT}/cpuacct{step()}/**/cgroup.procs", recursive=True):
                    for pid in set(open(path).read().split()) - {str(worker)}:
                        with contextlib.suppress(OSError):
                            times = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[11:13]
                            total += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
                return total
            before, others_before = used(), others()
            futures = [client.submit(half_busy, 5, 1_000_000_000, workers=2), client.submit(burn, workers=2)]
            client.gather(futures)
            after, others_after = used(), others()
            cpu = began + after[0] - before[0] - (others_after - others_before)
            print("RESULT " + json.dumps({"cpu": cpu, "memory": after[1]}), flush=True)
"""


@pytest.mark.timeout(900)
def test_the_figures_agree_with_the_kernels_account_of_the_step(cluster: SlurmCluster, srun: Run, tmp_path):
    """A load of known size: one worker busy half of its time with 1 GB in memory, and a program that burns two seconds."""
    if not (cluster.memory_enforced and Path("/sys/fs/cgroup/cpuacct").is_dir()):
        unavailable("the control groups of this machine do not count CPU time and memory apart (version 1)")
    result = srun(
        "-N1", "-n4", "--mem=4000M", script=USE, argv=["/sys/fs/cgroup"], timeout=400,
        env=options(report=tmp_path, memory_per_worker="1800MiB"),
    )  # fmt: skip
    assert result.rc == 0, str(result)
    kernel = json.loads(json_line(result.stdout))
    found = report_of(tmp_path)
    said = f"{kernel}\n{json.dumps(found['use'])}\n{json.dumps(found['workers'])}\n{result}"
    # The kernel's figure is of all processes of the step, less those that are not the worker's.
    assert found["use"]["cpu_seconds"] == pytest.approx(kernel["cpu"], rel=0.05), said
    assert found["use"]["memory_peak_worker"] == "2", said
    # What Python, Dask and the other processes have, which the kernel counts too, is some part of 100 MB.
    assert found["workers"]["2"]["memory_peak"] == pytest.approx(1.06e9, rel=0.05), said
    assert found["workers"]["2"]["memory_peak"] <= kernel["memory"] * 1.05, said
    [node] = found["nodes"].values()
    assert max(node["used"]) >= 1e9, said
    group = next(group for group in found["task_groups"] if group["name"] == "half_busy")
    assert group["seconds"] >= 9, said
    end = next(line for line in result.errors if line.startswith("batchlet: done after"))
    share = round(100 * found["use"]["cpu_fraction"])
    assert any(f"CPUs {one} % busy" in end for one in (share - 1, share, share + 1)), end
    assert "(worker 2)" in end
