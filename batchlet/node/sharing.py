"""Which ranks may share an agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..environments import Environment, Figure
from . import inputs

__all__ = ["SharingRules"]

# Variables that decide which code a process loads.
_LOADING = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")


class SharingRules:
    """Whether what another rank brings may be forked from this process.

    Parameters
    ----------
    environment : Environment
        How the ranks were started.
    cgroup_memory : Figure of int, optional
        The memory limit of this process.
    """

    def __init__(self, environment: Environment, cgroup_memory: Figure[int] | None) -> None:
        self._environment = environment
        self._ours = inputs.of_this_rank(os.environ)
        # A limit of one task is not the limit of another one.
        self._for_one_task = cgroup_memory is not None and "/task_" in cgroup_memory.source

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs that this process was bound to at its start."""
        return tuple(self._ours["cpus"])

    def may_fork_for(self, words: Mapping[str, Any]) -> bool:
        """Whether processes of a rank may be forked here, by what it says of itself."""
        environ = words["environ"]
        return (
            words["python"] == self._ours["python"]
            and words["cgroups"] == self._ours["cgroups"]
            and not self._for_one_task
            and all(environ.get(name) == os.environ.get(name) for name in _LOADING)
        )

    def may_host_workers_of(self, words: Mapping[str, Any]) -> bool:
        """Whether a rank's workers may live here as well."""
        environ = words["environ"]
        return (
            self.may_fork_for(words)
            and all(environ.get(name) == os.environ.get(name) for name in self._environment.gpu_variables)
            and not self._environment.binds_gpus_by_task(environ)
        )
