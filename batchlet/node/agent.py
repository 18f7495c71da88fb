"""The agent of a node: one process that imports Dask once, and hosts the workers of all the ranks that attach to it.

It belongs to no rank: it goes on while any of them is there. A rank that dies costs its own workers, and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from .. import open_files, report, timeline
from ..control.connection import Connection
from ..control.messages import (
    Failed,
    Gone,
    Message,
    Planned,
    Ready,
    ReportFailure,
    SchedulerDied,
    SchedulerStarted,
    Signalled,
    Stop,
    Timeline,
    Welcome,
)
from ..control.signals import handled
from ..dask_import import quicker_import
from ..errors import EndError, RefusedError
from ..plan import WORKER
from ..rendezvous.base import CoordinatorRecord, Rendezvous
from ..rendezvous.file import FileRendezvous
from ..rendezvous.pipe import PipeRendezvous
from ..resources import cgroup_memory, read_host
from . import attach, inputs
from .join import connect
from .local_ranks import LocalRank, SharingRules, plan_of
from .rank import PATIENCE, Rank, unexpected

__all__ = ["run_agent"]

# Seconds within which the rank that has started the agent connects.
_FIRST = 10.0
_PAUSE = 0.05


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
            info, total = rank.info, rank.workers_expected
            local = max(len(info.local_ranks), rank.settings.workers_per_node or 0)
            # Before anything is forked, which inherits it; how many workers it will be exactly the ranks will tell.
            open_files.make_room(local, total)
            with _looking_out(rendezvous) as look:
                with quicker_import():
                    from ..dask_backend import fork_server, processes, tls, workers
                seen = look()
            directory = stack.enter_context(
                workers.scratch(rank.settings, rank.environment.scratch_directories(os.environ), info.run_id)
            )
            stack.enter_context(processes.hidden_main())
            stack.enter_context(workers.configured(local, total))
            timeline.mark("Dask imported")
            tls.defer_authorities()
            fork_server.start(directory, local)
        except EndError as error:
            problem = error
        except Exception as error:  # noqa: BLE001
            problem = unexpected(error, f"the host of the workers on node {rank.info.node}")
        agent = _Agent(rank, orders, rendezvous, told, directory, seen, problem)
        with handled(lambda number, _: agent.signalled(number)):
            return asyncio.run(agent.run())


@contextlib.contextmanager
def _looking_out(rendezvous: Rendezvous) -> Any:
    """Look out for the coordinator's record meanwhile; gives a function that ends this and tells what was seen.

    A record that was there and is gone says that the run is over, however long the import takes. There is no thread any more
    when the function has returned, since this process is about to fork.
    """
    found: list[CoordinatorRecord] = []
    over = threading.Event()

    def look() -> None:
        while not found and not over.wait(_PAUSE):
            record = rendezvous.latest()
            if record is not None:
                found.append(record)

    thread = threading.Thread(target=look, name="batchlet-look-out", daemon=True)
    thread.start()

    def end() -> CoordinatorRecord | None:
        over.set()
        thread.join()
        return found[0] if found else None

    try:
        yield end
    finally:
        end()


def _ending(code: int) -> str:
    """Say how a process has ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (the node may be out of memory)" if name == "SIGKILL" else "")


class _Agent:
    """The agent at work, in one event loop."""

    def __init__(
        self,
        rank: Rank,
        orders: Mapping[str, Any],
        rendezvous: Rendezvous,
        told: list[CoordinatorRecord],
        directory: str,
        seen: CoordinatorRecord | None,
        problem: EndError | None,
    ) -> None:
        self._rank = rank
        self._orders = orders
        self._rendezvous = rendezvous
        self._told = told
        self._directory = directory
        self._seen = seen
        self._problem = problem
        self._rules = SharingRules(rank.environment, cgroup_memory())
        self._host_facts = read_host()
        self._facts: Mapping[str, Any] = {}
        self._address = ""
        self._connection: Connection | None = None
        self._signals: list[tuple[int, str]] = []
        self._local_ranks: dict[str, LocalRank] = {}
        self._everyone: list[LocalRank] = []
        self._connections = 0

    async def run(self) -> int:
        """Let ranks attach, start their workers, wait for the end."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._started: asyncio.Future[str] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        ours = socket.socket(fileno=self._orders["socket"])
        server: asyncio.AbstractServer | None = None
        if self._orders["listens"]:
            server = await asyncio.start_unix_server(self._attend, sock=ours, backlog=4096)
        else:
            self._background(self._attend(*await asyncio.open_unix_connection(sock=ours)))
        self._loop.call_later(_FIRST, self._check_empty)
        joined = self._loop.run_in_executor(None, self._join)
        waits: list[asyncio.Future[Any]] = [joined, asyncio.ensure_future(self._over.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not joined.done() and self._everyone:
            # Who came is gone already: rank 0 is to know, if it can be found in time.
            await asyncio.wait([joined], timeout=_FIRST)
        if not joined.done():
            # Nobody is here any more, and the thread is still waiting for rank 0.
            os._exit(1)
        problem = joined.result()
        for local_rank in self._everyone:
            if local_rank.gone and self._connection is not None:
                self._connection.send(Gone(local_rank.name))
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

    # Ranks

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk with a rank for as long as it is there."""
        self._connections += 1
        local_rank: LocalRank | None = None
        try:
            if attach.user_of_peer(writer.get_extra_info("socket")) != os.geteuid():
                return
            size = int.from_bytes(await reader.readexactly(inputs.LENGTH), "big")
            words = inputs.decode(await reader.readexactly(size))
            if "scheduler" in words:
                await self._host_scheduler(words, writer)
                return
            local_rank = self._accept(words, writer)
            if local_rank is None:
                writer.write(b"own\n")
                return
            while line := await reader.readline():
                self.signalled(int(line.split()[1]), local_rank.name)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            # Not raised on: asyncio would print the end of a task that we end ourselves.
            pass
        finally:
            if local_rank is not None:
                self._lose(local_rank)
            else:
                writer.close()
            self._connections -= 1
            self._check_empty()

    def _accept(self, words: Mapping[str, Any], writer: asyncio.StreamWriter) -> LocalRank | None:
        """Accept a rank, or give `None` if its workers cannot live here."""
        mine, environ = self._rank, words["environ"]
        try:
            rank = Rank.identify(mine.settings, environ, mine.began, layout=words["layout"])
        except EndError:
            # The agent of its own that it gets will say so.
            return None
        if rank.info.rank != mine.info.rank and not self._rules.may_host_workers_of(words):
            return None
        local_rank = LocalRank(rank, tuple(words["cpus"]), writer)
        self._local_ranks[local_rank.name] = local_rank
        self._everyone.append(local_rank)
        timeline.mark("last rank came")
        self._widen(local_rank.cpus)
        if words["record"]:
            self._told.append(CoordinatorRecord(**words["record"]))
        self._background(self._start_workers(local_rank))
        return local_rank

    def _widen(self, cpus: tuple[int, ...]) -> None:
        """Run wherever any of the ranks may run: this process serves them all."""
        if cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, os.sched_getaffinity(0) | set(cpus))

    async def _host_scheduler(self, words: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        """Start the scheduler for rank 0, if it can be forked here; the process answers."""
        from ..dask_backend import scheduler_process

        await asyncio.shield(self._connected)
        if not scheduler_process.can_start() or not self._rules.may_fork_for(words):
            writer.write(b"own\n")
            return
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connection:
            process = scheduler_process.start(words, connection)
        coordinator = self._connection
        assert coordinator is not None

        def tell() -> None:
            self._loop.remove_reader(process.sentinel)
            process.join()
            coordinator.send(SchedulerDied(_ending(process.exitcode)))

        self._loop.add_reader(process.sentinel, tell)

    def _lose(self, local_rank: LocalRank) -> None:
        """A rank is gone, and takes its workers with it."""
        local_rank.gone = True
        if self._over.is_set():
            return
        self._local_ranks.pop(local_rank.name, None)
        if self._connection is not None:
            self._connection.send(Gone(local_rank.name))
        if local_rank.nannies:
            from ..dask_backend import workers

            self._background(workers.close(local_rank.nannies, 0.0))

    def _check_empty(self) -> None:
        if self._connections == 0 and not self._over.is_set():
            self._over.set()

    # Rank 0

    def _join(self) -> EndError | None:
        """Find rank 0 and learn what it knows; in a thread. Gives the reason if that is not possible."""
        rank = self._rank
        until = rank.deadline + PATIENCE
        try:
            record = self._seen or self._rendezvous.wait(until)
            self._connection = connection = connect(
                rank,
                record,
                name=f"agent-{rank.info.rank}",
                role=WORKER,
                brings=[rank.participant],
                latest=self._latest,
            )
            if self._problem is not None:
                raise self._problem
            for number, by in self._signals:
                connection.send(Signalled(number, by))
            timeline.mark("rank 0 found")
            self._facts = connection.wait(Welcome, until).facts
            self._address = rank.reachable_host()
        except EndError as error:
            return error
        return None

    def _latest(self) -> CoordinatorRecord | None:
        """Look for a newer record; one that was there before is gone when the run is over."""
        record = self._rendezvous.latest()
        if record is None and self._seen is not None:
            raise RefusedError("The run was over before this node could take part; the output of rank 0 says why.")
        return record

    def _hear(self, message: Message) -> None:
        """Do what rank 0 says; in the connection's thread."""
        if isinstance(message, SchedulerStarted):
            self._loop.call_soon_threadsafe(self._learn, message.address)
        elif isinstance(message, (Stop, Failed)):
            self._loop.call_soon_threadsafe(self._over.set)

    def _learn(self, address: str) -> None:
        timeline.mark("scheduler known")
        if not self._started.done():
            self._started.set_result(address)

    # Workers

    async def _serve(self) -> None:
        from ..dask_backend import fork_server, processes, tls, workers

        assert self._connection is not None
        processes.configure_logging()
        security = tls.security_for(self._rank.settings.security, self._connection.credentials)
        self._site = workers.Site(self._address, self._directory, security)
        fork_server.give(self._connection.credentials)
        self._connected.set_result(None)
        self._connection.listen(self._hear)
        await self._over.wait()
        self._end_in_time()
        processes.hush()
        await self._close()
        processes.end_helpers()

    async def _start_workers(self, local_rank: LocalRank) -> None:
        """Start the workers of a rank."""
        from ..dask_backend import processes, workers

        await asyncio.shield(self._connected)
        connection, settings = self._connection, self._rank.settings
        assert connection is not None
        local_rank.send("accepted")
        try:
            # An agent that listens has the workers of all ranks here.
            plans = plan_of(local_rank, self._facts, self._host_facts, shared=self._orders["listens"])
        except EndError as error:
            connection.send(ReportFailure.of(error))
            return
        connection.send(Planned(local_rank.name, [[w.name, w.threads, w.memory] for w in plans]))
        address = await asyncio.shield(self._started)
        try:
            context = workers.RankContext(local_rank.rank.task_environ, local_rank.cpus, self._rules.cpus)
            specs = [workers.nanny_spec(plan, settings, self._site, context) for plan in plans]
            await asyncio.gather(
                *(
                    workers.start(cls, options, address, local_rank.nannies, lambda: connection.has(Ready))
                    for cls, options in specs
                )
            )
            workers.keep_ports(local_rank.nannies)
            timeline.mark("last worker started")
            connection.send(Timeline(f"workers of node {self._rank.info.node}", timeline.marks()))
            processes.report_deaths()
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001
            if not local_rank.gone and not self._over.is_set():
                failure = error if isinstance(error, EndError) else workers.start_failure("worker", error)
                connection.send(ReportFailure.of(failure))

    # The end

    def _end_in_time(self) -> None:
        """See that this process ends, whatever holds it up: a rank of the node waits for that."""
        code = self._connection.exit_code if self._connection is not None else 1

        def tidy_up() -> None:
            from ..dask_backend import processes, workers

            with contextlib.suppress(Exception):
                processes.end_helpers()
                workers.remove_scratch()
            os._exit(code)

        timeout = self._rank.settings.stop_timeout
        for limit in (threading.Timer(2 * timeout, tidy_up), threading.Timer(3 * timeout, os._exit, [code])):
            limit.daemon = True
            limit.start()

    async def _close(self) -> None:
        """End the workers. The ranks may go meanwhile, but for the one that sees this process end.

        That is the one that has started it, if it is still there. When no rank of a node is, Slurm kills what else is left.
        """
        from ..dask_backend import workers

        assert self._connection is not None
        code = self._connection.exit_code
        ours = self._rank.info.rank
        for name in sorted(self._local_ranks, key=lambda name: self._local_ranks[name].rank.info.rank != ours)[1:]:
            self._local_ranks.pop(name).send(f"end {code}")
        for task in self._tasks:
            task.cancel()
        nannies = [nanny for local_rank in self._everyone for nanny in local_rank.nannies]
        await workers.close(nannies, self._rank.settings.stop_timeout if self._connection.failure is None else 0.0)
        for local_rank in self._everyone:
            local_rank.nannies.clear()

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
        for local_rank in self._local_ranks.values():
            local_rank.send(f"last {code}")
            # Open until this process is gone, whoever closes the connection before: that is what the rank waits for.
            os.dup(local_rank.writer.get_extra_info("socket").fileno())
        if connection is not None:
            connection.close()
        self._rendezvous.withdraw(orphaned=connection is not None and not connection.coordinator_is_alive)
        return code

    def _background(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
