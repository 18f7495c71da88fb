"""Who am I: one module per launcher, asked in the order of `ENVIRONMENTS`."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Environment, Figure, Grant, ProcessInfo
from .local import Local
from .mpi import Mpi
from .slurm import SlurmAllocation, SlurmAllocationStep, SlurmStep

__all__ = ["ENVIRONMENTS", "Environment", "Figure", "Grant", "ProcessInfo", "first_process", "select"]

ENVIRONMENTS: tuple[Environment, ...] = (Mpi(), SlurmStep(), SlurmAllocation(), Local())
# Whatever else the ranks may have inherited: these are ours.
_OWN_STEP = SlurmAllocationStep()


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
    if mode in ("auto", _OWN_STEP.name):
        reason = _OWN_STEP.detect(environ)
        if reason is not None:
            return _OWN_STEP, reason
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
    """Whether this process prints what all of them would, before it is known for sure which rank it is."""
    return select("auto", environ)[0].is_first(environ) is not False
