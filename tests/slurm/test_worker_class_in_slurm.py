"""Workers of another kind under srun: a server that makes Nannies itself, as dask_cuda.CUDAWorker does."""

from __future__ import annotations

import json

import pytest
from run_helpers import WORKLOADS, Run, json_line

pytestmark = pytest.mark.slurm


def test_a_server_that_makes_nannies_itself(srun: Run) -> None:
    """The run is ready when each rank's server has come; its workers have the rank's environment and their own."""
    env = {"PYTHONPATH": str(WORKLOADS), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    result = srun("-N2", "-n4", script=WORKLOADS / "kinds.py", argv=["kinds.Several", "{}", "4"], env=env)
    assert result.rc == 0, str(result)
    assert "Traceback" not in result.stderr, str(result)
    expected = {f"{rank}-{device}": [str(device), device, str(rank)] for rank in (2, 3) for device in (0, 1)}
    assert json.loads(json_line(result.stdout)) == {"found": expected, "sum": 6}
