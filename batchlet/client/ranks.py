"""The backend *ranks*: the processes that a launcher has started, or that Batchlet itself has started in an allocation."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import timeline
from ..control.messages import (
    AskLogs,
    Begin,
    BlockOver,
    Done,
    Failed,
    ForReport,
    KeptLogs,
    Message,
    Ready,
    ReportFailure,
    SchedulerStarted,
    Terminate,
    Welcome,
)
from ..dask_import import quicker_import
from ..errors import EndError, InputError, UsageError
from ..network import LOOPBACK
from ..node import inputs
from ..node.rank import PATIENCE, Rank
from ..node.worker_rank import AgentBeside, Options
from ..plan import CLIENT, SCHEDULER, WORKER
from ..rendezvous import CoordinatorRecord, FileRendezvous, MpiRendezvous, MpiUnavailableError, Rendezvous
from ..run_report.log_lines import LogLine
from . import dask_clients, telling
from .backend import News, Outcome, StartInfo
from .early_client import EarlyClient
from .membership import Membership

if TYPE_CHECKING:
    from ..control.connection import Connection

__all__ = ["RanksBackend"]

# Seconds within which all connections to a dead process break.
_MOMENT = 1.0
# Seconds for the last words after `stop_timeout`.
_FAREWELL = 3.0
# Seconds in which a rank 0 that is alive answers.
_ANSWER = 30.0


class RanksBackend:
    """See `batchlet.client.backend.Backend`.

    Parameters
    ----------
    rank : Rank
        This process.
    options : mapping of str to object
        What the user asked for, as it was given.

    Raises
    ------
    EndError
        If this process has been in a run that is over.
    """

    def __init__(self, rank: Rank, options: Options) -> None:
        self._rank = rank
        self._options = options
        # What starts the ranks, where nobody has yet.
        self._launcher = rank.environment.launcher(rank.environ)
        # Where the script began with `batchlet.early`: rank 0 knows this process already, but not what it wants.
        self._early = EarlyClient.of_this_process()
        # Of the blocks before this one.
        self._membership = Membership.of_this_process()
        self._rendezvous = _choose(rank, self._early)
        self._notes: FileRendezvous | None = None
        # Before the script goes elsewhere.
        self._reports = rank.settings.path("report")

    @property
    def rank(self) -> Rank:
        """See the protocol."""
        return self._rank

    def check(self) -> None:
        """See the protocol. Finds out whether the ranks can meet as planned; where MPI cannot be loaded, a file serves too."""
        if self._membership is not None or self._launcher is not None or self._rank.info.world_size == 1:
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

    def start(self, check: Callable[[], None]) -> StartInfo:
        """See the protocol."""
        rank = self._rank
        if self._launcher is None and rank.role in (SCHEDULER, WORKER):
            from ..node.rank_roles import take_part

            self._end_process(take_part(rank, self._options, self._rendezvous))
        from ..node.join import plan_with_facts

        if self._launcher is not None:
            check()
        connection = self._join()
        connection.send(ForReport(telling.about(rank.settings, rank.environ)))
        plan = plan_with_facts(rank, connection)
        if self._launcher is None:
            check()
        self._check_security(connection)
        if self._launcher is None:
            with quicker_import():
                # The script is about to do it; here it is done while the workers start.
                importlib.import_module("distributed")
                tuning = importlib.import_module("batchlet.dask_backend.tuning")
            tuning.be_patient(rank.info.world_size)
        until = rank.deadline + PATIENCE
        started, ready = connection.wait(SchedulerStarted, until), connection.wait(Ready, until)
        from ..dask_backend import tls

        if self._membership is not None:
            timeout = rank.settings.stop_timeout
            self._membership.open_block = lambda: dask_clients.close(started.address, timeout)
        record = connection.record
        return StartInfo(
            address=started.address,
            dashboard=(str(started.dashboard[0]), int(started.dashboard[1])) if started.dashboard else None,
            token=rank.dashboard_token(record),
            node=record.node,
            run_id=record.run_id if record.host != LOOPBACK else None,
            security=tls.security_for(rank.settings.security, connection.credentials),
            plan=plan,
            workers=ready.workers,
            nodes=ready.nodes,
            threads=(ready.threads[0], ready.threads[1]),
            memory=(ready.memory[0], ready.memory[1]),
        )

    def _check_security(self, connection: Connection) -> None:
        """Refuse an object that each rank has made for itself: scheduler and workers have rank 0's."""
        wanted = self._rank.settings.security
        if wanted is None or isinstance(wanted, bool):
            return
        from ..dask_backend import processes, tls

        launch = connection.wait(Welcome, self._rank.deadline + PATIENCE).launch
        options, _ = inputs.unpack_options(inputs.from_text(launch))
        if not tls.is_same(wanted, options.get("security")):
            error = InputError(processes.SAME_SECURITY)
            # Rank 0 prints it, and answers with the end of the run.
            connection.send(ReportFailure.of(error))
            connection.wait(Failed, time.monotonic() + PATIENCE)
            raise error

    def _join(self) -> Connection:
        """Get in touch with rank 0; or ask it for another block, where this process has been in its run before."""
        membership = self._membership
        if membership is not None and membership.connection is not None:
            membership.new_block()
            return self._ask_for_block(membership.connection)
        rank = self._rank
        self._membership = membership = Membership(self._rendezvous, rank.settings.stop_timeout)
        if self._early is not None:
            return self._ask_for_block(self._come_forward(membership, self._early))
        if self._launcher is None:
            return self._meet(membership)
        from ..launchers.step import start_step

        record = membership.stack.enter_context(start_step(rank, self._options, self._launcher))
        return self._connect(membership, record, "client")

    def _ask_for_block(self, connection: Connection) -> Connection:
        """Ask rank 0 for a block with the options of this runner."""
        launch = inputs.for_agent(self._options, self._rank.deadline)
        connection.send(Begin(inputs.to_text(launch)))
        return connection

    def _come_forward(self, membership: Membership, early: EarlyClient) -> Connection:
        """Talk with rank 0, which knows of this process so far and no more."""
        record = early.record()
        early.beside.host(self._rank, self._options)
        membership.stack.callback(early.beside.close)
        connection = self._connect(membership, record, str(self._rank.info.rank))
        early.hand_over()
        return connection

    def _meet(self, membership: Membership) -> Connection:
        """Find rank 0, and have the agent of this node host this rank's workers, if it has any."""
        rank, rendezvous, until = self._rank, self._rendezvous, self._rank.deadline + PATIENCE
        beside = AgentBeside(rendezvous)
        beside.host(rank, self._options)
        membership.stack.callback(beside.close)
        record = rendezvous.wait(until)
        beside.host(rank, self._options, record)
        return self._connect(membership, record, str(rank.info.rank))

    def _connect(self, membership: Membership, record: CoordinatorRecord, name: str) -> Connection:
        from ..node.join import connect

        rank = self._rank
        brings = [rank.participant] if rank.has_workers_beside else []
        latest = None if self._launcher is not None else (self._early or self._rendezvous).latest
        connection = connect(rank, record, name=name, role=CLIENT, brings=brings, latest=latest)
        membership.connected(connection)
        if rank.settings.join:
            membership.stack.callback(_tidy_up, rank, connection)
        timeline.mark("rank 0 found")
        return connection

    def _end_process(self, code: int) -> NoReturn:
        if self._rank.role == WORKER:
            self._rendezvous.withdraw()
        sys.stdout.flush()
        if code:
            self._rendezvous.abandon(code)
        sys.exit(code)

    def for_report(self, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """See the protocol. Where rank 0 is lost, how it ended is written here."""
        connection = self._connection
        if connection is None:
            return
        if connection.coordinator_is_alive:
            connection.send(ForReport(told))
        elif self._reports is not None and told[-1][0] == "ended":
            telling.end_instead_of_rank_0(self._rank, connection.record.run_id, self._reports, told)

    def listen(self, news: News) -> None:
        """See the protocol."""
        from ..control.connection import error_of

        membership, connection = self._membership, self._connection
        assert membership is not None
        assert connection is not None

        def hear(message: Message) -> None:
            if isinstance(message, Terminate):
                news.terminate(message.number, message.where)
            elif isinstance(message, Failed):
                news.fail(error_of(message), connection.coordinator_is_alive)

        membership.listen(hear)

    @property
    def _connection(self) -> Connection | None:
        return self._membership.connection if self._membership is not None else None

    @property
    def connected(self) -> bool:
        """See the protocol."""
        return self._connection is not None or self._early is not None

    def root_cause(self, seconds: float = 0.0) -> EndError | None:
        """See the protocol."""
        connection = self._connection
        if connection is None:
            return None
        if seconds:
            connection.wait_failure(seconds)
        return connection.failure

    def logs(self) -> tuple[list[LogLine], int]:
        """See the protocol."""
        connection = self._connection
        assert connection is not None
        lines: list[LogLine] = []
        while True:
            connection.forget(KeptLogs)
            connection.send(AskLogs(len(lines)))
            kept = connection.wait(KeptLogs, time.monotonic() + _ANSWER)
            lines += kept.lines
            if not kept.lines or len(lines) >= kept.count:
                return lines, kept.dropped

    def note(self, text: str) -> Path:
        """See the protocol."""
        self._notes = self._rank.notes(self._membership.record if self._membership is not None else None)
        return self._notes.leave_note(text)

    def stop(self) -> Outcome:
        """See the protocol. Returns when the workers are gone; their ranks wait for another block, or this process's end."""
        self._remove_note()
        membership, connection = self._membership, self._connection
        assert membership is not None
        assert connection is not None
        membership.open_block = None
        connection.send(Done())
        try:
            over = connection.wait(BlockOver, time.monotonic() + self._rank.settings.stop_timeout + _FAREWELL)
        except EndError:
            return Outcome()
        return Outcome(over.timeline, over.use)

    def let_go(self) -> None:
        """See the protocol."""
        self._remove_note()
        if self._membership is not None:
            self._membership.finish()

    def close(self) -> None:
        """See the protocol. A run that has failed is over; any other one goes on until this process ends."""
        self._remove_note()
        if self._membership is not None and (self._connection is None or self._connection.failure is not None):
            self._membership.close()

    def _remove_note(self) -> None:
        if self._notes is not None:
            self._notes.remove_note()

    def give_up(self, error: EndError) -> bool:
        """See the protocol. Rank 0, if it is there, tells the others and the user."""
        connection = self._connection
        told = self._early is not None and self._early.told
        if connection is not None:
            told = connection.coordinator_is_alive and connection.failure is not None
        if connection is not None and connection.coordinator_is_alive and connection.failure is None:
            connection.send(ReportFailure.of(error))
            connection.wait_failure(_MOMENT)
            told = connection.failure is not None
        self._remove_note()
        if self._membership is not None:
            self._membership.close()
        return told

    def abandon(self, code: int) -> None:
        """See the protocol."""
        self._rendezvous.abandon(code)


def _tidy_up(rank: Rank, connection: Connection) -> None:
    """Remove what a rank 0 that is lost has left for those who join the run."""
    if not connection.coordinator_is_alive:
        rank.remove_orphan(connection.record)


def _choose(rank: Rank, early: EarlyClient | None) -> Rendezvous:
    """How the ranks meet."""
    wanted, info = rank.settings.rendezvous, rank.info
    if wanted == "mpi" and early is not None:
        raise UsageError(
            'rendezvous="mpi" needs all ranks, but the others wait at `import batchlet.early` already: import '
            "BatchletRunner from batchlet, or set BATCHLET_DASK_CLUSTER__RENDEZVOUS=mpi, which is known early enough."
        )
    if early is not None:
        return early.rendezvous
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
