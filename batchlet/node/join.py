"""Joining the run: the connection to the coordinator, and the plan with what rank 0 knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..control.connection import Connection
from ..control.messages import Failed, Hello, ReportFailure, Welcome
from ..errors import PlanError
from ..plan import Plan
from ..rendezvous import CoordinatorRecord
from ..versions import versions
from .rank import PATIENCE, Rank

__all__ = ["connect", "plan_with_facts"]


def connect(
    rank: Rank,
    record: CoordinatorRecord,
    *,
    name: str,
    role: str,
    brings: Sequence[str] = (),
    latest: Callable[[], CoordinatorRecord | None] | None = None,
    replaceable_within: int = 0,
) -> Connection:
    """Connect to the coordinator on rank 0.

    Parameters
    ----------
    rank : Rank
        Who connects.
    record : CoordinatorRecord
        Where the coordinator is.
    name, role : str
        Of the process that connects, which may be another one than the rank itself.
    brings : sequence of str
        Participants that come with it.
    latest : callable, optional
        Looks for a newer record when nobody listens where this one says.
    replaceable_within : int
        See `batchlet.control.messages.Hello`.

    Raises
    ------
    StartTimeoutError
        If the coordinator cannot be reached.
    """
    return Connection(
        record,
        Hello(name, role, rank.info.node, rank.info.local_ranks, tuple(brings), versions(), replaceable_within),
        rank.deadline + PATIENCE,
        rank.settings.scheduler_timeout,
        latest,
    )


def plan_with_facts(rank: Rank, connection: Connection) -> Plan:
    """Make the plan, with what rank 0 knows; if that is not possible the run ends, for all.

    Raises
    ------
    EndError
        The root cause, if the run has failed.
    """
    facts = connection.wait(Welcome, rank.deadline + PATIENCE).facts
    try:
        return rank.plan(facts)
    except PlanError as error:
        # Rank 0 prints it, and answers with the end of the run.
        connection.send(ReportFailure.of(error))
        connection.wait(Failed, time.monotonic() + PATIENCE)
        raise
