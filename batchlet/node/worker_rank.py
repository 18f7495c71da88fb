"""The ranks whose workers the agent of the node hosts: worker ranks, and head ranks that work too."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from .. import report
from ..control.signals import handled
from ..errors import EndError
from ..rendezvous import CoordinatorRecord, FileRendezvous, MpiRendezvous, Rendezvous
from .agent_socket import secret_name, socket_name
from .attach import PATIENCE as AGENTS_PATIENCE
from .attach import AgentConnection
from .inputs import for_agent, of_this_rank
from .rank import PATIENCE, Rank, unexpected

__all__ = ["Options", "agent_beside", "layout_of", "work"]

# What the user asked for, as it was given.
Options = Mapping[str, object]


def work(rank: Rank, options: Options, rendezvous: Rendezvous) -> int:
    """Leave this rank's workers to the agent of the node, and wait until the run is over.

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
    """
    connection = _connection(
        rank,
        options,
        lambda: rendezvous.wait(rank.deadline + PATIENCE),
        layout_of(rendezvous),
        told=not isinstance(rendezvous, FileRendezvous),
        becomes_shell=True,
    )
    with handled(connection.on_signal):
        return connection.hold()


@contextlib.contextmanager
def agent_beside(
    rank: Rank, options: Options, rendezvous: Rendezvous, record: Callable[[], CoordinatorRecord], *, told: bool
) -> Iterator[None]:
    """Have the agent of the node host this head rank's workers, so that they never share the head's event loop.

    Parameters
    ----------
    rank : Rank
        The head rank; without workers of its own nothing happens.
    options : mapping of str to object
        What the user asked for, as it was given.
    rendezvous : Rendezvous
        How the ranks meet.
    record : callable
        Gives the coordinator's record, once it is there.
    told : bool
        Whether the agent is told the record by this rank; otherwise it looks for it itself.
    """
    if not rank.has_workers_beside:
        yield
        return
    connection = _connection(rank, options, record, layout_of(rendezvous), told=told, becomes_shell=False)
    thread = threading.Thread(target=_hold, args=(connection,), name="batchlet-agent-connection", daemon=True)
    thread.start()
    try:
        yield
    finally:
        connection.leave()
        thread.join(rank.settings.stop_timeout)


def layout_of(rendezvous: Rendezvous) -> list[Any] | None:
    """Say which ranks share this node, where the ranks have found that out as they met."""
    if not isinstance(rendezvous, MpiRendezvous):
        return None
    local_ranks, nodes = rendezvous.layout
    return [list(local_ranks), nodes]


def _connection(
    rank: Rank,
    options: Options,
    record: Callable[[], CoordinatorRecord],
    layout: list[Any] | None,
    *,
    told: bool,
    becomes_shell: bool,
) -> AgentConnection:
    info, settings = rank.info, rank.settings
    # Now: a head rank starts its agent in a thread, while it imports Dask itself.
    launch = for_agent(options, rank.deadline, layout=layout, told=told)
    return AgentConnection(
        socket_name(info.run_id, info.node, rank.environ) if settings.share_node else None,
        rank.environ,
        lambda: of_this_rank(rank.environ, record=asdict(record()) if told else None, layout=layout),
        lambda **ours: {**launch, **ours},
        rank.deadline + AGENTS_PATIENCE,
        other_name=lambda: secret_name(record().secret, info.node),
        stop_timeout=settings.stop_timeout,
        becomes_shell=becomes_shell,
    )


def _hold(connection: AgentConnection) -> None:
    try:
        connection.hold()
    except EndError:
        pass  # the coordinator misses the workers, and says so
    except Exception as error:  # noqa: BLE001
        report.failure(unexpected(error, "the host of this node's workers"))
