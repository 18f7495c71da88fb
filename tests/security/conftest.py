"""Runs that stand still to be attacked, and the fixtures of the Slurm tests."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
for _folder in ("slurm", "mpi"):
    sys.path.append(str(TESTS / _folder))

from held_runs import Batch, batch  # noqa: E402
from run_helpers import Place  # noqa: E402
from strangers import need_root  # noqa: E402

# Two conftest.py of the same name do not import each other by name.
_spec = importlib.util.spec_from_file_location("slurm_fixtures", TESTS / "slurm" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_slurm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_slurm)

cluster = _slurm.cluster


@pytest.fixture(autouse=True, scope="session")
def _root() -> None:
    need_root()


@pytest.fixture(scope="session")
def requeued(cluster: object) -> Iterator[Future[Batch]]:
    """A batch job that is requeued."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(batch, cluster, launcher="srun", requeue=True)


@pytest.fixture(autouse=True, scope="session")
def _early(request: pytest.FixtureRequest, _root: None) -> None:
    """Begin at once what takes long without doing much: Slurm lets a requeued job wait for half a minute."""
    if any("requeued" in item.fixturenames for item in request.session.items):
        with contextlib.suppress(pytest.skip.Exception):
            request.getfixturevalue("requeued")


@pytest.fixture
def slurm_place(cluster: object) -> Iterator[Place]:
    """A directory that all nodes share, and an environment that speaks to the cluster."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    yield place
    place.close()


@pytest.fixture
def place() -> Iterator[Place]:
    """A working directory and an environment without a launcher's traces."""
    place = Place()
    yield place
    place.close()
