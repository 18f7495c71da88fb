"""What all tests share: an environment without a launcher's traces; in tests/unit a warning is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from foreign_variables import FOREIGN
from hypothesis import settings

# No directory of examples is left behind; a machine that is busy makes no test fail.
settings.register_profile("quiet", database=None, deadline=None)
settings.load_profile("quiet")

UNIT = Path(__file__).parent / "unit"


@pytest.fixture(autouse=True)
def _scrubbed_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the launcher, the Dask or the Batchlet that happens to surround it; a test of a launcher does."""
    if any(request.node.get_closest_marker(name) for name in ("slurm", "gridengine", "mpirun", "mpi")):
        return
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if UNIT in item.path.parents:
            # In front of the item's own marks, so that a test may still allow a warning.
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)
