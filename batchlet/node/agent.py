"""The agent of a node: one process that imports Dask once, and hosts the workers of all the ranks that attach to it.

It belongs to no rank: it goes on while any of them is there. A rank that dies costs its own workers, and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .. import open_files, report, timeline
from ..control.connection import Connection
from ..control.messages import (
    Failed,
    ForReport,
    Message,
    Pause,
    Paused,
    Ready,
    Replaces,
    ReportFailure,
    SchedulerStarted,
    Signalled,
    SocketTaken,
    Stop,
    Welcome,
)
from ..control.signals import handled
from ..dask_import import quicker_import
from ..errors import EndError, RefusedError
from ..plan import WORKER
from ..rendezvous.base import CoordinatorRecord, Rendezvous
from ..rendezvous.file import FileRendezvous
from ..rendezvous.pipe import PipeRendezvous
from ..run_report.log_lines import for_report
from . import inputs
from .handover import Handover, is_over
from .join import connect
from .local_ranks import LocalRanks
from .look_out import looking_out
from .rank import PATIENCE, Rank, unexpected
from .resolve import resolve
from .sampling import Sampling

__all__ = ["run_agent"]

# Seconds within which the rank that has started the agent connects.
_FIRST = 10.0
_BACKLOG = 4096


def run_agent(rank: Rank, orders: Mapping[str, Any]) -> int:
    """Host workers until the run is over, or no rank is left here.

    Parameters
    ----------
    rank : Rank
        The rank that has started the agent.
    orders : mapping
        As `batchlet.node.inputs.for_agent` has made them.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    EndError
        If the ranks cannot meet as planned. Rank 0 says so.
    """
    handover = Handover(orders)
    told: list[CoordinatorRecord] = []
    rendezvous: Rendezvous = PipeRendezvous(lambda: told[0] if told else None)
    if not orders["told"]:
        rendezvous = FileRendezvous(rank.settings.rendezvous_dir, rank.info.run_id, rank.info.node)
        rendezvous.check()
    _, config = inputs.unpack_options(orders)
    if config is not None:
        import dask.config

        dask.config.update(dask.config.config, config)
    with contextlib.ExitStack() as stack:
        problem: EndError | None = None
        directory = ""
        seen: CoordinatorRecord | None = None
        try:
            info, (local, total) = rank.info, _crowd(rank)
            # Before anything is forked, which inherits it; how many workers it will be exactly the ranks will tell.
            open_files.make_room(local, total)
            with looking_out(rendezvous) as look:
                with quicker_import():
                    from ..dask_backend import fork_server, processes, scratch, workers
                    from ..dask_backend.compat.tls_connections import defer_authorities
                seen = look()
            usual = rank.environment.scratch_directories(os.environ)
            # Rank 0's scheduler says where scratch is, for all.
            directory = stack.enter_context(scratch.scratch(rank.settings, usual, info.run_id, quiet=True))
            stack.enter_context(processes.hidden_main())
            stack.enter_context(workers.configured(local, total))
            timeline.mark("Dask imported")
            processes.end_session(orders.get("session"))
            defer_authorities()
            handover.keep(session=fork_server.start(directory, local, rank.settings.scheduler_timeout))
        except EndError as error:
            problem = error
        except Exception as error:  # noqa: BLE001
            problem = unexpected(error, f"the host of the workers on node {rank.info.node}")
        agent = _Agent(rank, orders, handover, rendezvous, told, directory, seen, problem)
        with handled(lambda number, _: agent.signalled(number)):
            return asyncio.run(agent.run())


def _crowd(rank: Rank) -> tuple[int, int]:
    """About how many workers there will be, on this node and in all."""
    return max(len(rank.info.local_ranks), rank.settings.workers_per_node or 0), rank.workers_expected


def _adopt(rank: Rank, words: Mapping[str, Any]) -> None:
    """Take over what the script has set, where this process was started before it did, or for an earlier block."""
    from ..dask_backend import workers

    local, total = _crowd(rank)
    open_files.make_room(local, total)
    _, config = inputs.unpack_options(words)
    if config is not None:
        workers.reconfigure(config, local, total)


class _Agent:
    """The agent at work, in one event loop."""

    def __init__(
        self,
        rank: Rank,
        orders: Mapping[str, Any],
        handover: Handover,
        rendezvous: Rendezvous,
        told: list[CoordinatorRecord],
        directory: str,
        seen: CoordinatorRecord | None,
        problem: EndError | None,
    ) -> None:
        self._rank = rank
        self._orders = orders
        self._handover = handover
        self._rendezvous = rendezvous
        self._told = told
        self._directory = directory
        self._seen = seen
        self._problem = problem
        self._connection: Connection | None = None
        self._signals: list[tuple[int, str]] = []
        self._logs: Any = None
        self._blocks = 0
        self._sampling = Sampling(
            lambda told: connection.send(ForReport(told)) if (connection := self._connection) else None
        )

    async def run(self) -> int:
        """Let ranks attach, start their workers, wait for the end."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._ranks = ranks = LocalRanks(
            self._rank,
            shared=self._orders["listens"],
            why_own=self._orders["own"],
            told=self._told,
            on_signal=self.signalled,
            on_empty=self._over.set,
            handover=self._handover,
        )
        ours = socket.socket(fileno=self._orders["socket"])
        server: asyncio.AbstractServer | None = None
        if self._orders["listens"]:
            server = await asyncio.start_unix_server(ranks.attend, sock=ours, backlog=_BACKLOG)
        else:
            ranks.background(ranks.attend(*await asyncio.open_unix_connection(sock=ours)))
        self._loop.call_later(_FIRST, ranks.check_empty)
        joined = self._loop.run_in_executor(None, self._join)
        waits: list[asyncio.Future[Any]] = [joined, asyncio.ensure_future(self._over.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not joined.done() and ranks.any_came:
            # Who came is gone already: rank 0 is to know, if it can be found in time.
            await asyncio.wait([joined], timeout=_FIRST)
        if not joined.done():
            # Nobody is here any more, and the thread is still waiting for rank 0.
            os._exit(1)
        problem = joined.result()
        if problem is None:
            await self._serve()
        else:
            self._end_in_time()
        code = self._end(problem)
        if server is not None:
            server.close()
        return code

    def signalled(self, number: int, by: str | None = None) -> None:
        """Pass a signal that this process or a rank here got on to rank 0, which tells the client."""
        by = by or self._rank.participant
        if self._connection is None:
            self._signals.append((number, by))
        else:
            self._connection.send(Signalled(number, by))

    # Rank 0

    def _join(self) -> EndError | None:
        """Find rank 0 and learn what it knows; in a thread. Gives the reason if that is not possible."""
        rank = self._rank
        until = rank.deadline + PATIENCE
        try:
            record = self._seen or self._rendezvous.wait(until)
            self._handover.keep_name(name := f"agent-{rank.info.rank}")
            self._connection = connection = connect(
                rank,
                record,
                name=name,
                role=WORKER,
                brings=[rank.participant],
                latest=self._latest,
                replaceable_within=self._handover.seconds,
            )
            self._handover.keep_record(connection.record, rank.info.node)
            if self._handover.number or self._ranks.saw:
                connection.send(Replaces(self._ranks.saw, self._handover.before))
            if self._problem is not None:
                raise self._problem
            if self._orders["stranger"]:
                connection.send(SocketTaken(*self._orders["stranger"]))
            for number, by in self._signals:
                connection.send(Signalled(number, by))
            timeline.mark("rank 0 found")
        except EndError as error:
            return error
        return None

    def _latest(self) -> CoordinatorRecord | None:
        """Look for a newer record; one that was there before is gone when the run is over."""
        record = self._rendezvous.latest()
        if record is None and self._seen is not None:
            raise RefusedError("The run was over before this node could take part; the output of rank 0 says why.")
        if self._handover.number and self._told and is_over(asdict(self._told[0])):
            raise RefusedError("The run was over before this node could take part in it again.")
        return record

    def _hear(self, message: Message) -> None:
        """Do what rank 0 says; in the connection's thread."""
        if isinstance(message, Welcome):
            self._loop.call_soon_threadsafe(self._begin, message)
        elif isinstance(message, SchedulerStarted):
            self._loop.call_soon_threadsafe(self._learn, message.address)
        elif isinstance(message, Pause):
            self._loop.call_soon_threadsafe(self._start_pausing)
        elif isinstance(message, (Stop, Failed)):
            self._loop.call_soon_threadsafe(self._over.set)

    def _learn(self, address: str) -> None:
        timeline.mark("scheduler known")
        self._ranks.scheduler_known(address)

    # Workers

    async def _serve(self) -> None:
        from ..dask_backend import fork_server, logs, processes, worker_logs

        connection = self._connection
        assert connection is not None
        logs.configure_logging()
        fork_server.give(connection.credentials)
        self._logs = worker_logs.NodeLogs(
            lambda *said: connection.send(ForReport(for_report(*said))), self._rank.info.node
        )
        self._logs.listen()
        self._ranks.joined(connection)
        connection.listen(self._hear)
        await self._over.wait()
        self._ranks.over(connection.exit_code)
        self._end_in_time()
        self._sampling.end()
        logs.hush()
        timeout = self._rank.settings.stop_timeout
        await self._ranks.close(connection.exit_code, timeout if connection.failure is None else 0.0)
        self._logs.close()
        processes.end_helpers()

    def _begin(self, welcome: Welcome) -> None:
        """Begin a block, with the settings of this time."""
        from ..dask_backend import logs, tls, workers

        connection = self._connection
        assert connection is not None
        logs.configure_logging()
        connection.forget(Ready)
        try:
            words = inputs.from_text(welcome.launch)
            adopt = self._orders["early"] or self._blocks > 0
            self._blocks += 1
            if adopt:
                sys.path[:] = words["sys_path"]
            self._rank = rank = resolve(
                {**words, "layout": self._orders["layout"]}, self._rank.environ, from_elsewhere=True
            )
            if adopt:
                _adopt(rank, words)
            security = tls.security_for(rank.settings, connection.credentials)
            site = workers.Site(rank.reachable_host(), self._directory, security, self._logs.path)
        except EndError as error:
            connection.send(ReportFailure.of(error))
            return
        self._ranks.begin(rank, welcome.facts, site)
        self._sampling.begin(rank.info.node, self._ranks.processes, rank.info.nodes, logs.hear_deaths)

    def _start_pausing(self) -> None:
        # Kept, since the event loop itself does not.
        self._pausing = self._loop.create_task(self._pause())

    async def _pause(self) -> None:
        """End the workers of the block, and say so."""
        from ..dask_backend import logs

        connection = self._connection
        assert connection is not None
        limits = self._end_in_time()
        logs.hush()
        self._sampling.end()
        await self._ranks.pause(self._rank.settings.stop_timeout)
        for limit in limits:
            limit.cancel()
        self._logs.drain()
        connection.send(Paused())

    # The end

    def _end_in_time(self) -> list[threading.Timer]:
        """See that this process ends, whatever holds it up: a rank of the node waits for that."""
        code = self._connection.exit_code if self._connection is not None else 1

        def tidy_up() -> None:
            from ..dask_backend import processes, scratch

            with contextlib.suppress(Exception):
                processes.end_helpers()
                scratch.remove_scratch()
            os._exit(code)

        timeout = self._rank.settings.stop_timeout
        limits = [threading.Timer(2 * timeout, tidy_up), threading.Timer(3 * timeout, os._exit, [code])]
        for limit in limits:
            limit.daemon = True
            limit.start()
        return limits

    def _end(self, problem: EndError | None) -> int:
        """Say good-bye to everybody."""
        connection, info = self._connection, self._rank.info
        if problem is not None and connection is not None and connection.failure is None:
            connection.send(ReportFailure.of(problem))
            connection.wait_failure(PATIENCE)
        silent = info.client_rank in info.local_ranks or isinstance(problem, RefusedError)
        if problem is not None and connection is None and not silent:
            # Nobody else on this node says so.
            report.failure(problem, time.monotonic() - self._rank.began)
        code = connection.exit_code if connection is not None else problem.exit_code if problem is not None else 0
        if connection is None and self._handover.number and isinstance(problem, RefusedError):
            # It has ended without this node, be it well or not.
            code = 0
        self._ranks.dismiss(code)
        if connection is not None:
            connection.close()
        lost = connection is not None and not connection.coordinator_is_alive
        self._rendezvous.withdraw(orphaned=lost)
        if connection is not None and lost and self._rank.settings.stays_open:
            self._rank.remove_orphan(connection.record)
        return code
