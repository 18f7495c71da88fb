"""The fixtures of the Slurm tests, for programs that know nothing of Batchlet."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import Place

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "slurm"), str(TESTS / "ecosystem")]

# Two conftest.py of the same name do not import each other by name.
_spec = importlib.util.spec_from_file_location("slurm_fixtures", TESTS / "slurm" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_slurm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_slurm)

pytest.register_assert_rewrite("four_ways")

cluster = _slurm.cluster


@pytest.fixture
def slurm_place(cluster: object) -> Iterator[Place]:
    """A directory that all nodes share, and an environment that speaks to the cluster."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    yield place
    place.close()


@pytest.fixture(scope="session")
def plain_results() -> dict[str, object]:
    """What each program has done under plain Dask, so that it runs there once."""
    return {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with each program of its class, or with those that run in all ways."""
    if "program" in metafunc.fixturenames:
        all_of_them = metafunc.function.__name__.endswith(("plain_dask", "m_batchlet_on_two_nodes"))
        metafunc.parametrize("program", metafunc.cls.needs if all_of_them else metafunc.cls.also)
