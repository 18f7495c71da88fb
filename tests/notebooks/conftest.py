"""How the tests run cells in real kernels: alone, and in an allocation of the Slurm of the other tests."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "slurm"))

from run_helpers import Place, Result  # noqa: E402

# Two conftest.py of the same name do not import each other by name.
_spec = importlib.util.spec_from_file_location("slurm_fixtures", TESTS / "slurm" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_slurm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_slurm)

cluster = _slurm.cluster

DRIVE = Path(__file__).parent / "drive.py"
Cells = Callable[..., tuple[list[dict[str, Any]], Result]]


def in_kernel(
    place: Place,
    *launch: str,
    steps: Sequence[object],
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> tuple[list[Any], Result]:
    """Run steps (see drive.py; a text is a cell) and give what was seen of each; nothing may be left of it."""
    plan = place.base / "steps.json"
    plan.write_text(json.dumps([{"code": step} if isinstance(step, str) else step for step in steps]))
    home = place.base / "home"
    home.mkdir(exist_ok=True)
    own = {"HOME": str(home), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    environ = {**own, **(env or {})}
    result = place.run(*launch, sys.executable, str(DRIVE), str(plan), env=environ, timeout=timeout)
    assert result.rc == 0, str(result)
    seen = [json.loads(line[5:]) for line in result.stdout.splitlines() if line.startswith("STEP ")]
    assert len(seen) == len(steps), str(result)
    return seen, result


@pytest.fixture
def place() -> Iterator[Place]:
    """A working directory and an environment without a launcher's traces."""
    place = Place()
    yield place
    place.close()


@pytest.fixture
def slurm_place(cluster: object) -> Iterator[Place]:
    """A directory that all nodes share, and an environment that speaks to the cluster."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    yield place
    place.close()


@pytest.fixture(params=["local", pytest.param("salloc", marks=pytest.mark.slurm)])
def cells(request: pytest.FixtureRequest) -> Cells:
    """Run cells in a kernel here, and in one that was started in an allocation of two nodes."""
    where = request.getfixturevalue("place" if request.param == "local" else "slurm_place")
    launch = () if request.param == "local" else ("salloc", "-N2", "-n4", "--ntasks-per-node=2")

    def run(*steps: object, timeout: float = 120) -> tuple[list[dict[str, Any]], Result]:
        return in_kernel(where, *launch, steps=steps, timeout=timeout)

    run.where = request.param  # type: ignore[attr-defined]
    return run


@pytest.fixture
def on_login(cluster: object, slurm_place: Place) -> Cells:
    """Run cells in a kernel on the login node, which has its own name for the network that all nodes share."""
    options = json.dumps({"interface": f"slurm{cluster.instance}"})
    env = {"BATCHLET_DASK_CLUSTER__SCHEDULER_OPTIONS": options}

    def run(*steps: object, timeout: float = 120) -> tuple[list[dict[str, Any]], Result]:
        return in_kernel(slurm_place, steps=steps, env=env, timeout=timeout)

    return run
