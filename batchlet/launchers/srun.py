"""Slurm's ``srun``, inside an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..launch_variables import (
    SLURM_DISTRIBUTION,
    SLURM_GPUS_PER_TASK,
    SLURM_JOB_FIGURES,
    SLURM_NTASKS,
    SLURM_TRES_PER_TASK,
    STEP_CLIENT_NODE,
    STEP_PREFIX,
)
from .base import Launcher

__all__ = ["Srun"]

# What the job asked of its own tasks; srun would take these as options for our step.
_OPTIONS = frozenset((
    *SLURM_JOB_FIGURES, SLURM_NTASKS, "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_GPU", "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", SLURM_TRES_PER_TASK,
    # The step has all the GPUs of the job: one rank of it is on each node.
    SLURM_GPUS_PER_TASK, "SLURM_GPUS_PER_SOCKET", "SLURM_GPU_BIND",
    SLURM_DISTRIBUTION, "SLURM_CPU_BIND", "SLURM_EXCLUSIVE", "SLURM_EXACT", "SLURM_OVERCOMMIT", "SLURM_MPI_TYPE",
    # The record comes through the step's output, and the orders through its input: neither may go anywhere else.
    "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SRUN_INPUT", "SRUN_OUTPUT", "SLURM_LABELIO",
    # After `sbatch --export=NONE`: the ranks need this environment, in which the script runs.
    "SLURM_EXPORT_ENV",
))  # fmt: skip


class Srun(Launcher):
    """One step of the job, beside whatever else runs in it."""

    name: ClassVar[str] = "srun"

    def command(self, nodes: int, program: Sequence[str]) -> list[str]:
        """See the base class."""
        return [
            self.name, f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap", "--mem=0",
            "--cpu-bind=none", "--kill-on-bad-exit=0", "--wait=0", "--quiet", "--mpi=none", *program,
        ]  # fmt: skip

    def environ(self, environ: Mapping[str, str], client_node: str | None) -> dict[str, str]:
        """See the base class; `batchlet.environments.slurm.SlurmAllocationStep` reads it."""
        return {
            **{name: value for name, value in environ.items() if name not in _OPTIONS},
            **{STEP_PREFIX + name: environ[name] for name in SLURM_JOB_FIGURES if name in environ},
            STEP_CLIENT_NODE: client_node or "",
        }
