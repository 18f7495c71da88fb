"""The backend *ranks*: the processes that a launcher has started, or that Batchlet itself has started in an allocation."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .. import timeline
from ..control.messages import Closed, Done, Failed, Message, Ready, ReportFailure, SchedulerStarted, Terminate
from ..dask_import import quicker_import
from ..errors import EndError
from ..node.rank import PATIENCE, Rank
from ..node.worker_rank import Options, agent_beside
from ..plan import CLIENT, SCHEDULER, WORKER
from ..rendezvous import CoordinatorRecord, FileRendezvous, MpiRendezvous, MpiUnavailableError, Rendezvous
from ..security import dashboard_token
from .backend import News, Outcome, StartInfo

if TYPE_CHECKING:
    from ..control.connection import Connection

__all__ = ["RanksBackend"]

# Seconds within which all connections to a dead process break.
_MOMENT = 1.0
# Seconds for the last words after `stop_timeout`.
_FAREWELL = 3.0


class RanksBackend:
    """See `batchlet.client.backend.Backend`.

    Parameters
    ----------
    rank : Rank
        This process.
    options : mapping of str to object
        What the user asked for, as it was given.
    """

    def __init__(self, rank: Rank, options: Options) -> None:
        self._rank = rank
        self._options = options
        # What starts the ranks, where nobody has yet.
        self._launcher = rank.environment.launcher(rank.environ)
        self._rendezvous = _choose(rank)
        self._stack = contextlib.ExitStack()
        self._connection: Connection | None = None
        self._record: CoordinatorRecord | None = None
        self._notes: FileRendezvous | None = None

    @property
    def rank(self) -> Rank:
        """See the protocol."""
        return self._rank

    def check(self) -> None:
        """See the protocol. Finds out whether the ranks can meet as planned; where MPI cannot be loaded, a file serves too."""
        if self._launcher is not None or self._rank.info.world_size == 1:
            return
        try:
            self._rendezvous.check()
        except MpiUnavailableError:
            if self._rank.settings.rendezvous == "mpi":
                raise
            self._rendezvous = _by_file(self._rank)
            self._rendezvous.check()
        if isinstance(self._rendezvous, MpiRendezvous):
            # The launcher's variables allow a guess only.
            self._rank = self._rank.placed(*self._rendezvous.layout)

    def start(self) -> StartInfo:
        """See the protocol."""
        from ..node.join import plan_with_facts
        from ..node.rank_roles import take_part

        rank = self._rank
        if self._launcher is None and rank.role in (SCHEDULER, WORKER):
            self._end_process(take_part(rank, self._options, self._rendezvous))
        if self._launcher is not None:
            from ..launchers.step import start_step

            record = self._stack.enter_context(start_step(rank, self._options, self._launcher))
            connection = self._connect(record, "client")
        else:
            connection = self._meet()
        plan = plan_with_facts(rank, connection)
        if self._launcher is None:
            with quicker_import():
                # The script is about to do it; here it is done while the workers start.
                importlib.import_module("distributed")
                tuning = importlib.import_module("batchlet.dask_backend.tuning")
            tuning.be_patient(rank.info.world_size)
        until = rank.deadline + PATIENCE
        started, ready = connection.wait(SchedulerStarted, until), connection.wait(Ready, until)
        from ..dask_backend import tls

        record = connection.record
        return StartInfo(
            address=started.address,
            dashboard=(str(started.dashboard[0]), int(started.dashboard[1])) if started.dashboard else None,
            token=dashboard_token(record.secret) if record.certificate else None,
            node=record.node,
            security=tls.security_for(rank.settings.security, connection.credentials),
            plan=plan,
            workers=ready.workers,
            nodes=ready.nodes,
            threads=(ready.threads[0], ready.threads[1]),
            memory=(ready.memory[0], ready.memory[1]),
        )

    def _meet(self) -> Connection:
        """Find rank 0, and have the agent of this node host this rank's workers, if it has any."""
        rank, rendezvous, until = self._rank, self._rendezvous, self._rank.deadline + PATIENCE
        by_file = isinstance(rendezvous, FileRendezvous)
        # Where the ranks meet through a file the agent can start already; otherwise it is told the record by this rank.
        beside = agent_beside(rank, self._options, rendezvous, lambda: rendezvous.wait(until), told=not by_file)
        if by_file:
            self._stack.enter_context(beside)
        record = rendezvous.wait(until)
        if not by_file:
            self._stack.enter_context(beside)
        return self._connect(record, str(rank.info.rank))

    def _connect(self, record: CoordinatorRecord, name: str) -> Connection:
        from ..node.join import connect

        rank = self._rank
        brings = [rank.participant] if rank.has_workers_beside else []
        latest = None if self._launcher is not None else self._rendezvous.latest
        self._connection = connection = connect(rank, record, name=name, role=CLIENT, brings=brings, latest=latest)
        self._record = connection.record
        self._stack.callback(connection.close)
        timeline.mark("rank 0 found")
        return connection

    def _end_process(self, code: int) -> NoReturn:
        if self._rank.role == WORKER:
            self._rendezvous.withdraw()
        sys.stdout.flush()
        if code:
            self._rendezvous.abandon(code)
        sys.exit(code)

    def listen(self, news: News) -> None:
        """See the protocol."""
        from ..control.connection import error_of

        connection = self._connection
        assert connection is not None

        def hear(message: Message) -> None:
            if isinstance(message, Terminate):
                news.terminate(message.number, message.where)
            elif isinstance(message, Failed):
                news.fail(error_of(message), connection.coordinator_is_alive)

        connection.listen(hear)

    @property
    def connected(self) -> bool:
        """See the protocol."""
        return self._connection is not None

    def root_cause(self, seconds: float = 0.0) -> EndError | None:
        """See the protocol."""
        if self._connection is None:
            return None
        if seconds:
            self._connection.wait_failure(seconds)
        return self._connection.failure

    def note(self, text: str) -> Path:
        """See the protocol."""
        self._notes = self._rank.notes(self._record)
        return self._notes.leave_note(text)

    def stop(self) -> Outcome:
        """See the protocol. Returns when the workers are gone."""
        if self._notes is not None:
            self._notes.remove_note()
        connection = self._connection
        assert connection is not None
        connection.send(Done())
        try:
            closed = connection.wait(Closed, time.monotonic() + self._rank.settings.stop_timeout + _FAREWELL)
        except EndError:
            return Outcome()
        return Outcome(closed.timeline)

    def let_go(self) -> None:
        """See the protocol."""
        self.stop()

    def close(self) -> None:
        """See the protocol."""
        if self._notes is not None:
            self._notes.remove_note()
        self._stack.close()
        connection = self._connection
        self._rendezvous.withdraw(orphaned=connection is not None and not connection.coordinator_is_alive)

    def give_up(self, error: EndError) -> bool:
        """See the protocol. Rank 0, if it is there, tells the others and the user."""
        connection = self._connection
        told = connection is not None and connection.coordinator_is_alive and connection.failure is not None
        if connection is not None and connection.coordinator_is_alive and connection.failure is None:
            connection.send(ReportFailure.of(error))
            connection.wait_failure(_MOMENT)
            told = connection.failure is not None
        self.close()
        return told

    def abandon(self, code: int) -> None:
        """See the protocol."""
        self._rendezvous.abandon(code)


def _choose(rank: Rank) -> Rendezvous:
    """How the ranks meet."""
    wanted, info = rank.settings.rendezvous, rank.info
    by_mpi = rank.environment.rendezvous[0] == "mpi"
    if wanted == "mpi" or (wanted == "auto" and by_mpi and MpiRendezvous.available() is None):
        # Rank 0's patience ends first, so that it is the one to say who is missing.
        return MpiRendezvous(
            rank=info.rank,
            world_size=info.world_size,
            node=info.node,
            source=rank.reason,
            deadline=rank.deadline + (PATIENCE if info.rank else 0.0),
        )
    return _by_file(rank)


def _by_file(rank: Rank) -> FileRendezvous:
    return FileRendezvous(rank.settings.rendezvous_dir, rank.info.run_id, rank.info.node)
