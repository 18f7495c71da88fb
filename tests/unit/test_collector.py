"""What processes tell becomes the report: every report has the form of the schema, and its sums are those of what was told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchlet
from batchlet.client.account import used_in
from batchlet.client.telling import ending
from batchlet.errors import ClusterLostError, TimeIsUpError, terminated
from batchlet.node.process_use import use_of_process
from batchlet.node.sampling import Pace, Sampler
from batchlet.run_report import prometheus
from batchlet.run_report.collector import Collector
from batchlet.run_report.series import Series
from batchlet.run_report.told import TOLD

SCHEMA = json.loads((Path(batchlet.__file__).parent / "run_report" / "schema.json").read_text())
VALID = jsonschema.Draft202012Validator(SCHEMA)
GIB = 1 << 30
BEGAN = 1_800_000_000.0


def collector(workers: int = 2, cpus: int = 4, limit: float = GIB) -> Collector:
    """A run of one node that is ready one second after its start."""
    made = Collector(BEGAN, {"python": "3.12"})
    made.about(id="r", mode="slurm", job="job 1", script=["a.py"], attempt=1, ranks=4)
    block(made, BEGAN, workers, cpus, limit)
    return made


def block(made: Collector, at: float, workers: int = 2, cpus: int = 4, limit: float = GIB) -> None:
    made.began(at)
    rows = [(str(number), number, 2, limit) for number in range(workers)]
    made.plan(at + 0.5, "n1", {"cpus": (cpus, "mask"), "memory": (4 * GIB, "cgroup")}, rows)
    made.ready(at + 1)


def checked(made: Collector, at: float) -> dict[str, Any]:
    """The report as it is read: valid, and without anything that JSON does not know."""
    found = json.loads(json.dumps(made.report(at), allow_nan=False))
    VALID.validate(found)
    return found


def test_a_report_has_the_form_of_the_schema_at_every_moment():
    made = Collector(BEGAN, {})
    checked(made, BEGAN)
    made = collector()
    checked(made, BEGAN + 1)
    made.sample(BEGAN + 2, "n1", {"0": [1.0, 100.0, 150.0, 0], "1": [0.5, 50.0, 50.0, 0]})
    made.traffic(BEGAN + 2, {"0": {"sent": 5, "spilled": 7, "executing": 1}})
    made.tasks({"inc": {"tasks": 3, "seconds": 1.5, "first": BEGAN + 1, "last": BEGAN + 2}})
    made.log(BEGAN + 2, "WARNING", "worker 0", 0, "n1", "distributed.worker", "hot")
    made.event(BEGAN + 2, "worker", "worker 1 died", "n1")
    made.marks("rank 0", [("process started", BEGAN - 1.0), ("ready", BEGAN + 1)])
    made.ended(BEGAN + 3, "ended", kind="ValueError", message="of the user", exit_code=1)
    found = checked(made, BEGAN + 4)
    assert found["time"] == {"began": BEGAN - 1, "ready": 2, "ended": 4, "updated": 5, "limit": None}
    assert found["outcome"] == {
        "state": "ended", "error": {"kind": "ValueError", "message": "of the user"}, "exit_code": 1, "blocks": 1,
    }  # fmt: skip
    assert found["use"]["cpu_seconds"] == 1.5
    assert found["use"]["cpu_granted_seconds"] == 8  # four CPUs, two seconds
    assert found["use"]["memory_peak_worker"] == "0"
    assert [line["text"] for line in found["logs"]] == ["hot"]


def test_the_first_ending_counts():
    made = collector()
    made.ended(BEGAN + 2, "failed", kind="ClusterLostError", message="gone", exit_code=81)
    made.ended(BEGAN + 3, "done", exit_code=0)
    assert checked(made, BEGAN + 4)["outcome"]["exit_code"] == 81


def test_blocks_add_up_and_the_end_line_is_about_its_own():
    made = collector()
    for number in range(3):
        at = BEGAN + 10 * number
        if number:
            block(made, at)
        made.sample(at + 2, "n1", {"0": [3.0, 10.0, 20.0 * (3 - number), 0]})
        made.tasks({"inc": {"tasks": 2, "seconds": 1.0}})
        made.traffic(at + 2, {"0": {"sent": 100, "tasks": 2}})
        made.ended(at + 5, "done", exit_code=0)
    assert made.use(BEGAN + 26, of_block=True)["cpu_seconds"] == 3.0
    assert made.use(BEGAN + 26, of_block=True)["memory_peak_fraction"] == round(20 / GIB, 4) or None
    found = checked(made, BEGAN + 26)
    assert found["use"]["cpu_seconds"] == 9.0
    assert found["use"]["cpu_granted_seconds"] == 3 * 4 * 4
    assert found["workers"]["0"]["sent"] == 300
    assert found["task_groups"][0]["tasks"] == 6
    assert found["outcome"]["blocks"] == 3


def test_a_node_counts_while_it_has_workers():
    made = collector()
    made.plan(BEGAN + 3, "n2", {}, [("g-0", 0, 2, GIB)])  # of a guest: two CPUs from the third second on
    made.lost(BEGAN + 5, ["g-0"])
    assert made.use(BEGAN + 11)["cpu_granted_seconds"] == 4 * 10 + 2 * 2
    made.lost(BEGAN + 6, ["0", "1"])
    assert made.use(BEGAN + 11)["cpu_granted_seconds"] == 4 * 5 + 2 * 2
    assert checked(made, BEGAN + 11)["workers"]["0"]["went"] == 6


def test_what_joins_on_a_node_of_the_run_comes_on_top_of_the_nodes_plan():
    made = collector()
    made.plan(BEGAN + 5, "n1", {}, [("slurm-2.0-0-0", None, 3, GIB)])
    made.ended(BEGAN + 11, "done")
    found = checked(made, BEGAN + 12)
    assert (found["nodes"]["n1"]["cpus"], found["nodes"]["n1"]["memory"]) == (4 + 3, 5 * GIB)
    assert found["use"]["cpu_granted_seconds"] == 4 * 10 + 3 * 6


def test_a_flood_of_lines_costs_its_own_process_alone():
    made = collector()
    made.log(BEGAN, "error", "worker 1", 1, "n1", "user", "the only one")
    for number in range(100_000):
        made.log(BEGAN, "warning", "worker 0", 0, "n1", "user", str(number))
    found = checked(made, BEGAN + 1)
    texts = [line["text"] for line in found["logs"]]
    assert texts[0] == "the only one"
    assert texts[-1] == "99999"
    assert len(texts) + found["logs_dropped"] == 100_001
    # A hundred of the one, and that of the other.
    assert len(texts) <= 101


def test_what_others_tell_is_stamped_here_and_only_what_may_be_told_is_taken():
    made = collector()
    made.take(BEGAN + 2, [["event", {"kind": "note", "text": "a"}], ["began", {}], ["_begin", {}]], "n7")
    made.take(BEGAN + 2, [["log", {
        "level": "error", "who": "scheduler", "rank": 0, "logger": "x", "text": "b", "at": BEGAN + 1,
    }]], "n7")  # fmt: skip
    found = checked(made, BEGAN + 3)
    assert found["events"][0] == {"at": 2.0, "kind": "note", "text": "a", "node": "n7"}
    assert (found["logs"][0]["at"], found["logs"][0]["node"]) == (1.0, "n7")
    assert found["outcome"]["blocks"] == 1
    assert "began" not in TOLD


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(4, 40),
    steps=st.lists(st.tuples(st.floats(0.2, 50), st.floats(0, 64), st.floats(0, 1e12)), min_size=1, max_size=300),
)
def test_thinning_keeps_cpu_time_peaks_and_the_last_moment(most, steps):
    series, at = Series(most), 0.0
    series.add(0.0, cpu=0.0, used=0.0, spilled=0.0, sent=0.0, tasks=0.0)
    total = 0.0
    for pause, cpu, memory in steps:
        at += pause
        total += pause * cpu
        series.add(at, cpu=cpu, used=memory, spilled=memory / 2, sent=at, tasks=1.0)
    found = series.columns(0.0)
    assert len(series) <= most
    assert found["at"] == sorted(found["at"])
    assert found["at"][-1] == pytest.approx(at, abs=0.01)
    assert max(found["used"]) == max(round(memory) for _, _, memory in steps)
    before = [0.0, *found["at"][:-1]]
    summed = sum((here - there) * cpu for here, there, cpu in zip(found["at"], before, found["cpu"], strict=True))
    assert summed == pytest.approx(total, rel=0.02, abs=0.02 * at)


def test_a_large_run_of_a_day_stays_small():
    made = Collector(BEGAN, {})
    made.about(id="r", mode="slurm", job="", script=[], attempt=1, ranks=512)
    made.began(BEGAN)
    for node in range(128):
        rows = [(f"{node}-{one}", node, 1, GIB) for one in range(4)]
        made.plan(BEGAN, f"n{node}", {"cpus": (4, "m"), "memory": (GIB, "m")}, rows)
    made.ready(BEGAN)
    for step in range(700):
        for node in range(128) if step % 70 == 0 else range(2):
            made.sample(BEGAN + 16 * step, f"n{node}", {f"{node}-0": [step, 1e9, 1e9, 0]})
    text = json.dumps(checked(made, BEGAN + 16_000))
    assert len(text) < 1_000_000
    nodes = json.loads(text)["nodes"]
    assert list(nodes)[:3] == ["n0", "n1", "n2"]
    assert len(nodes["n0"]["at"]) <= 72_000 / 128


def test_metrics_are_what_prometheus_reads():
    made = collector()
    made.about(job='a "job"\nof \\ mine')
    made.sample(BEGAN + 2, "n1", {"0": [1.25, 100.0, 150.0, 0]})
    text = prometheus.text(checked(made, BEGAN + 3))
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["batchlet_run_info"].samples[0].labels == {
        "run": "r", "mode": "slurm", "job": 'a "job"\nof \\ mine',
    }  # fmt: skip
    cpu = families["batchlet_worker_cpu_seconds"]
    assert (cpu.type, cpu.samples[0].value, cpu.samples[0].labels["node"]) == ("counter", 1.25, "n1")
    assert {sample.labels["state"]: sample.value for sample in families["batchlet_run_state"].samples}["running"] == 1
    assert all(name.startswith("batchlet_") for name in families)
    assert text.endswith("\n")


def lost(*_: object) -> SystemExit:
    return ClusterLostError("gone")


@pytest.mark.parametrize(
    ("error", "state", "code", "kind"),
    [
        (None, "done", 0, None),
        (SystemExit(0), "done", 0, None),
        (SystemExit(None), "done", 0, None),
        (SystemExit(3), "ended", 3, "SystemExit"),
        (SystemExit("text"), "ended", 1, "SystemExit"),
        (ValueError("x"), "ended", 1, "ValueError"),
        (KeyboardInterrupt(), "ended", 130, "KeyboardInterrupt"),
        (terminated(15), "ended", 143, "TerminatedError"),
        (TimeIsUpError("time is up"), "ended", 84, "TimeIsUpError"),
        (lost(), "failed", 81, "ClusterLostError"),
    ],
)
def test_each_way_to_leave_the_block_has_its_state_and_exit_code(error, state, code, kind):
    made = collector()
    made.take(BEGAN + 2, ending(error))
    outcome = checked(made, BEGAN + 3)["outcome"]
    assert (outcome["state"], outcome["exit_code"]) == (state, code)
    assert (outcome["error"] or {}).get("kind") == kind


USE = {"cpu_fraction": 0.812, "memory_peak_fraction": 0.709, "memory_peak_worker": "17", "spilled": 3 * GIB}


@pytest.mark.parametrize(
    ("use", "seconds", "text"),
    [
        (USE, 8000.0, "CPUs 81 % busy, memory peak 71 % (worker 17), 3.00 GiB spilled"),
        (USE, 5.0, "3.00 GiB spilled"),
        ({**USE, "spilled": 0}, 5.0, ""),
        ({**USE, "spilled": 1000}, 60.0, "CPUs 81 % busy, memory peak 71 % (worker 17)"),
        ({"cpu_fraction": None, "memory_peak_fraction": None, "spilled": 0}, 60.0, ""),
        ({}, 60.0, ""),
    ],
)
def test_the_end_line_says_what_was_used_once_that_means_something(use, seconds, text):
    assert used_in(use, seconds) == text


def test_looking_costs_a_bounded_part_of_a_cpu_and_becomes_rare():
    pace = Pace()
    pauses = []
    for _ in range(200):
        pauses.append(pace.pause)
        pace.looked(0.001)
    assert pauses[0] == 2
    assert pauses[-1] == 16
    assert Pace(nodes=1000).pause == 20
    slow = Pace()
    for _ in range(10):
        slow.looked(1.0)
    assert slow.pause == pytest.approx(200)


@pytest.mark.skipif(sys.platform != "linux", reason="as the kernel counts")
def test_a_process_is_seen_with_its_children_the_dead_ones_too():
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\n"
    code = (
        "import subprocess, sys\n"
        f"burn = {burn!r}\n"
        "subprocess.run([sys.executable, '-c', burn], check=True)\n"
        "held = bytearray(60_000_000)\n"
        "child = subprocess.Popen([sys.executable, '-c', burn + 'held = bytearray(50_000_000); print(1, flush=True); input()'],"
        " stdin=subprocess.PIPE)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        use = use_of_process(process.pid)
        process_seen = Sampler("n1", lambda: {"w": process.pid})
        told = dict(process_seen.sample())
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), 9)
    assert use is not None
    assert 0.8 <= use.cpu < 3
    assert use.memory > 110_000_000
    assert use.peak > 60_000_000
    assert told["sample"]["workers"]["w"][3] == 0
    assert use_of_process(process.pid) is None
    # What is known of one that has ended stays known.
    assert dict(process_seen.sample())["sample"]["workers"]["w"][:2] == [pytest.approx(use.cpu, abs=0.5), 0]


def test_a_worker_that_is_started_anew_keeps_what_it_has_used():
    pids = {"w": os.getpid()}
    sampler = Sampler("n1", lambda: pids)
    first = dict(sampler.sample())["sample"]["workers"]["w"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        pids["w"] = other.pid
        time.sleep(0)
        second = dict(sampler.sample())["sample"]["workers"]["w"]
    assert second[0] >= first[0]
    assert second[3] == 1
    made = collector()
    made.sample(BEGAN + 2, "n1", {"0": first})
    made.sample(BEGAN + 4, "n1", {"0": second})
    found = checked(made, BEGAN + 5)
    assert found["workers"]["0"]["restarts"] == 1
