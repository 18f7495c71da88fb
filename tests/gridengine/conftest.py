"""A real gridengine for these tests, and how they start programs on it.

The cluster is instance ``BATCHLET_TEST_GRIDENGINE_INSTANCE`` (default 1: a person's own is 0), or the next one that no other
test session uses. It is gone at the end. Where it cannot run, the tests are skipped with the reason, or fail with it if
``BATCHLET_REQUIRE`` contains "gridengine".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# What the two test clusters share is with the older one.
sys.path.append(str(Path(__file__).parents[1] / "slurm"))

from cluster_gridengine import GridEngine
from run_helpers import Place, reserved_instance, unavailable


@pytest.fixture(scope="session")
def gridengine() -> Iterator[GridEngine]:
    """A login node, and two nodes with 8 slots each."""
    if not sys.platform.startswith("linux"):
        unavailable(f"a test gridengine needs Linux, not {sys.platform}", "gridengine")
    with reserved_instance("gridengine") as instance:
        cluster = GridEngine(instance)
        reason = cluster.unavailable_reason()
        if reason is not None:
            unavailable(reason, "gridengine")
        # A session that crashed may have left it, with jobs on it.
        cluster.down()
        cluster.up()
        try:
            yield cluster
        finally:
            cluster.down()


@pytest.fixture
def place(gridengine: GridEngine) -> Iterator[Place]:
    """A directory that all nodes share, and an environment that speaks to the cluster."""
    place = Place(gridengine.env(), on_timeout=gridengine.end_jobs)
    yield place
    place.close()
