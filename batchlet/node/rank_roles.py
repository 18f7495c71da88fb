"""What a rank does that is not the client: rank 0 coordinates, all others bring workers."""

from __future__ import annotations

from ..plan import SCHEDULER
from ..rendezvous import Rendezvous
from . import early_coordinator
from .coordinator_rank import CoordinatorRank
from .rank import Rank
from .worker_rank import Options, work

__all__ = ["take_part"]


def take_part(rank: Rank, options: Options, rendezvous: Rendezvous) -> int:
    """Be a rank other than the client, until the run is over.

    Parameters
    ----------
    rank : Rank
        Which one.
    options : mapping of str to object
        What the user asked for, as it was given.
    rendezvous : Rendezvous
        How the ranks meet.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    EndError
        What prevents this rank from taking part, or has ended the run.
    """
    if rank.role == SCHEDULER:
        coordinator = early_coordinator.take() or CoordinatorRank(rank, rendezvous)
        return coordinator.run(rank, options, rendezvous)
    return work(rank, options, rendezvous)
