"""Gridengine as users have it: the test cluster itself, a script in a job, and what is asked about jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster_gridengine import GridEngine
from cluster_processes import processes_of
from run_helpers import Place, eventually, reserved_instance

from batchlet.jobs.systems import Seen, batch_system

pytestmark = pytest.mark.gridengine

SYSTEM = batch_system("sge")
SCRIPT = """
import json, os
import batchlet
if __name__ == "__main__":
    with batchlet.BatchletRunner() as runner:
        client = runner.get_client()
        workers = client.scheduler_info()["workers"].values()
        total = client.submit(sum, range(10)).result()
        threads, memory = (sum(worker[name] for worker in workers) for name in ("nthreads", "memory_limit"))
        print(json.dumps([total, threads, memory, runner.time_left]))
"""


def test_a_script_in_a_job_keeps_to_the_slots_of_the_job(gridengine: GridEngine, place: Place) -> None:
    """Nothing binds the job to its slots: `NSLOTS` says how many threads, `h_vmem` how much memory, `h_rt` how long."""
    script = place.script(SCRIPT)
    command = f"PATH={os.environ['PATH']} exec {sys.executable} {script}"
    result = place.run_only(
        *gridengine.enter(
            "qsub",
            "-sync",
            "y",
            "-pe",
            "smp",
            "1",
            "-l",
            "h_vmem=6G,h_rt=3000",
            "-cwd",
            "-o",
            "out",
            "-e",
            "err",
            "-b",
            "y",
            "-shell",
            "y",
            command,
        ),
        timeout=40,
    )
    errors = (place.cwd / "err").read_text()
    assert result.rc == 0, f"{result}\n{errors}"
    total, threads, memory, left = json.loads((place.cwd / "out").read_text().splitlines()[-1])
    assert (total, threads) == (45, 1)
    assert 2950 < left < 3000
    assert memory <= min(6 * 2**30, psutil.virtual_memory().total)
    assert "batchlet: local: 1 worker x 1 thread" in errors


def test_what_jobs_do_and_have_ended_with_is_what_gridengine_says(gridengine: GridEngine, place: Place) -> None:
    """An array of which one job is killed, one that can never start, one that finds no output directory, one that fails."""

    def ask(command: list[str], parse: Callable[[str], dict[str, Seen]]) -> dict[str, Seen]:
        done = subprocess.run(
            gridengine.enter(*command), env=SYSTEM.environ(place.environ), cwd=place.cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, done
        return parse(done.stdout)

    def submit(*options: str, command: str = "sleep 1000") -> str:
        text = place.run_only(*gridengine.enter("qsub", "-terse", "-b", "y", *options, *command.split())).stdout
        return text.strip().partition(".")[0]

    def tell() -> dict[str, Seen]:
        return ask(SYSTEM.finished(ids), SYSTEM.parse_finished)

    array = submit(*" ".join(SYSTEM.array(2).directives).split())
    never = submit("-pe", "smp", "99")
    astray = submit("-o", "/nonexistent/", "-l", "h_rt=3600")
    fails = submit("-o", "/dev/null", command="false")
    first, second = SYSTEM.array_ids(array, 2)
    ids = [first, second, never, astray, fails]

    def settled() -> dict[str, Seen] | None:
        seen = ask(SYSTEM.query(ids), SYSTEM.parse)
        done = seen.get(first, Seen("unknown")).state == "running" and fails not in seen and seen[astray].stuck
        return seen if done and seen[never].reason else None

    seen = eventually(settled, 10, pause=0.3)
    assert (seen[second].state, seen[never].state, seen[astray].word) == ("running", "pending", "Eqw")
    assert "PE" in seen[never].reason
    assert "/nonexistent/" in seen[astray].reason
    assert seen[first].node in gridengine.node_names

    ended = subprocess.run(gridengine.enter(*SYSTEM.cancel(ids)), env=place.environ, capture_output=True, text=True)
    assert "has registered the job-array task" in ended.stdout
    eventually(lambda: not ask(SYSTEM.query(ids), SYSTEM.parse), 10, pause=0.3)
    became = eventually(lambda: finished if second in (finished := tell()) else None, 10, pause=0.3)
    assert (became[first].state, became[first].exit_code) == ("failed", -9)
    assert (became[fails].state, became[fails].exit_code) == ("failed", 1)


def test_a_cluster_comes_up_after_a_crash_and_leaves_nothing(gridengine: GridEngine) -> None:
    with reserved_instance("gridengine") as instance:
        assert instance != gridengine.instance
        other = GridEngine(instance, nodes=1)
        try:
            other.down()
            assert other.up()
            assert not other.up(), "a second `up` builds it again"
            other.call("qsub", "-b", "y", "sleep", "1000")
            pid = int((other.state_dir / "spool" / "qmaster" / "qmaster.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            again = GridEngine(instance, nodes=1)
            assert again.up()
            assert again.call("qstat").stdout == ""
        finally:
            other.down()
        assert not processes_of(str(other.state_dir))
        assert not other.state_dir.exists()
        assert Path("/var/lib/gridengine").is_dir()
        assert gridengine.is_up
