"""Rank 0's coordinator before the script has made a runner: `batchlet.early` starts it, so that waiting ranks find somebody.

If the script never makes a runner, or one that needs no ranks, they end with it.
"""

from __future__ import annotations

import atexit
import os
import time

from .. import report
from ..rendezvous import FileRendezvous
from ..settings import Settings
from .coordinator_rank import CoordinatorRank
from .rank import Rank

__all__ = ["start", "take"]

_started: CoordinatorRank | None = None
_began = 0.0


def start() -> None:
    """Start the coordinator of this process, which is rank 0.

    Raises
    ------
    EndError
        If something in the environment is wrong, or the ranks cannot meet.
    """
    global _started
    began = time.monotonic()
    settings = Settings.resolve({}, os.environ)
    rank = Rank.identify(settings, os.environ, began)
    rendezvous = FileRendezvous(settings.rendezvous_dir, rank.info.run_id, rank.info.node)
    rendezvous.check()
    _started = CoordinatorRank(rank, rendezvous, early=True)
    atexit.register(_finish, os.getpid())


def take() -> CoordinatorRank | None:
    """Give the coordinator to the runner that the script has made; `None` if there is none."""
    global _started
    coordinator, _started = _started, None
    return coordinator


def _finish(pid: int) -> None:
    coordinator = take()
    if coordinator is not None and os.getpid() == pid:
        ranks = coordinator.finish()
        report.note(f"the script has made no cluster: {ranks} ranks were there, and end with it")
