"""A real multi-node Slurm for these tests, and how they start programs on it.

The cluster is instance ``BATCHLET_TEST_SLURM_INSTANCE`` (default 1: a person's own is 0), or the next one that no other
test session uses. It is gone at the end. Where it cannot run, the tests are skipped with the reason, or fail with it if
``BATCHLET_REQUIRE`` contains "slurm".
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster_slurm import SlurmCluster
from run_helpers import Place, Result, Run, reserved_instance, unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster of four nodes with 8 CPUs and 4 GiB each, with memory limits that hold."""
    with a_cluster() as cluster:
        yield cluster


@contextlib.contextmanager
def a_cluster(**shape: Any) -> Iterator[SlurmCluster]:
    """A cluster that nobody else uses, with other parameters than by default where they are given."""
    if not sys.platform.startswith("linux"):
        unavailable(f"a test Slurm needs Linux, not {sys.platform}")
    with reserved_instance() as instance:
        cluster = SlurmCluster(instance, **shape)
        reason = cluster.unavailable_reason()
        if reason is not None:
            unavailable(reason)
        # A session that crashed may have left it, with jobs on it.
        cluster.down()
        cluster.up()
        try:
            yield cluster
        finally:
            cluster.down()


@pytest.fixture
def place(cluster: SlurmCluster) -> Iterator[Place]:
    """A directory that all nodes share, and an environment that speaks to the cluster."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    yield place
    place.close()


@pytest.fixture
def srun(place: Place) -> Run:
    """Run a script as a job step; nothing may be left of it."""

    def run(
        *args: str,
        script: str | Path,
        argv: Sequence[str] = (),
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Result:
        command = ["srun", *args, *prefix, sys.executable, place.script(script), *argv]
        return place.run(*command, env=env, timeout=timeout)

    return run
