"""What workers, their hosts and the scheduler say at level warning and above is kept, and `get_logs` has it."""

from __future__ import annotations

import json
import re
import sys

import pytest
from run_helpers import WORKLOADS, Place, Result, json_line, report_of

SPEAKS = str(WORKLOADS / "speaks.py")
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def assert_kept(result: Result, worker: str, died: str, host: str, scheduler: str) -> dict:
    """Each line is there once, with its process and node, and was printed once, as ever."""
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    lines = found["lines"]
    expected = [
        (worker, "mine - WARNING - worker: by a logger"),
        (worker, "alone - CRITICAL - worker: by a logger that keeps it to itself"),
        (worker, r"py\.warnings - WARNING - UserWarning: worker: as a warning \(.+\)"),
        (worker, "mine - ERROR - worker: with a traceback"),
        (worker, r"mine - WARNING - worker: (long )+\S* ?\[\.\.\. \d+ characters \.\.\.\].*long *"),
        (died, "mine - ERROR - last words"),
        (
            died,
            r"distributed\.nanny - ERROR - worker process \d+ was killed by SIGKILL on node \S+; it is started again",
        ),
        (host, r"distributed\.nanny - WARNING - host: by Dask's logger"),
        (scheduler, r"distributed\.scheduler - ERROR - scheduler: by Dask's logger"),
    ]
    for who, text in expected:
        matching = [line for line in lines if re.fullmatch(f"{MOMENT} - {who} - {text}", line)]
        assert len(matching) == 1, (who, text, lines, str(result))
    assert "ZeroDivisionError: division by zero" in lines, lines
    assert not any("not worth keeping" in line for line in lines), lines
    # Printed once, as without all this.
    for text in (*(f"{who}: as a warning" for who in ("worker", "scheduler")), "host: by Dask's logger"):
        assert result.stderr.count(text) == 1, (text, str(result))
    return found


def test_what_is_said_locally_is_kept_and_a_flood_of_it_costs_next_to_nothing(place: Place) -> None:
    """Also after a worker's death, and with a million lines, of which the newest are kept."""
    env = {"BATCHLET_DASK_CLUSTER__REPORT": str(place.base / "reports")}
    result = place.run(sys.executable, SPEAKS, "runner", "1000000", env=env, timeout=200)
    found = json.loads(json_line(result.stdout))
    node = "node " + next(iter(found["workers"].values()))[1].split(".")[0]
    assert_kept(
        result, f"worker {found['first']}, {node}", f"worker {found['died']}, {node}", f"host of the workers, {node}",
        f"scheduler, {node}",
    )  # fmt: skip
    assert found["clean"] == ["Cluster", "Scheduler"], found
    assert "Warnings" in found["keys"], found
    assert 50 < len(found["lines"]) < 300, found
    dropped = re.fullmatch(r"(\d+) more lines not kept", found["lines"][-1])
    assert dropped, found["lines"][-1]
    assert int(dropped[1]) > 950_000, found["lines"][-1]
    kept = report_of(place.base / "reports")
    assert kept["workers"][str(found["died"])]["restarts"] == 1, kept["workers"]
    assert [event["kind"] for event in kept["events"] if "was killed by SIGKILL" in event["text"]] == ["worker"], kept
    assert kept["logs_dropped"] == int(dropped[1]), (kept["logs_dropped"], found["lines"][-1])
    assert any(int(number) > 100_000 for number in re.findall(r"line (\d+) of the flood", "\n".join(found["lines"])))


def test_what_is_said_in_jobs_is_kept(place: Place) -> None:
    pytest.importorskip("dask_jobqueue")
    result = place.run(sys.executable, SPEAKS, "cluster", "0", timeout=90)
    found = json.loads(json_line(result.stdout))
    node = "node " + next(iter(found["workers"].values()))[1].split(".")[0]
    assert re.search(r"jobs-", found["died"]), found
    # The log of a job of this kind goes nowhere, so that nothing is printed twice.
    assert_kept_in_jobs(found, node, result)


def assert_kept_in_jobs(found: dict, node: str, result: Result) -> None:
    lines = found["lines"]
    for who, text in (
        (f"worker {found['first']}", "mine - WARNING - worker: by a logger"),
        (f"worker {found['died']}", "mine - ERROR - last words"),
        ("host of the workers", "distributed.nanny - WARNING - host: by Dask's logger"),
        ("scheduler", "distributed.scheduler - ERROR - scheduler: by Dask's logger"),
    ):
        assert sum(f" - {who}, {node} - {text}" in line for line in lines) == 1, (who, text, lines, str(result))
