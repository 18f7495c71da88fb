"""Reports without a launcher, and in bad surroundings: the run goes on unharmed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest
from run_helpers import Place, eventually, report_of, unavailable

OPTION = "BATCHLET_DASK_CLUSTER__"

BLOCKS = """
import sys, time
from batchlet import BatchletRunner
from distributed import Client

if __name__ == "__main__":
    for number in range(2):
        with BatchletRunner(workers_per_node=1) as runner, Client(runner) as client:
            print(sum(client.gather(client.map(lambda one: one, range(4), pure=False))), flush=True)
            if number and sys.argv[1:] == ["raises"]:
                raise ValueError("of the user <b>")
            if sys.argv[1:] == ["sleeps"]:
                print("strike", flush=True)
                time.sleep(120)
"""
PLAIN = "import dask.delayed; print(sum(dask.compute(*[dask.delayed(abs)(one) for one in range(4)])))"


def test_all_blocks_of_a_process_are_one_report_and_every_file_is_there(place: Place, tmp_path):
    env = {OPTION + name: str(tmp_path / value) for name, value in (
        ("REPORT", "r"), ("METRICS", "run.prom"), ("PERFORMANCE_REPORT", "dask.html"),
    )}  # fmt: skip
    result = place.run(sys.executable, place.script(BLOCKS), "raises", env=env, timeout=120)
    assert result.rc == 1, str(result)
    found = report_of(tmp_path / "r")
    assert found["outcome"] == {
        "state": "ended", "exit_code": 1, "blocks": 2, "error": {"kind": "ValueError", "message": "of the user <b>"},
    }, str(result)  # fmt: skip
    assert sum(group["tasks"] for group in found["task_groups"]) == 8
    assert found["workers"]["0"]["tasks"] == 8
    assert found["use"]["cpu_seconds"] > 0
    assert "batchlet_run_state{" in (tmp_path / "run.prom").read_text()
    # The block ended by an exception, and Dask's own report is there all the same.
    assert "<html" in (tmp_path / "dask.html").read_text()
    page = (tmp_path / "r" / "report.html").read_text()
    assert "of the user &lt;b&gt;" in page
    assert sum("done after" in line or "ended by" in line for line in result.errors) == 2


# 64 MB go from one worker to the other, twice, which is told of with the heartbeats; in between the one that sends them dies.
DIES = """
import os, signal, time
from batchlet import BatchletRunner
from distributed import Client

def made(_):
    return bytes(64_000_000)

if __name__ == "__main__":
    with BatchletRunner(workers_per_node=2) as runner, Client(runner) as client:
        for number in range(2):
            if number == 1:
                pids = client.run(os.getpid)
                names = {address: one["name"] for address, one in client.scheduler_info(n_workers=-1)["workers"].items()}
                os.kill(next(pid for address, pid in pids.items() if names[address] == 0), signal.SIGKILL)
                time.sleep(5)
                client.wait_for_workers(2)
            first = client.submit(made, number, workers=[0])
            assert client.submit(len, first, workers=[1]).result() == 64_000_000
            time.sleep(5)
        print("both")
"""


def test_what_a_worker_has_sent_before_it_died_counts(place: Place, tmp_path):
    env = {OPTION + "REPORT": str(tmp_path)}
    result = place.run(sys.executable, place.script(DIES), env=env, timeout=120)
    assert result.rc == 0, str(result)
    assert result.stdout == "both\n", str(result)
    workers = report_of(tmp_path)["workers"]
    assert workers["0"]["restarts"] == 1, str(workers)
    assert 128_000_000 <= workers["0"]["sent"] < 136_000_000, str(workers)
    assert workers["0"]["went"] is None, str(workers)


def test_an_unmodified_script_has_its_report_where_it_was_started(place: Place):
    before = place.files()
    command = [sys.executable, "-m", "batchlet", "--report", "out", "-c", f"import os; os.chdir('/'); {PLAIN}"]
    result = place.run_only(*command, timeout=120)
    assert result.rc == 0, str(result)
    found = report_of(place.cwd / "out")
    assert (found["outcome"]["state"], found["run"]["mode"]) == ("done", "local")
    for path in sorted((place.cwd / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    (place.cwd / "out").rmdir()
    place.assert_nothing_left(before, result)


def test_a_process_that_is_killed_leaves_what_was_known(place: Place, tmp_path):
    with subprocess.Popen(
        [sys.executable, place.script(BLOCKS), "sleeps"],
        env={**place.environ, OPTION + "REPORT": str(tmp_path)}, cwd=place.cwd, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"6\n"
        eventually(lambda: (tmp_path / "report.json").exists(), 60, lambda: "no report", pause=0.1)
        process.send_signal(signal.SIGKILL)
    found = report_of(tmp_path)
    assert (found["outcome"]["state"], found["time"]["ended"]) == ("running", None)
    assert set(found["workers"]) == {"0"}
    eventually(lambda: not place.processes(), 30, lambda: str(place.processes()), pause=0.1)


@pytest.mark.parametrize("what", ["a file in its place", "no right to write", "a full disk"])
def test_where_nothing_can_be_written_the_run_is_not_harmed(place: Place, tmp_path, what):
    target, prefix = tmp_path / "reports", []
    if what == "a file in its place":
        target.write_text("mine")
    elif os.geteuid() != 0:
        unavailable("mounting a small file system, and taking a right away from root, takes root")
    else:
        target.mkdir()
        size = "4k" if what == "a full disk" else "1m,ro"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)], check=True)
        if what == "a full disk":
            (target / "taken").write_bytes(b"x" * 4096)
    try:
        env = {OPTION + "REPORT": str(target), OPTION + "METRICS": str(target / "run.prom")}
        result = place.run(*prefix, sys.executable, place.script(BLOCKS), env=env, timeout=120)
        left = [path.name for path in target.rglob("*")] if target.is_dir() else []
    finally:
        if target.is_dir():
            subprocess.run(["umount", str(target)], check=True)
    assert (result.rc, result.stdout) == (0, "6\n6\n"), str(result)
    lines = [line for line in result.errors if "the run goes on without" in line]
    assert len(lines) == 2, str(result)
    assert {line.split()[2] for line in lines} == {"report", "metrics"}
    assert not [name for name in left if name.endswith("~")]
    assert stat.S_ISREG(target.stat().st_mode) == (what == "a file in its place")
