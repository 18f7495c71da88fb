"""Who am I: one module per launcher, asked in the order of `ENVIRONMENTS`."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Environment, Figure, Grant, ProcessInfo
from .local import Local
from .mpi import Mpi, is_first
from .slurm import SlurmAllocation, SlurmStep

__all__ = ["ENVIRONMENTS", "Environment", "Figure", "Grant", "ProcessInfo", "first_process", "is_first", "select"]

ENVIRONMENTS: tuple[Environment, ...] = (Mpi(), SlurmStep(), SlurmAllocation(), Local())


def select(mode: str, environ: Mapping[str, str]) -> tuple[Environment, str]:
    """Choose the environment: the one named by `mode`, or the first that finds itself.

    Returns
    -------
    environment : Environment
        The one chosen.
    reason : str
        Why.

    Raises
    ------
    LauncherError
        If this is a place in which no cluster can be started.
    """
    for environment in ENVIRONMENTS:
        if mode == environment.name:
            return environment, f'mode="{mode}"'
        if mode == "auto":
            reason = environment.detect(environ)
            if reason is not None:
                return environment, reason
    msg = f"no environment is called {mode!r}"  # Settings lets no other name through
    raise AssertionError(msg)


def first_process(environ: Mapping[str, str]) -> bool:
    """Whether this process is the one that prints what all of them would, before its rank is known for sure."""
    first = is_first(environ)
    if first is not None:
        return first
    # The first process of the first node speaks.
    local_id, node_id = environ.get("SLURM_LOCALID", "0"), environ.get("SLURM_NODEID", "0")
    return "SLURM_STEP_ID" not in environ or (local_id == "0" and node_id == "0")
