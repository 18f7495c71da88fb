"""The ranks whose workers the agent of the node hosts: worker ranks, and head ranks that work too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
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

__all__ = ["AgentBeside", "Options", "layout_of", "work"]

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


class AgentBeside:
    """What a head rank has to do with the agent of its node, which hosts its workers: they never share its event loop.

    Parameters
    ----------
    rendezvous : Rendezvous
        How the ranks meet.
    early : bool
        Whether what the user asks for is still to come, from rank 0.
    """

    def __init__(self, rendezvous: Rendezvous, *, early: bool = False) -> None:
        self._rendezvous = rendezvous
        self._early = early
        self._connection: AgentConnection | None = None
        self._thread: threading.Thread | None = None
        self._stop_timeout = 0.0

    def host(self, rank: Rank, options: Options, record: CoordinatorRecord | None = None) -> None:
        """Have the agent host the workers of this rank, if it has any and has not asked before.

        Parameters
        ----------
        rank : Rank
            The head rank.
        options : mapping of str to object
            What the user asked for, as it was given.
        record : CoordinatorRecord, optional
            The coordinator's. Where the ranks meet through a file the agent looks for it itself, and can start already;
            elsewhere nothing happens without it.
        """
        rendezvous = self._rendezvous
        by_file = isinstance(rendezvous, FileRendezvous)
        if self._connection is not None or not rank.has_workers_beside or not (record or by_file):
            return
        until = rank.deadline + PATIENCE
        self._stop_timeout = rank.settings.stop_timeout
        self._connection = _connection(
            rank,
            {} if self._early else options,
            lambda: record or rendezvous.wait(until),
            layout_of(rendezvous),
            told=not by_file,
            becomes_shell=False,
            early=self._early,
        )
        self._thread = threading.Thread(
            target=_hold, args=(self._connection,), name="batchlet-agent-connection", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Need the workers no more."""
        if self._connection is not None and self._thread is not None:
            self._connection.leave()
            self._thread.join(self._stop_timeout)


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
    early: bool = False,
) -> AgentConnection:
    info, settings = rank.info, rank.settings
    # Now: a head rank starts its agent in a thread, while it imports Dask itself.
    launch = for_agent(options, rank.deadline, layout=layout, told=told, early=early)
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
