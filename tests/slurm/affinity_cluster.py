"""A cluster that binds tasks to CPUs: its nodes have no more of them than this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cluster_slurm import SlurmCluster
from own_cluster import a_cluster


def bound_cluster() -> AbstractContextManager[SlurmCluster]:
    """A cluster that binds each task to CPUs of its own."""
    return a_cluster(nodes=2, task_plugin="affinity")
