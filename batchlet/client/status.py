"""Dask's status of a run's cluster, for which its clients ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import EndError
from . import dask_clients
from .backend import StartInfo

if TYPE_CHECKING:
    from ..control.signals import ClientGuard

__all__ = ["MOMENT", "status_of"]

#: Seconds within which all connections to a dead process break.
MOMENT = 1.0


def status_of(
    state: str,
    start: StartInfo | None,
    guard: ClientGuard | None,
    root_cause: Callable[[float], EndError | None],
) -> Any:
    """Give Dask's status.

    Parameters
    ----------
    state : str
        Of the runner.
    start : StartInfo, optional
        The cluster, if it was started.
    guard : ClientGuard, optional
        Who brings bad news to the user's code.
    root_cause : callable
        Says what has ended the run, if it has failed; waits so many seconds for the news.
    """
    from distributed.core import Status

    in_main = threading.current_thread() is threading.main_thread()
    if start is not None and not in_main and dask_clients.any_disconnected(start.address):
        # Dask's client has lost its connection and asks whether to try again: our own news come in a moment. It also asks each
        # time that it gives a sign of life, in the event loop that brings all results.
        lost = root_cause(MOMENT) is not None
        if lost and guard is not None:
            guard.wait_delivered(MOMENT)
        if lost:
            return Status.closed
    if state == "closed":
        return Status.closed
    return Status.running if start is not None else Status.created
