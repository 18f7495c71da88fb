"""What workers, their hosts and the scheduler say at level warning and above: each line has its rank and node."""

from __future__ import annotations

import json
import re

import pytest
from run_helpers import WORKLOADS, Place, Run, json_line

pytestmark = pytest.mark.slurm


def test_each_line_has_its_rank_and_node(srun: Run, place: Place) -> None:
    """Workers on two nodes, one of which dies after its last words, hosts, and the scheduler; the report has them too."""
    reports = place.base / "reports"
    env = {"BATCHLET_DASK_CLUSTER__REPORT": str(reports)}
    result = srun("-N2", "-n6", script=WORKLOADS / "speaks.py", argv=["runner", "0"], env=env, timeout=120)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    nodes = {str(name): node for name, (_, node) in found["workers"].items()}
    ranks = {str(name): rank for name, (rank, _) in found["workers"].items()}
    assert all(name == rank for name, rank in ranks.items()), found
    assert len(set(nodes.values())) == 2, found
    first, died = str(found["first"]), str(found["died"])
    head = next(
        re.findall(r"scheduler, rank 0, node (\S+)", line)[0] for line in found["lines"] if " scheduler," in line
    )
    for who, text in (
        (f"worker {first}, node {nodes[first]}", r"mine - WARNING - worker: by a logger"),
        (f"worker {first}, node {nodes[first]}", r"py\.warnings - WARNING - UserWarning: worker: as a warning \(.+\)"),
        (f"worker {died}, node {nodes[died]}", r"mine - ERROR - last words"),
        (
            f"worker {died}, node {nodes[died]}",
            r"distributed\.nanny - ERROR - worker process \d+ was killed by SIGKILL .*",
        ),
        (f"host of the workers, node {nodes[died]}", r"distributed\.nanny - WARNING - host: by Dask's logger"),
        (f"scheduler, rank 0, node {head}", r"distributed\.scheduler - ERROR - scheduler: by Dask's logger"),
        (f"scheduler, rank 0, node {head}", r"alone - CRITICAL - scheduler: by a logger that keeps it to itself"),
        (f"scheduler, rank 0, node {head}", r"py\.warnings - WARNING - UserWarning: scheduler: as a warning \(.+\)"),
    ):
        matching = [line for line in found["lines"] if re.fullmatch(f"[^a-z]* - {re.escape(who)} - {text}", line)]
        assert len(matching) == 1, (who, text, str(result))
    kept = json.loads((reports / "report.json").read_text())
    (last,) = [line for line in kept["logs"] if line["text"] == "last words"]
    assert 0 < last.pop("at") < kept["time"]["ended"], (last, kept["time"])
    assert last == {
        "level": "error", "who": f"worker {died}", "rank": int(died), "node": nodes[died], "logger": "mine",
        "text": "last words",
    }  # fmt: skip
    assert len(kept["logs"]) == sum(bool(re.match(r"\d{4}-", line)) for line in found["lines"])
    # Nothing is printed that was not before, and nothing twice.
    for text in ("worker: as a warning", "scheduler: as a warning", "host: by Dask's logger", "last words"):
        assert result.stderr.count(text) == 1, (text, str(result))
