"""Environments of other packages: found by their entry points, in a process that knows nothing of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from batchlet.settings import MODES

from .shapes import STEPS

FLUX = Path(__file__).parent / "data" / "flux_environment"
TASK = {"FLUX_TASK_RANK": "2", "FLUX_JOB_SIZE": "4", "FLUX_JOB_NNODES": "2", "FLUX_JOB_ID": "ƒ2oA8"}
# Rank 0 and 2 are on the first node, as no guess would have it.
TASKMAP = """#!/bin/sh
[ "$*" = "job taskmap --to=multiline ƒ2oA8" ] && printf '0\\n1\\n0\\n1\\n'
"""
LOOK = """
import json, os, sys
from batchlet.environments import select
environment, reason = select(sys.argv[1], os.environ)
info = environment.process(os.environ)
print(json.dumps({
    "name": environment.name, "reason": reason, "rank": info.rank, "world": info.world_size, "nodes": info.nodes,
    "local_ranks": info.local_ranks, "run_id": info.run_id, "loaded": sorted(sys.modules),
}))
"""
# An environment of a launcher that nobody else knows.
PALAVER = """
from batchlet.environments import Environment, Grant, ProcessInfo

class Palaver(Environment):
    name = "palaver"
    def detect(self, environ):
        return "PALAVER_RANK is set" if "PALAVER_RANK" in environ else None
    def process(self, environ):
        return ProcessInfo("palaver", int(environ["PALAVER_RANK"]), 3, "here", 1, (0, 1, 2), "palaver-1")
    def grant(self, environ):
        return Grant()
"""


def install(folder: Path, package: str, entries: str, **modules: str) -> None:
    """What pip leaves of a package: its modules, and beside them its metadata."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[batchlet.environments]\n{entries}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of packages, and a `flux` that answers."""
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "flux"
    program.write_text(TASKMAP)
    program.chmod(0o755)
    return folder


def install_flux(site: Path) -> None:
    """The package of the example, as its own pyproject.toml describes it."""
    project = (FLUX / "pyproject.toml").read_text()
    (entries,) = re.findall(r'^\[project.entry-points."batchlet.environments"\]\n((?:.+\n)+)', project, re.M)
    install(site, "batchlet_flux", entries.replace('"', ""), batchlet_flux=(FLUX / "batchlet_flux.py").read_text())


def run(
    site: Path, *arguments: str, environ: dict[str, str] | None = None, rc: int = 0
) -> subprocess.CompletedProcess[str]:
    clean = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    clean |= {"PATH": f"{site.parent / 'bin'}:/usr/bin:/bin", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=site.parent, timeout=60,
        env=clean | {"PYTHONPATH": f"{here}:{site}"} | (environ or {}),
    )  # fmt: skip
    assert done.returncode == rc, done.stderr
    return done


def look(site: Path, mode: str, environ: dict[str, str] | None = None) -> dict:
    done = run(site, "-c", LOOK, mode, environ=environ)
    return json.loads(done.stdout) | {"said": done.stderr}


def test_the_example_is_short_enough_to_be_read():
    assert sum(len(file.read_text().splitlines()) for file in FLUX.iterdir() if file.is_file()) < 100


def test_mode_takes_the_name_of_an_environment_that_another_package_brings(site):
    install_flux(site)
    found = look(site, "flux", TASK)
    assert (found["name"], found["reason"], found["said"]) == ("flux", 'mode="flux"', "")
    assert (found["rank"], found["world"], found["nodes"], found["local_ranks"]) == (2, 4, 2, [0, 2])
    assert re.fullmatch(r"[\w.-]+", found["run_id"], re.A)


def test_a_runner_and_the_command_line_accept_it(site):
    install_flux(site)
    code = "import batchlet; runner = batchlet.BatchletRunner(mode='flux'); print(runner.mode, runner.role, runner.plan.rank)"
    assert run(site, "-c", code, environ=TASK).stdout == "flux worker 2\n"
    given = TASK | {"FLUX_TASK_RANK": "1", "BATCHLET_DASK_CLUSTER__MODE": "flux"}
    assert run(site, "-c", code.replace("mode='flux'", ""), environ=given).stdout == "flux client 1\n"


def test_an_environment_that_cannot_say_who_it_is_refuses_in_one_line(site):
    install_flux(site)
    (site.parent / "bin" / "flux").unlink()
    code = "import batchlet; batchlet.BatchletRunner(mode='flux')"
    done = run(site, "-c", code, environ=TASK | {"FLUX_TASK_RANK": "0"}, rc=2)
    assert done.stderr.startswith("batchlet: error: Flux does not say which task is where: ")
    assert len(done.stderr.splitlines()) == 1


def test_what_finds_itself_comes_before_local_and_after_ours(site):
    install(site, "palaver", "palaver = palaver:Palaver", palaver=PALAVER)
    assert look(site, "auto")["name"] == "local"
    found = look(site, "auto", {"PALAVER_RANK": "1"})
    assert (found["name"], found["reason"], found["rank"]) == ("palaver", "PALAVER_RANK is set", 1)
    step = dict(STEPS["mem"].tasks[1].env)
    assert look(site, "auto", step | {"PALAVER_RANK": "1"})["name"] == "slurm"
    assert look(site, "local", {"PALAVER_RANK": "1"})["name"] == "local"


@pytest.mark.parametrize(
    ("mode", "environ"),
    [("auto", dict(STEPS["mem"].tasks[2].env)), ("auto", {"PMI_RANK": "0", "PMI_SIZE": "2"}), ("local", {})],
    ids=["srun", "mpirun", "mode"],
)
def test_nobody_looks_for_other_packages_where_one_of_ours_is_found_or_named(site, mode, environ):
    install(site, "palaver", "palaver = palaver:Palaver", palaver=PALAVER)
    assert not {"importlib.metadata", "palaver"} & set(look(site, mode, environ)["loaded"])


def test_an_unknown_mode_is_refused_with_all_that_there_are(site):
    install_flux(site)
    done = run(site, "-c", "import batchlet; batchlet.BatchletRunner(mode='jsrun')", rc=2)
    assert len(done.stderr.splitlines()) == 1
    for name in (*MODES, "flux"):
        assert f'"{name}"' in done.stderr


BROKEN = {
    "raises": ("palaver = palaver:Palaver", "1 / 0", "ZeroDivisionError"),
    "is not there": ("palaver = palaver:Palaver", "", "Palaver"),
    "has no module": ("palaver = nowhere:Palaver", "", "nowhere"),
    "is no environment": ("palaver = palaver:Palaver", "class Palaver: name = 'palaver'", "subclass"),
    "is not complete": (
        "palaver = palaver:Palaver",
        "from batchlet.environments import Environment\nclass Palaver(Environment): name = 'palaver'",
        "abstract",
    ),
    "has another name": ("palaver = palaver:Palaver", PALAVER.replace('"palaver"', '"other"'), '"other"'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_environment_that_cannot_be_loaded_is_one_line_and_no_crash(site, how):
    entries, module, words = BROKEN[how]
    install(site, "palaver", entries, palaver=module)
    found = look(site, "auto")
    assert found["name"] == "local"
    (line,) = found["said"].splitlines()
    assert line.startswith('batchlet: The environment "palaver" of another package')
    assert words in line
    assert line.endswith("Going on without it.")
    done = run(site, "-c", "import batchlet; batchlet.BatchletRunner(mode='palaver')", rc=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith('batchlet: error: mode="palaver": ')
    assert words in line


def test_an_environment_that_fails_while_it_is_asked_is_one_line_and_no_crash(site):
    install(site, "palaver", "palaver = palaver:Palaver", palaver=PALAVER.replace('return "PALAVER', 'raise OSError("no")'
            ' if True else "PALAVER'))  # fmt: skip
    found = look(site, "auto")
    assert (found["name"], found["said"].count("\n")) == ("local", 1)
    assert "OSError: no" in found["said"]


def test_an_entry_point_cannot_take_the_place_of_one_of_ours(site):
    install(site, "palaver", "local = palaver:Palaver\nauto = palaver:Palaver", palaver=PALAVER)
    found = look(site, "auto", {"PALAVER_RANK": "1"})
    assert (found["name"], found["said"]) == ("local", "")
