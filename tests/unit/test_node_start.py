"""Raw inputs arrive as they were sent, mean the same to everybody, and a process of ours ends when its starter is gone."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchlet.errors import SettingsError, UsageError
from batchlet.node import inputs
from batchlet.node.resolve import resolve
from batchlet.node.start import RANK, command, start_agent
from batchlet.node.wait import AGENT, AGENT_ENVIRONMENT

from .shapes import STEPS

TASK = dict(STEPS["mem"].tasks[2].env)


def launch(options: object, **more: object) -> dict:
    return inputs.for_agent(options, time.monotonic() + 30.0, **more)


def test_what_is_written_is_read_in_order_and_then_comes_the_end():
    stream = io.BytesIO(inputs.encode({"key": "value"}) + inputs.encode({"list": [1, None, b"x"]}))
    assert inputs.read(stream) == {"key": "value"}
    assert inputs.read(stream) == {"list": [1, None, b"x"]}
    with pytest.raises(EOFError):
        inputs.read(stream)


@pytest.mark.parametrize("kept", [1, 3, 4, 10, 999])
def test_half_a_message_is_the_end(kept):
    with pytest.raises(EOFError):
        inputs.read(io.BytesIO(inputs.encode({"key": "x" * 1000})[:kept]))


def test_a_large_message_arrives_whole():
    (word,) = inputs.read(io.BytesIO(inputs.encode({"key": "x" * 3_000_000}))).values()
    assert len(word) == 3_000_000


def test_a_rank_says_what_decides_where_its_workers_may_live():
    words = inputs.of_this_rank({"A": "b"}, record={"port": 1}, layout=[[0, 1], 1])
    assert (words["environ"], words["record"], words["layout"]) == ({"A": "b"}, {"port": 1}, [[0, 1], 1])
    assert words["python"][0] == sys.executable
    assert words["cpus"] == sorted(os.sched_getaffinity(0))
    assert all("/task_" not in line for line in words["cgroups"])


def test_options_mean_to_the_agent_what_they_mean_to_the_rank():
    rank = resolve(launch({"workers_per_node": 2, "start_timeout": "1 min"}), TASK)
    assert (rank.settings.workers_per_node, rank.settings.sources["workers_per_node"]) == (2, "workers_per_node=")
    assert (rank.info.rank, rank.role, rank.participant) == (2, "worker", "2")
    assert rank.deadline == pytest.approx(time.monotonic() + 30.0, abs=5.0)


def test_a_command_line_means_to_the_agent_what_it_means_to_the_rank(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    rank = resolve(launch(["--workers-per-node", "2", "--timeline", str(script), "--grace", "1"]), TASK)
    assert (rank.settings.workers_per_node, rank.settings.timeline, rank.settings.grace) == (2, True, 20.0)
    assert sys.path[0] == str(tmp_path)
    with pytest.raises(UsageError):
        resolve(launch(["no-such-script.py"]), TASK)


def test_what_is_wrong_in_the_input_is_wrong_for_the_agent_too():
    with pytest.raises(SettingsError):
        resolve(launch({"workers_per_node": 0}), TASK)


def test_a_layout_that_the_ranks_have_found_wins_over_the_variables():
    rank = resolve(launch({}, layout=[[2, 5], 7]), TASK)
    assert (rank.info.local_ranks, rank.info.nodes) == ((2, 5), 7)


def test_the_clock_of_another_node_is_another_one():
    words = launch({}) | {"until": -1e9}
    assert resolve(words, TASK, from_elsewhere=True).deadline == pytest.approx(time.monotonic() + 30.0, abs=5.0)


def test_a_class_of_the_users_main_module_travels_by_value():
    program = """
import sys
from batchlet.node import inputs
class Mine:
    def __repr__(self): return "mine, by value"
sys.stdout.buffer.write(inputs.encode(inputs.for_agent({"worker_class": Mine, "worker_options": {"key": Mine()}}, 1.0)))
"""
    sent = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60).stdout
    options, config = inputs.unpack_options(inputs.read(io.BytesIO(sent)))
    assert repr(options["worker_class"]()) == repr(options["worker_options"]["key"]) == "mine, by value"
    assert config is None


def test_daskconfiguration_travels_where_the_script_has_imported_dask():
    program = """
import sys, dask
from batchlet.node import inputs
dask.config.set({"my.key": 5})
sys.stdout.buffer.write(inputs.encode(inputs.for_agent({}, 1.0)))
"""
    sent = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60).stdout
    _, config = inputs.unpack_options(inputs.read(io.BytesIO(sent)))
    assert config["my"] == {"key": 5}


@pytest.mark.parametrize("kind", [AGENT, RANK])
def test_a_process_of_ours_without_a_starter_ends_at_once_and_silently(kind):
    began = time.monotonic()
    done = subprocess.run(command(kind), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert time.monotonic() - began < 20


def test_the_command_line_says_what_the_process_is_and_nothing_of_its_orders():
    python, flag, code, kind = command(AGENT)
    assert (python, flag, kind) == (sys.executable, "-c", "batchlet.node.agent")
    assert command(RANK)[2] == code


def agent(orders: dict, cwd: Path | None = None, **environ: str) -> tuple[subprocess.Popen, socket.socket]:
    """Start an agent over a pair of sockets, in a directory; gives the other end too."""
    ours, theirs = socket.socketpair()
    here = Path.cwd()
    try:
        os.chdir(cwd or here)
        clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        process = start_agent({**orders, "socket": theirs.fileno(), "listens": False}, {**clean, **TASK, **environ})
    finally:
        os.chdir(here)
        theirs.close()
    return process, ours


def test_an_agent_ends_with_its_starter(tmp_path):
    """It waits for rank 0, which is not there; nobody attaches, and the one who could is gone."""
    process, ours = agent(launch({"rendezvous_dir": str(tmp_path / "meet"), "local_directory": str(tmp_path)}))
    ours.close()
    try:
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()


def test_an_agent_that_finds_something_wrong_in_the_input_ends_with_2_and_leaves_it_to_rank_0_to_say_so(capfd):
    process, ours = agent(launch({"workers_per_node": 0}))
    ours.close()
    assert process.wait(30) == 2
    assert capfd.readouterr().err == ""


def test_nothing_in_the_working_directory_is_imported_by_an_agent(tmp_path):
    """Whatever files lie there: a script with such neighbours would run without them, and so does what it starts."""
    for name in ("json", "dataclasses", "marshal", "batchlet", "asyncio"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    process, ours = agent(launch({"workers_per_node": 0}), cwd=tmp_path)
    ours.close()
    assert process.wait(30) == 2


def test_a_fork_server_begins_with_what_a_nanny_gives_its_worker():
    assert set(AGENT_ENVIRONMENT) >= {
        "MALLOC_TRIM_THRESHOLD_",
        "MALLOC_MMAP_THRESHOLD_",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    }
    assert json.dumps(AGENT_ENVIRONMENT)
