"""A cluster that binds tasks to CPUs: its nodes have no more of them than this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster_slurm import SlurmCluster
from run_helpers import reserved_instance, unavailable


@contextmanager
def bound_cluster() -> Iterator[SlurmCluster]:
    """A cluster that binds each task to CPUs of its own."""
    with reserved_instance() as instance:
        cluster = SlurmCluster(instance, nodes=2, task_plugin="affinity")
        reason = cluster.unavailable_reason()
        if reason is not None:
            unavailable(reason)
        cluster.down()
        cluster.up()
        try:
            yield cluster
        finally:
            cluster.down()
