"""No launcher: a laptop, a workstation, a login node, a notebook."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from ..gpus import Gpus
from ..launch_variables import SLURM_CPUS_ON_NODE, SLURM_JOB_ID
from .base import Figure, Grant, ProcessInfo
from .batch_jobs import job_grant
from .slurm import SlurmStep, WithinSlurm

__all__ = ["Local"]


class Local(WithinSlurm):
    """A process that nobody started on purpose as one of many."""

    name: ClassVar[str] = "local"

    def detect(self, environ: Mapping[str, str]) -> str | None:  # noqa: ARG002
        """Local is what is left when no launcher is found."""
        return "no launcher was found"

    def process(self, environ: Mapping[str, str]) -> ProcessInfo:  # noqa: ARG002
        """Be the only one."""
        return ProcessInfo(
            mode=self.name,
            rank=0,
            world_size=1,
            node=socket.gethostname().split(".")[0],
            nodes=1,
            local_ranks=(0,),
            run_id=f"local-{os.getpid()}-{secrets.token_hex(4)}",
        )

    def grant(self, environ: Mapping[str, str]) -> Grant:
        """Give nothing, so that affinity mask, cgroup and host decide; inside a batch job this process's share of it.

        ``mode="local"`` in a batch script, or in each task of a step, must not take what belongs to others.
        """
        if SLURM_JOB_ID not in environ or SLURM_CPUS_ON_NODE not in environ:
            return job_grant(environ)
        step = SlurmStep()
        grant = step.grant(environ)
        tasks = len(step.process(environ).local_ranks) if step.detect(environ) else 1
        if tasks == 1:
            return grant
        return Grant(grant.cpus and _part(grant.cpus, tasks), grant.memory and _part(grant.memory, tasks))

    def gpus(self, environ: Mapping[str, str]) -> Gpus | None:
        """See the base class; inside a job step this task's share of what all its tasks see."""
        found, step = super().gpus(environ), SlurmStep()
        if found is None or not found.devices or step.detect(environ) is None:
            return found
        if found.bound is False:
            info = step.process(environ)
            count, tasks, turn = len(found.devices), len(info.local_ranks), info.local_ranks.index(info.rank)
            found = found.part(range(count * turn // tasks, count * (turn + 1) // tasks))
        return replace(found, bound=False, on_node=None)


def _part(whole: Figure[int], parts: int) -> Figure[int]:
    return Figure(max(1, whole.value // parts), f"{whole.source} / {parts} tasks")
