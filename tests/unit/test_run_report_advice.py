"""Advice: what is said, that what is to be typed would do, and that nothing is said on too little evidence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_reports import GIB, eventful, report

import batchlet
from batchlet.run_report.advice import advise
from batchlet.run_report.asking import rounded_memory, rounded_time

SCHEMA = json.loads((Path(batchlet.__file__).parent / "run_report" / "schema.json").read_text())


def said(made: dict[str, Any]) -> dict[str, str]:
    found = advise(made)
    jsonschema.validate(found, SCHEMA["properties"]["advice"])
    subjects = [piece["about"] for piece in found]
    assert len(subjects) == len(set(subjects)), "two pieces about one subject"
    return {piece["about"]: piece["text"] for piece in found}


def test_a_run_that_used_what_it_had_is_left_alone():
    assert said(report(busy=0.85, peak=0.55)) == {}


def test_a_third_of_the_memory_would_do():
    text = said(report(peak=0.2, limit=4 * GIB, threads=1))["memory"]
    assert text.startswith("A third of the memory would do: no worker had more than 20 % of its limit.")
    # 4 GiB for each CPU, of which a third is a little more than 1.25 GiB.
    assert "`--mem-per-cpu=1536M`" in text


@pytest.mark.parametrize(
    ("source", "typed"),
    [
        ("SLURM_MEM_PER_CPU x 4 CPUs", "`--mem-per-cpu=512M`"),
        ("SLURM_MEM_PER_NODE", "`--mem=1792M`"),
        ("scontrol show job 7", "`--mem=1792M`"),
        ("h_vmem (ulimit -v)", "`-l h_vmem=512M`"),
    ],
)
def test_what_to_type_is_what_was_typed_before(source, typed):
    made = report(peak=0.13, threads=2)
    for node in made["nodes"].values():
        node["figures"]["memory"]["source"] = source
    assert typed in said(made)["memory"]


def test_nobody_is_asked_for_less_memory_on_a_laptop():
    made = report(peak=0.1)
    made["run"]["mode"] = "local"
    for node in made["nodes"].values():
        node["figures"]["memory"]["source"] = "the host's memory"
    assert "memory" not in said(made)


def test_spilling_and_a_peak_close_to_the_limit_ask_for_more():
    found = said(eventful())
    assert "ask for `--mem-per-cpu=5G`" in found["spill"]
    assert "memory" not in found
    assert found["faults"].startswith("Worker 2 had to be started anew (2 times in all)")
    assert "close to its memory limit" in found["faults"]
    assert "came close to the memory limit (93 % of it)" in said(report(peak=0.93))["memory"]


def test_one_task_at_a_time_is_told_with_the_name_of_its_group():
    made = report(tasks=1.0, busy=0.3)
    made["task_groups"] = [made["task_groups"][0] | {"name": "fit_model", "tasks": 1, "seconds": 3500.0}]
    text = said(made)["cpu"]
    assert text.startswith(
        "Workers waited 100 % of the time for one task of `fit_model`, with 8 threads at hand: divide it"
    )
    made["task_groups"][0]["tasks"] = 500
    assert "one task at a time, of `fit_model`" in said(made)["cpu"]


def test_a_long_task_at_the_end_is_told_as_such():
    made = report(busy=0.4, samples=100, seconds=3600)
    for number, node in enumerate(made["nodes"].values()):
        node["tasks"] = [4.0] * 60 + ([1.0] if number == 0 else [0.0]) * 40
    made["task_groups"][0] |= {"name": "train", "tasks": 3, "seconds": 2000.0, "first": 2100.0, "last": 3600.0}
    text = said(made)["cpu"]
    assert "for one task of `train`, with 8 threads at hand, from 0:36:" in text
    assert "begin the long ones first" in text


def test_a_script_that_computes_by_itself_is_told():
    assert "no task was there for the workers" in said(report(tasks=0.0, busy=0.1))["cpu"]


def test_threads_that_wait_are_told_from_cpus_that_are_too_many():
    made = report(busy=0.3)
    assert "3 of 8 threads would have done" in said(made)["cpu"]
    for worker in made["workers"].values():
        worker["busy_seconds"] = worker["threads"] * 3500.0
    assert "`threads_per_worker=1`" in said(made)["cpu"]


def test_tiny_tasks_and_transfer_are_told():
    made = report()
    made["task_groups"] = [
        made["task_groups"][0] | {"name": "inc", "tasks": 200_000, "seconds": 60.0, "transfer_seconds": 0}
    ]
    assert said(made)["tasks"].startswith("200,000 tasks took 0.3 ms each on average")
    made = report()
    for group in made["task_groups"]:
        group["transfer_seconds"] = group["seconds"] * 2
    assert "fetched data from each other" in said(made)["transfer"]


def test_time_limits_far_and_close_and_met():
    made = report(seconds=600)
    made["time"]["limit"] = 24 * 3600.0
    assert "`--time=00:15:00`" in said(made)["time"]
    made["time"]["limit"] = 620.0
    assert "ended 20.0 s before its time limit of 00:10:20" in said(made)["time"]
    made["outcome"] |= {"state": "ended", "error": {"kind": "TimeIsUpError", "message": ""}}
    assert "requeue" in said(made)["time"]
    made["time"]["limit"] = 1200.0
    made["outcome"] |= {"state": "done", "error": None}
    assert "time" not in said(made)


def test_a_slow_start_and_idle_gpus_are_told():
    made = report(seconds=600)
    made["time"]["ready"] = 90.0
    made["timeline"] = {"workers of node n2": [["process started", 1.0], ["Dask imported", 80.0], ["ready", 90.0]]}
    assert "79.0 s of them passed before `Dask imported` (workers of node n2)" in said(made)["start"]
    made = report()
    for node in made["nodes"].values():
        node["gpu"] = [0.0] * len(node["at"])
    assert "idle" in said(made)["gpu"]


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


@st.composite
def reports(draw: Callable[..., Any]) -> dict[str, Any]:
    """Runs of all kinds, mostly unlikely ones."""
    nodes = draw(st.integers(1, 3))
    made = report(
        nodes=nodes,
        workers=draw(st.integers(0, 6)),
        samples=draw(st.integers(0, 40)),
        seconds=draw(st.one_of(number(0.1, 50), number(60, 1e5))),
        threads=draw(st.integers(1, 4)),
        busy=draw(number(0.0, 1.0)),
        peak=draw(number(0.0, 1.2)),
        tasks=draw(st.none() | st.sampled_from([0.0, 1.0, 3.0])),
        state=draw(st.sampled_from(["done", "ended", "failed", "running"])),
    )
    made["time"]["limit"] = draw(st.none() | number(1, 1e6))
    made["run"]["mode"] = draw(st.sampled_from(["slurm", "mpi", "local", "allocation", "jobs", "flux"]))
    made["use"]["spilled"] = draw(st.sampled_from([0, 1000, 5 * GIB]))
    if draw(st.booleans()):
        made["time"]["ready"] = draw(st.none() | number(0, made["time"]["updated"]))
    for worker in made["workers"].values():
        worker["restarts"] = draw(st.sampled_from([0, 0, 0, 2]))
        worker["busy_seconds"] *= draw(number(0, 2))
    for group in made["task_groups"]:
        group["tasks"] = draw(st.integers(0, 10**7))
        group["transfer_seconds"] *= draw(number(0, 40))
        group["first"], group["last"] = draw(st.sampled_from([(None, None), (0.0, 100.0), (5.0, 1.0)]))
    return made


@settings(max_examples=60)
@given(reports())
def test_advice_is_in_order_whatever_the_run_was(made):
    before = json.dumps(made)
    found = said(made)
    assert json.dumps(made) == before, "the report was changed"
    # Enough was seen.
    ready = made["time"]["ready"]
    lasted = 0.0 if ready is None else made["time"]["updated"] - ready
    if lasted < 60:
        assert set(found) <= {"faults", "time", "tasks", "start"}
    # More memory and less memory, or more time and less, are never asked for in one breath.
    assert not {"spill", "memory"} <= set(found)
    if made["outcome"]["state"] != "done":
        assert "would do" not in found.get("memory", "")
        assert "start sooner" not in found.get("time", "")
    assert all("nan" not in text and "inf " not in text for text in found.values())


@settings(max_examples=60)
@given(reports())
def test_the_memory_that_is_advised_holds_the_peak(made):
    text = said(made).get("memory", "")
    if match := re.search(r"--mem-per-cpu=(\d+)([GM])", text):
        asked = int(match[1]) << (30 if match[2] == "G" else 20)
        node = max(made["nodes"].values(), key=lambda each: each["memory"] / each["cpus"])
        before, peak = node["memory"] / node["cpus"], made["use"]["memory_peak_fraction"]
        assert asked >= before * min(peak, 1.0)
        assert (asked < before) == ("would do" in text)


@settings(max_examples=60)
@given(reports())
def test_the_time_that_is_advised_is_enough(made):
    text = said(made).get("time", "")
    if match := re.search(r"--time=(\d+):(\d+):00", text):
        asked = int(match[1]) * 3600 + int(match[2]) * 60
        assert asked >= made["time"]["updated"]
        if "start sooner" in text:
            assert asked < made["time"]["limit"]


@given(number(1, 1e13), number(1, 1e7))
def test_what_is_typed_is_rounded_up_and_not_by_much(size, seconds):
    assert size <= rounded_memory(size) <= max(256 << 20, 1.5 * size)
    assert seconds <= rounded_time(seconds) <= max(300, 1.5 * seconds)
