"""Stub, replaced by the real one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

STEP = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME")
_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    "PMI_RANK",
    "PMIX_RANK",
)


def slurm_worker_rank(environ: Mapping[str, str]) -> int | None:
    """Stub."""
    rank, size = environ.get("SLURM_PROCID", ""), environ.get("SLURM_NTASKS", "")
    plain = (
        "SLURM_STEP_ID" in environ
        and not any(name in environ for name in _MPI)
        and rank.isdigit()
        and size.isdigit()
        and 2 <= int(rank) < int(size)
    )
    return int(rank) if plain else None
