"""Each MPI of this machine in turn; see mpi_launchers.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from mpi_launchers import Launcher, Mpirun, mpich, open_mpi, unavailable
from run_helpers import Place

# The tests in there run inside mpirun, which test_mpirun.py starts; without it there is nothing to collect.
collect_ignore = [] if "--with-mpi" in sys.argv else ["test_meeting.py"]


@pytest.fixture(scope="session", params=["openmpi", "mpich"])
def launcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Each MPI of this machine in turn."""
    if find_spec("mpi4py") is None:
        unavailable("mpi4py is not installed")
    return open_mpi() if request.param == "openmpi" else mpich(tmp_path_factory.mktemp("mpich"))


@pytest.fixture
def place() -> Iterator[Place]:
    """A working directory and an environment without a launcher's traces."""
    place = Place()
    yield place
    place.close()


@pytest.fixture
def mpirun(launcher: Launcher, place: Place) -> Mpirun:
    return Mpirun(launcher, place)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # pytest-mpi takes the name of this directory for its mark, and skips all that is in it without --with-mpi.
    for item in items:
        if item.get_closest_marker("mpi") is None:
            item.own_markers[:] = [
                mark for mark in item.own_markers if "--with-mpi" not in mark.kwargs.get("reason", "")
            ]
