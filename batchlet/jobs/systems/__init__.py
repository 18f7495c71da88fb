"""The batch systems that are known, each by its name."""

from __future__ import annotations

from ...errors import SettingsError
from .base import Array, BatchSystem, Seen, Spread
from .htcondor import HTCondor
from .local import LocalProcesses
from .lsf import Lsf
from .moab import Moab
from .oar import Oar
from .pbs import Pbs
from .sge import GridEngine
from .slurm import Slurm

__all__ = ["SYSTEMS", "Array", "BatchSystem", "Seen", "Spread", "batch_system"]

SYSTEMS: tuple[BatchSystem, ...] = (
    Slurm(), GridEngine(), Pbs(), Lsf(), HTCondor(), Oar(), Moab(), LocalProcesses(),
)  # fmt: skip


def batch_system(name: str) -> BatchSystem:
    """Find a batch system by its name.

    Raises
    ------
    SettingsError
        If there is none of that name.
    """
    for system in SYSTEMS:
        if system.name == name:
            return system
    raise SettingsError(
        f"{name!r} is no batch system that Batchlet knows. Known are: {', '.join(s.name for s in SYSTEMS)}."
    )
