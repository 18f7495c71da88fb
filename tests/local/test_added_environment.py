"""A whole run under a launcher that only another package knows: each task as that launcher would start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FLUX = REPOSITORY / "tests" / "unit" / "data" / "flux_environment"
RANKS = 4
SCRIPT = """
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    print("RESULT", runner.mode, client.submit(sum, [1, 2, 3]).result(), runner.n_workers)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a Flux job: the example's package is installed, and Flux says that all tasks are on this node."""
    site = tmp_path / "site"
    metadata = site / "batchlet_flux-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "batchlet_flux.py").write_text((FLUX / "batchlet_flux.py").read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: batchlet-flux\nVersion: 1.0\n")
    project = (FLUX / "pyproject.toml").read_text()
    (entry,) = re.findall(r"^(flux) = \"(.+)\"$", project, re.M)
    (metadata / "entry_points.txt").write_text(f"[batchlet.environments]\n{' = '.join(entry)}\n")
    flux = tmp_path / "bin" / "flux"
    flux.parent.mkdir()
    flux.write_text("#!/bin/sh\n" + "echo 0\n" * RANKS)
    flux.chmod(0o755)
    return os.environ | {
        "PATH": f"{flux.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{site}",
        "FLUX_JOB_ID": "f2oA8",
        "FLUX_JOB_SIZE": str(RANKS),
        "BATCHLET_DASK_CLUSTER__MODE": "flux",
    }


def test_a_run_under_flux(tmp_path: Path, environ: dict[str, str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tasks = [
        subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env=environ | {"FLUX_TASK_RANK": str(rank), "FLUX_TASK_LOCAL_ID": str(rank)},
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        outputs = [task.communicate(timeout=60) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0] * RANKS, outputs
    assert "".join(out for out, _ in outputs) == "RESULT flux 6 2\n", outputs
    lines = [line for _, errors in outputs for line in errors.splitlines()]
    assert len(lines) == 2, lines
    assert lines[0].startswith("batchlet: flux job f2oA8: 4 ranks on 1 node, 2 workers"), lines
    assert not (tmp_path / ".batchlet").exists()
