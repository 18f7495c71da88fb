"""slurm_examples/jupyter.sbatch as it is: a notebook in a browser, computing on both nodes of the job, and closed to others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from run_helpers import REPOSITORY, Place, eventually, poll

sys.path.append(str(Path(__file__).parents[1] / "security"))

from browser import browser, wait_for
from strangers import standpoints

pytestmark = pytest.mark.slurm
pytest.importorskip("jupyterlab", reason="no JupyterLab to try (pip install jupyterlab)")

CELLS = [
    "from batchlet import BatchletRunner\nfrom dask.distributed import Client\nimport socket",
    "runner = BatchletRunner()\nrunner.start()",
    "client = Client(runner)\nclient",
    "print('nodes', len(set(client.run(socket.gethostname).values())), 'sum', client.submit(sum, [1, 2, 3]).result())",
]
# What a site has configured already: tests run as root, and look into the page.
CONFIG = "c.ServerApp.allow_root = True\nc.LabApp.expose_app_in_browser = True\nc.LabApp.news_url = None\n"


def notebook() -> str:
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return json.dumps(
        {
            "cells": [{**cell, "id": f"cell{number}", "source": text} for number, text in enumerate(CELLS)],
            "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


def test_the_example_starts_a_jupyterlab_that_computes_on_both_nodes(slurm_place: Place, cluster) -> None:
    """The page wants the token, a notebook runs on all nodes, nothing secret is told to others, and the job's end ends all."""
    place = slurm_place
    if not shutil.which("chromedriver"):
        pytest.skip("no Chromium to open JupyterLab with (apt-get install chromium chromium-driver)")
    before = place.files()
    home = place.base / "home"
    (home / ".jupyter").mkdir(parents=True)
    (home / ".jupyter" / "jupyter_server_config.py").write_text(CONFIG)
    (home / ".jupyter" / "jupyter_lab_config.py").write_text(CONFIG)
    (place.cwd / "test.ipynb").write_text(notebook())
    script = str(REPOSITORY / "slurm_examples" / "jupyter.sbatch")
    submitted = place.run_only("sbatch", "--parsable", script, env={"HOME": str(home)}, timeout=20)
    assert submitted.rc == 0, submitted
    job = submitted.stdout.strip()
    output = place.cwd / f"jupyter-{job}.out"
    try:
        line = eventually(lambda: output.exists() and output.read_text(), 40, "no output")
        said = re.fullmatch(r"JupyterLab on (\S+): cat (\S+)\n", line)
        assert said, line
        note = Path(said[2])
        assert note.stat().st_mode & 0o077 == 0
        assert note.parent.stat().st_mode & 0o077 == 0
        tunnel, url = note.read_text().splitlines()
        found = re.fullmatch(r"(http://localhost:(\d+)/lab)\?token=(\w+)", url)
        assert found, url
        base, port, token = found.groups()
        assert re.fullmatch(rf"ssh -N -L {port}:localhost:{port} -J \S+ {said[1]}", tunnel), tunnel
        (head,) = [point for point in standpoints(cluster) if point.name == said[1]]

        def answers() -> bool:
            command = [*head.enter, "curl", "--silent", "--noproxy", "*", "--output", "/dev/null", base]
            return subprocess.run(command, check=False, timeout=10).returncode == 0

        eventually(answers, 60, "JupyterLab does not answer", 0.25)
        with browser(place, head) as page:
            page.open(base)
            # Without the token: the page that asks for it.
            wait_for(lambda: "/login" in page.url, "the login page", page)
            assert token not in page.source
            page.open(f"{base}/tree/test.ipynb?token={token}&reset")
            ready = "return !!window.jupyterapp && !!document.querySelector('.jp-Notebook')"
            wait_for(lambda: bool(page.run(ready)), "the notebook", page, 90)
            panel = "window.jupyterapp.shell.currentWidget"
            status = f"return {panel}?.sessionContext?.session?.kernel?.status"
            wait_for(lambda: page.run(status) == "idle", "the kernel", page, 60)
            page.run("window.jupyterapp.commands.execute('notebook:run-all-cells')")
            # The page draws only what is in view; this is all that the notebook has.
            outputs = f"return JSON.stringify({panel}.content.model.toJSON().cells.map(each => each.outputs))"
            text = poll(lambda: "nodes 2 sum 6" in (seen := str(page.run(outputs))) and seen, 60) or page.run(outputs)
            assert "nodes 2 sum 6" in text, text
            assert "Limits of node" in text, text
            assert "ssh -N -L" in text, text
        secret = [process for process in place.processes() if token in " ".join(_command(process))]
        assert not secret, secret
        assert token not in output.read_text()
    finally:
        place.run_only("scancel", job, timeout=20)
    eventually(lambda: job not in place.run_only("squeue", "--noheader", timeout=10).stdout, 60, "the job goes on")
    assert not note.exists()
    for path in (output, place.cwd / "test.ipynb"):
        path.unlink()
    shutil.rmtree(place.cwd / ".ipynb_checkpoints", ignore_errors=True)
    shutil.rmtree(place.cwd / ".batchlet", ignore_errors=True)
    place.assert_nothing_left(before)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
