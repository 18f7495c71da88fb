"""The host of a node's workers: one process that imports Dask once, for the workers of all the ranks that take a seat here.

It belongs to no rank: it goes on while any of them is there. A rank that dies costs its own workers, and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .. import open_files, report, timeline
from ..control.connection import Connection
from ..control.signals import handled
from ..dask_import import quicker_import
from ..environments.base import Figure
from ..errors import EndError
from ..network import reachable_host
from ..plan import WORKER, WorkerPlan, make_plan
from ..rendezvous.base import CoordinatorRecord, Rendezvous
from ..rendezvous.file import FileRendezvous
from ..rendezvous.pipe import PipeRendezvous
from ..resources import HostFacts, cgroup_memory, node_resources, read_host
from ..versions import versions
from . import attach
from .bootstrap import HostOrders
from .rank import participant, unexpected

__all__ = ["host"]

# Seconds by which patience here exceeds rank 0's, which knows who is missing and speaks first.
_PATIENCE = 5.0
# Seconds within which the rank that has started the host connects.
_FIRST = 10.0
# Variables that say which GPUs a process may see. Where ranks differ in them, each one's workers live in processes of its own.
_GPUS = (
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK", "SLURM_STEP_GPUS",
)  # fmt: skip
# Variables that decide which code a process loads.
_LOADING = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")
# Slurm may keep a task's GPUs from all other tasks by its cgroup, whatever the variables say.
_GPUS_BY_TASK = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK")


@dataclass(eq=False)
class LocalRank:
    """A rank that has taken a seat."""

    rank: int
    participant: str
    environ: Mapping[str, str]
    cpus: tuple[int, ...]
    writer: asyncio.StreamWriter
    nannies: list[Any] = field(default_factory=list)
    gone: bool = False

    def send(self, line: str) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self.writer.write(f"{line}\n".encode())


def host(orders: HostOrders, began: float) -> int:
    """Agent workers until the run is over, or no rank is left here.

    Parameters
    ----------
    orders : HostOrders
        What to do.
    began : float
        When the run began, in seconds of `time.monotonic`.

    Returns
    -------
    int
        The exit code.
    """
    if orders.dask_config is not None:
        import dask.config

        dask.config.update(dask.config.config, orders.dask_config)
    with contextlib.ExitStack() as stack:
        problem: EndError | None = None
        directory = ""
        try:
            info, each = orders.info, orders.settings.workers_per_node or 0
            local, total = max(len(info.local_ranks), each), max(info.world_size, info.nodes * each)
            # Before anything is forked, which inherits it; how many workers it will be exactly the ranks will tell.
            open_files.make_room(local, total)
            with quicker_import():
                from ..dask_backend import fork_server, processes, scratch, workers
                from ..dask_backend.compat.tls_connections import defer_authorities

            directory = stack.enter_context(scratch.scratch(orders.settings, os.environ, info.run_id, quiet=True))
            stack.enter_context(processes.hidden_main())
            stack.enter_context(workers.configured(local, total))
            timeline.mark("Dask imported")
            defer_authorities()
            fork_server.start(directory, local)
        except EndError as error:
            problem = error
        except Exception as error:  # noqa: BLE001
            problem = unexpected(error, f"the host of the workers on node {orders.info.node}")
        this = _Agent(orders, began, directory, problem)
        with handled(lambda number, _: this.signalled(number)):
            return asyncio.run(this.run())


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
    """The host at work, in one event loop."""

    def __init__(self, orders: HostOrders, began: float, directory: str, problem: EndError | None) -> None:
        self._orders = orders
        self._directory = directory
        self._settings = orders.settings
        self._deadline = began + orders.settings.start_timeout
        self._problem = problem
        self._facts = attach.facts()
        self._cgroup_memory = cgroup_memory()
        self._host_facts: HostFacts = read_host()
        self._controller_memory: Mapping[str, Any] = {}
        self._address = ""
        self._record: CoordinatorRecord | None = None
        self._rendezvous: Rendezvous = PipeRendezvous(lambda: self._record)
        if orders.by_file:
            info, where = orders.info, orders.settings.rendezvous_dir
            self._rendezvous = FileRendezvous(where, info.run_id, info.node, told=lambda: self._record)
        self._connection: Connection | None = None
        self._signals: list[tuple[int, str]] = []
        self._local_ranks: dict[str, LocalRank] = {}
        self._everyone: list[LocalRank] = []
        self._connections = 0

    async def run(self) -> int:
        """Let ranks sit down, start their workers, wait for the end."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._started: asyncio.Future[str] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        ours = socket.socket(fileno=self._orders.socket)
        server: asyncio.AbstractServer | None = None
        if self._orders.listen:
            server = await asyncio.start_unix_server(self._sit, sock=ours, backlog=4096)
        else:
            self._background(self._sit(*await asyncio.open_unix_connection(sock=ours)))
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
                self._connection.send("gone", participant=local_rank.participant)
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
        by = by or participant(self._orders.info)
        if self._connection is None:
            self._signals.append((number, by))
        else:
            self._connection.send("signalled", number=number, participant=by)

    # Ranks

    async def _sit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        local_rank: LocalRank | None = None
        try:
            if not attach.peer_is_ours(writer.get_extra_info("socket")):
                return
            hello = marshal.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))  # noqa: S302
            if "scheduler" in hello:
                await self._host_scheduler(hello, writer)
                return
            if hello["rank"] != self._orders.info.rank and not self._may_share(hello):
                writer.write(b"own\n")
                return
            local_rank = LocalRank(
                int(hello["rank"]), str(hello["participant"]), hello["environ"], tuple(hello["cpus"]), writer
            )
            self._local_ranks[local_rank.participant] = local_rank
            self._everyone.append(local_rank)
            timeline.mark("last rank came")
            self._widen(local_rank.cpus)
            if hello.get("record"):
                self._record = self._record or CoordinatorRecord(**hello["record"])
            self._background(self._start_workers(local_rank))
            while line := await reader.readline():
                self.signalled(int(line.split()[1]), local_rank.participant)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            # Not raised on: asyncio would print the end of a task that we end ourselves.
            pass
        finally:
            if local_rank is not None:
                self._stand_up(local_rank)
            else:
                writer.close()
            self._connections -= 1
            self._check_empty()

    def _widen(self, cpus: tuple[int, ...]) -> None:
        """Run wherever any of the ranks may run: this process serves them all."""
        if cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, os.sched_getaffinity(0) | set(cpus))

    def _may_come_from_here(self, hello: Mapping[str, Any]) -> bool:
        """Whether processes of a rank may be forked here."""
        limit, environ = self._cgroup_memory, hello["environ"]
        return (
            hello["python"] == self._facts["python"]
            and hello["cgroups"] == self._facts["cgroups"]
            and not (limit is not None and "/task_" in limit.source)
            and all(environ.get(name) == os.environ.get(name) for name in _LOADING)
        )

    def _may_share(self, hello: Mapping[str, Any]) -> bool:
        """Whether a rank's workers may live here as well."""
        environ = hello["environ"]
        return (
            self._may_come_from_here(hello)
            and all(environ.get(name) == os.environ.get(name) for name in _GPUS)
            and not any("gpu" in (name + environ.get(name, "")).lower() for name in _GPUS_BY_TASK if name in environ)
        )

    async def _host_scheduler(self, hello: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        """Start the scheduler for rank 0, if it can be forked here; the process answers."""
        from ..dask_backend import scheduler_process

        await asyncio.shield(self._connected)
        if not scheduler_process.can_start() or not self._may_come_from_here(hello):
            writer.write(b"own\n")
            return
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connection:
            process = scheduler_process.start(hello["scheduler"], connection)
        coordinator = self._connection
        assert coordinator is not None

        def tell() -> None:
            self._loop.remove_reader(process.sentinel)
            process.join()
            coordinator.send("died", how=_ending(process.exitcode))

        self._loop.add_reader(process.sentinel, tell)

    def _stand_up(self, local_rank: LocalRank) -> None:
        """A rank is gone, and takes its workers with it."""
        local_rank.gone = True
        if self._over.is_set():
            return
        self._local_ranks.pop(local_rank.participant, None)
        if self._connection is not None:
            self._connection.send("gone", participant=local_rank.participant)
        if local_rank.nannies:
            from ..dask_backend import workers

            self._background(workers.close(local_rank.nannies, 0.0))

    def _check_empty(self) -> None:
        if self._connections == 0 and not self._over.is_set():
            self._over.set()

    # Rank 0

    def _join(self) -> EndError | None:
        """Find rank 0 and learn what it knows; in a thread. Gives the reason if that is not possible."""
        info, settings = self._orders.info, self._settings
        rendezvous = self._rendezvous
        try:
            self._connection = connection = Connection(
                rendezvous.wait(self._deadline + _PATIENCE),
                {
                    "name": f"host-{info.rank}",
                    "role": WORKER,
                    "node": info.node,
                    "local_ranks": list(info.local_ranks),
                    "brings": [participant(info)],
                    "versions": versions(),
                },
                self._deadline + _PATIENCE,
                settings.scheduler_timeout,
                rendezvous.latest,
            )
            if self._problem is not None:
                raise self._problem
            for number, by in self._signals:
                connection.send("signalled", number=number, participant=by)
            timeline.mark("rank 0 found")
            self._controller_memory = connection.wait("welcome", self._deadline + _PATIENCE)["facts"]
            self._address = reachable_host(info.node, info.nodes, settings.interface)
        except EndError as error:
            return error
        return None

    def _hear(self, message: Mapping[str, Any]) -> None:
        """Do what rank 0 says; in the connection's thread."""
        if message["op"] == "start":
            self._loop.call_soon_threadsafe(self._learn, message["address"])
        elif message["op"] in ("stop", "end"):
            self._loop.call_soon_threadsafe(self._over.set)

    def _learn(self, address: str) -> None:
        timeline.mark("scheduler known")
        if not self._started.done():
            self._started.set_result(address)

    # Workers

    async def _serve(self) -> None:
        from ..dask_backend import fork_server, logs, processes, workers

        assert self._connection is not None
        logs.configure_logging()
        self._place = workers.Site(self._address, self._directory, self._security())
        fork_server.give(self._connection.credentials)
        self._connected.set_result(None)
        self._connection.listen(self._hear)
        await self._over.wait()
        self._end_in_time()
        logs.hush()
        await self._close()
        processes.end_helpers()

    def _security(self) -> Any:
        from ..dask_backend.tls import security_for

        assert self._connection is not None
        return security_for(self._settings.security, self._connection.credentials)

    async def _start_workers(self, local_rank: LocalRank) -> None:
        """Start the workers of a rank."""
        from ..dask_backend import logs, processes, workers
        from ..dask_backend.worker_factory import worker_spec

        await asyncio.shield(self._connected)
        connection = self._connection
        assert connection is not None
        local_rank.send("seated")
        plans = self._plan(local_rank)
        if isinstance(plans, EndError):
            connection.send("failed", kind=type(plans).__name__, message=str(plans))
            return
        connection.send(
            "plan", participant=local_rank.participant, workers=[[w.name, w.threads, w.memory] for w in plans]
        )
        address = await asyncio.shield(self._started)
        try:
            context = workers.RankContext(local_rank.environ, local_rank.cpus, tuple(self._facts["cpus"]))
            specs = [worker_spec(plan, self._place, self._settings, context) for plan in plans]
            await asyncio.gather(
                *(
                    workers.start(cls, options, address, local_rank.nannies, lambda: connection.has("ready"))
                    for cls, options in specs
                )
            )
            workers.keep_ports(local_rank.nannies)
            timeline.mark("last worker started")
            connection.send("timeline", who=f"workers of node {self._orders.info.node}", marks=timeline.marks())
            logs.report_deaths()
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001
            if not local_rank.gone and not self._over.is_set():
                failure = error if isinstance(error, EndError) else processes.start_failure("worker", error)
                connection.send("failed", kind=type(failure).__name__, message=str(failure))

    def _plan(self, local_rank: LocalRank) -> tuple[WorkerPlan, ...] | EndError:
        """What the rank itself would plan, with what rank 0 knows besides."""
        controller_memory = self._controller_memory.get(self._orders.info.node)
        facts = replace(self._host_facts, affinity=len(local_rank.cpus) or self._host_facts.affinity)
        info = replace(self._orders.info, rank=local_rank.rank)
        try:
            grant = self._orders.environment.grant(local_rank.environ)
            figure = Figure(int(controller_memory[0]), str(controller_memory[1])) if controller_memory else None
            plan = make_plan(info, node_resources(grant, facts, figure), self._settings)
            # A host that listens has the workers of all ranks here.
            open_files.for_workers(len(plan.workers if self._orders.listen else plan.hosted), info.node)
            return plan.hosted
        except EndError as error:
            return error

    def _end_in_time(self) -> None:
        """See that this process ends, whatever holds it up: a rank of the node waits for that."""
        code = self._connection.exit_code if self._connection is not None else 1

        def tidy_up() -> None:
            from ..dask_backend import processes, scratch

            with contextlib.suppress(Exception):
                processes.end_helpers()
                scratch.remove_scratch()
            os._exit(code)

        timeout = self._settings.stop_timeout
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
        ours = self._orders.info.rank
        for name in sorted(self._local_ranks, key=lambda name: self._local_ranks[name].rank != ours)[1:]:
            self._local_ranks.pop(name).send(f"end {code}")
        for task in self._tasks:
            task.cancel()
        nannies = [nanny for local_rank in self._everyone for nanny in local_rank.nannies]
        await workers.close(nannies, self._settings.stop_timeout if self._connection.end is None else 0.0)
        for local_rank in self._everyone:
            local_rank.nannies.clear()

    def _end(self, problem: EndError | None) -> int:
        """Say good-bye to everybody."""
        connection = self._connection
        if problem is not None and connection is not None and connection.end is None:
            connection.send("failed", kind=type(problem).__name__, message=str(problem))
            connection.wait_end(_PATIENCE)
        info = self._orders.info
        if problem is not None and connection is None and info.client_rank not in info.local_ranks:
            # Nobody else on this node says so.
            report.failure(problem, time.monotonic() - self._deadline + self._settings.start_timeout)
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
