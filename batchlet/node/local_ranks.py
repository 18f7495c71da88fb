"""The ranks that are attached to an agent: whether their workers may live there, what they plan, and starting their workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .. import open_files
from ..environments import Environment, Figure
from ..plan import WorkerPlan
from ..resources import HostFacts
from .inputs import of_this_rank
from .rank import Facts, Rank

__all__ = ["LocalRank", "SharingRules", "plan_of"]

# Variables that decide which code a process loads.
_LOADING = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")


@dataclass(eq=False)
class LocalRank:
    """A rank that is attached to this agent.

    Parameters
    ----------
    rank : Rank
        Which one.
    cpus : tuple of int
        The CPUs that it is bound to.
    writer : StreamWriter
        The connection to it.
    nannies : list
        Its workers, once they are being started.
    gone : bool
        Whether the connection has ended.
    """

    rank: Rank
    cpus: tuple[int, ...]
    writer: asyncio.StreamWriter
    nannies: list[Any] = field(default_factory=list)
    gone: bool = False

    @property
    def name(self) -> str:
        """What the coordinator calls it."""
        return self.rank.participant

    def send(self, line: str) -> None:
        """Say something to the rank, if it is still there."""
        with contextlib.suppress(RuntimeError, OSError):
            self.writer.write(f"{line}\n".encode())


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
        self._ours = of_this_rank(os.environ)
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


def plan_of(local_rank: LocalRank, facts: Facts, host: HostFacts, *, shared: bool) -> tuple[WorkerPlan, ...]:
    """Plan the workers of a rank.

    Parameters
    ----------
    local_rank : LocalRank
        Which one.
    facts : mapping
        What rank 0 knows about the nodes.
    host : HostFacts
        What this process sees of the host.
    shared : bool
        Whether the workers of the other ranks here live in this process as well.

    Raises
    ------
    EndError
        If that is not possible.
    """
    rank = local_rank.rank
    plan = rank.plan(facts, replace(host, affinity=len(local_rank.cpus) or host.affinity))
    open_files.for_workers(len(plan.workers if shared else plan.hosted), rank.info.node)
    return plan.hosted
