"""A test Slurm that nobody else uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from cluster_slurm import SlurmCluster
from run_helpers import reserved_instance, unavailable


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
