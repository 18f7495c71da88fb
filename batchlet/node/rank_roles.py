"""What a rank does that is not the client: rank 0 coordinates, all others bring workers."""

from __future__ import annotations

import os
import time

from .. import report
from ..plan import SCHEDULER
from ..rendezvous import FileRendezvous, Rendezvous
from ..settings import Settings
from .rank import Rank
from .worker_rank import AgentBeside, Options, work

__all__ = ["coordinate_early", "take_part"]


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
    if rank.role != SCHEDULER:
        return work(rank, options, rendezvous)
    beside = AgentBeside(rendezvous)
    # Before all else: an agent takes longer to be there than a coordinator does.
    beside.host(rank, options)
    from .coordinator_rank import CoordinatorRank

    return CoordinatorRank(rank, rendezvous, beside).run(options)


def coordinate_early() -> int:
    """Be rank 0 until the run is over, before the script has made a runner on the one rank that goes on with it.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    EndError
        If something in the environment is wrong, or the ranks cannot meet.
    """
    settings = Settings.resolve({}, os.environ)
    rank = Rank.identify(settings, os.environ, time.monotonic())
    rendezvous = FileRendezvous(settings.rendezvous_dir, rank.info.run_id, rank.info.node)
    rendezvous.check()
    beside = AgentBeside(rendezvous, early=True)
    beside.host(rank, {})
    from .coordinator_rank import CoordinatorRank

    coordinator = CoordinatorRank(rank, rendezvous, beside, early=True)
    code = coordinator.run()
    if not code and not coordinator.has_served:
        report.note(f"the script has made no cluster: {rank.info.world_size} ranks were there, and end with it")
    return code
