"""A real multi-node Slurm for these tests, and how they start programs on it.

The cluster is instance ``BATCHLET_TEST_SLURM_INSTANCE`` (default 1: a person's own is 0), or the next one that no other
test session uses. It is gone at the end. Where it cannot run, the tests are skipped with the reason, or fail with it if
``BATCHLET_REQUIRE`` contains "slurm".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from cluster_slurm import SlurmCluster
from own_cluster import a_cluster
from run_helpers import Place, Result, Run


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster of four nodes with 8 CPUs and 4 GiB each, with memory limits that hold."""
    with a_cluster() as cluster:
        yield cluster


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
