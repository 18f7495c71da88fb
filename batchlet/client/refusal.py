"""Ending with an error before the user's code runs: who says it, and who else must not wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NoReturn

from .. import report
from ..environments import detected, first_process
from ..errors import EndError
from ..node.rank import Rank
from .backend import Backend
from .by_hand import is_interactive
from .early_client import EarlyClient

__all__ = ["give_up", "refuse", "refuse_alone"]

# Seconds for the first rank that fails to speak, where the launcher then ends all others.
_MOMENT = 1.0


def refuse(error: EndError, rank: Rank | None, backend: Backend | None) -> NoReturn:
    """End with an error that nothing was started for.

    Parameters
    ----------
    error : EndError
        What is wrong.
    rank : Rank, optional
        This process, if that is known.
    backend : Backend, optional
        Where the cluster would have lived, if that is known.
    """
    if is_interactive():
        # A `SystemExit` would end a Python prompt, with all that has been typed. The session shows the error by itself.
        raise RuntimeError(str(error)) from None
    # Once the ranks have met, the client is alone with the user's code.
    alone = backend is not None and backend.connected
    if alone or not error.same_on_every_rank or _speaks(rank):
        report.failure(error)
    elif detected(os.environ).ends_all:
        # Let the first one that fails be the one that speaks.
        time.sleep(_MOMENT)
    if backend is not None:
        backend.abandon(error.exit_code)
    raise error from None


def refuse_alone(error: EndError) -> NoReturn:
    """End with an error in a process that is none of several ranks."""
    if is_interactive():
        raise RuntimeError(str(error)) from None
    report.failure(error)
    raise error from None


def give_up(error: EndError, backend: Backend, seconds: float, after: Callable[[EndError], object]) -> NoReturn:
    """End with an error while starting or taking part, so many seconds after the start; `after` gets it at the end."""
    told = backend.give_up(error)
    if not told and _speaks_of(error, backend):
        report.failure(error, seconds)
    after(error)
    backend.abandon(error.exit_code)
    raise error from None


def _speaks(rank: Rank | None) -> bool:
    """Whether this process is the one that prints what all ranks run into."""
    if EarlyClient.of_this_process() is not None:
        # Nobody else runs the script.
        return True
    if rank is None:
        return first_process(os.environ)
    return rank.info.rank == 0 or rank.environment.launcher(rank.environ) is not None


def _speaks_of(error: EndError, backend: Backend) -> bool:
    """Whether this process prints an error that rank 0 has not printed."""
    rank = backend.rank
    if error.same_on_every_rank:
        return _speaks(rank)
    # Without a word from rank 0, all others run into the same: one on each node says so.
    others = [other for other in rank.info.local_ranks if other != 0]
    return backend.connected or rank.info.rank in (0, *others[:1])
