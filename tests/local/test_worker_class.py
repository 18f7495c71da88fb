"""`worker_class`: whatever starts and ends as Dask's servers do may run workers."""

from __future__ import annotations

import json
import sys

import pytest
from run_helpers import WORKLOADS, Place, json_line

KINDS = WORKLOADS / "kinds.py"
OPTIONS = '{"workers_per_node": 1, "threads_per_worker": 1, "memory_per_worker": "512MiB"}'


def run(place: Place, kind: str, count: int) -> tuple[dict[str, object], str]:
    env = {"PYTHONPATH": str(WORKLOADS), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    result = place.run(sys.executable, str(KINDS), f"kinds.{kind}", OPTIONS, str(count), env=env, timeout=60)
    assert result.rc == 0, str(result)
    assert "Traceback" not in result.stderr, str(result)
    return json.loads(json_line(result.stdout)), result.stderr


def test_a_server_that_makes_nannies_itself(place: Place) -> None:
    """Each of them has its own environment and configuration, comes back when it dies, and ends without being missed."""
    found, said = run(place, "Several", 2)
    assert found == {"found": {"0-0": ["0", 0, None], "0-1": ["1", 1, None]}, "sum": 6}
    assert said.count("worker process") == 1, said


def test_a_class_that_takes_less_than_a_nanny_is_given_less(place: Place) -> None:
    """Only the keyword arguments that it has are passed."""
    found, _ = run(place, "OneOnly", 1)
    assert found == {"found": {"0": [None, None, None]}, "sum": 6}


@pytest.mark.parametrize("what", ["json.JSONDecoder", "json.dumps"])
def test_anything_else_is_refused(place: Place, what: str) -> None:
    """One sentence names it and what would do."""
    result = place.run(sys.executable, str(KINDS), what, OPTIONS, "1", timeout=60)
    assert result.rc == 2, str(result)
    assert f'worker_class="{what}" is not a subclass of Dask\'s Worker or Nanny, nor a server' in result.errors[-1]
    assert "Traceback" not in result.stderr, str(result)
