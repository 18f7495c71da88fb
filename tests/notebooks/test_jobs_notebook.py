"""slurm_examples/cluster.ipynb as it is: a kernel on the login node submits jobs, computes on them, and lets them go."""

from __future__ import annotations

import json
import re

import pytest
from run_helpers import REPOSITORY, Place, eventually

pytestmark = pytest.mark.slurm
pytest.importorskip("ipykernel", reason="no kernel to run cells in (pip install ipykernel)")
pytest.importorskip("dask_jobqueue")

NOTEBOOK = REPOSITORY / "slurm_examples" / "cluster.ipynb"


def test_the_notebook_of_a_cluster_of_jobs_runs_as_it_is(on_login, slurm_place: Place) -> None:
    """Every cell runs, what it shows is right, and after the last one no job and no file is left."""
    cells = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    seen, _ = on_login(*cells)
    for cell, code in zip(seen, cells, strict=True):
        assert (cell["status"], cell["error"]) == ("ok", ""), (code, cell)
    script, client, shown, pi, adapt, total, jobs, end = seen
    assert "#SBATCH" in script["text"]
    assert "batchlet.job" in script["text"]
    assert "slurm: each job 2 workers x 2 threads x 1.00 GiB" in script["text"], script
    assert "tls://" in client["html"]
    assert shown["html"].count("joined") == 2, shown
    assert re.search(r"pi is about 3\.14\d", pi["text"]), pi
    assert adapt["error"] == ""
    assert total["text"].strip() == str(sum(number**2 for number in range(100)))
    assert jobs["text"].count("joined") >= 1, jobs
    assert end["text"] == "", end

    def queue() -> str:
        return slurm_place.run_only("squeue", "--noheader", timeout=10).stdout

    eventually(lambda: not queue(), 30, queue, pause=0.3)
