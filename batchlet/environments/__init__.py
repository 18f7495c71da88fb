"""Who am I: one module per launcher, asked in the order of `ENVIRONMENTS`; and what other packages add to them.

Another package adds an environment by an entry point of the group ``batchlet.environments``, which gives a subclass of
`Environment` under the name that ``mode`` is to take. It is looked for where no launcher of ours is found, before ``local``, or
where ``mode`` names it; no rank of Slurm or MPI pays for that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping

from .. import entry_points, report
from ..errors import LauncherError
from ..settings import MODES
from .base import Environment, Figure, Grant, ProcessInfo
from .local import Local
from .mpi import Mpi
from .slurm import SlurmAllocation, SlurmAllocationStep, SlurmStep

__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "Figure",
    "Grant",
    "ProcessInfo",
    "detected",
    "environments",
    "first_process",
    "select",
]

ENVIRONMENTS: tuple[Environment, ...] = (Mpi(), SlurmStep(), SlurmAllocation(), Local())
# Asked before all others: whatever else its ranks have inherited, they are ours.
_OWN_STEP = SlurmAllocationStep()


def environments(complain: Callable[[str], object] = lambda _: None) -> Iterator[Environment]:
    """Give all environments in the order in which they are asked, those of other packages only when it is their turn.

    Parameters
    ----------
    complain : callable
        Gets a sentence about each environment of another package that cannot be loaded; those are left out.
    """
    yield from ENVIRONMENTS[:-1]
    for name in entry_points.found(entry_points.ENVIRONMENTS):
        environment = None if name in MODES else _added(name)
        if isinstance(environment, Environment):
            yield environment
        elif environment is not None:
            complain(environment)
    yield ENVIRONMENTS[-1]


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
        If `mode` names the environment of another package, and that cannot be loaded.
    """
    if mode == "auto":
        return _find(environ, _tell_once)
    reason = _OWN_STEP.detect(environ) if mode == _OWN_STEP.name else None
    if reason is not None:
        return _OWN_STEP, reason
    return _named(mode), f'mode="{mode}"'


def detected(environ: Mapping[str, str]) -> Environment:
    """Give the environment that finds itself, whatever the user asked for, and without a word about others."""
    return _find(environ, lambda _: None)[0]


def first_process(environ: Mapping[str, str]) -> bool:
    """Whether this process prints what all of them would, before it is known for sure which rank it is."""
    return detected(environ).is_first(environ) is not False


def _find(environ: Mapping[str, str], complain: Callable[[str], object]) -> tuple[Environment, str]:
    for environment in (_OWN_STEP, *ENVIRONMENTS[:-1]):
        reason = environment.detect(environ)
        if reason is not None:
            return environment, reason
    for environment in itertools.islice(environments(complain), len(ENVIRONMENTS) - 1, None):
        try:
            reason = environment.detect(environ)
        except Exception as error:  # noqa: BLE001
            complain(f'The environment "{environment.name}" of another package fails: {_in_a_line(error)}.')
            continue
        if reason is not None:
            return environment, reason
    raise AssertionError("a process is local at least")


def _named(mode: str) -> Environment:
    for environment in ENVIRONMENTS:
        if environment.name == mode:
            return environment
    environment_or_problem = _added(mode)
    if isinstance(environment_or_problem, str):
        raise LauncherError(
            f'mode="{mode}": {environment_or_problem} Install that package again, or leave mode out '
            "(BATCHLET_DASK_CLUSTER__MODE)."
        )
    return environment_or_problem


@functools.cache
def _added(name: str) -> Environment | str:
    """Load the environment of another package; a sentence if that is not possible."""
    entry = entry_points.found(entry_points.ENVIRONMENTS).get(name)
    if entry is None:
        return f"There is no environment of that name (entry point {name} of {entry_points.ENVIRONMENTS})."
    where = f'The environment "{name}" of another package ({entry.value})'
    try:
        found = entry.load()
        environment = found() if isinstance(found, type) else found
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not ours
        return f"{where} cannot be loaded: {_in_a_line(error)}."
    if not isinstance(environment, Environment):
        return f"{where} is none: it has to be a subclass of batchlet.environments.Environment."
    if environment.name != name:
        return f'{where} calls itself "{environment.name}": entry point and name have to be the same.'
    return environment


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


@functools.cache
def _tell_once(text: str) -> None:
    report.note(f"{text} Going on without it.")
