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

from . import open_files, report, seat, timeline
from .environments.base import Figure
from .errors import EndError
from .network import reachable_host
from .orders import HostOrders
from .plan import WORKER, WorkerPlan, make_plan
from .rank import importing, member, unexpected
from .rendezvous.base import Meeting, Rendezvous
from .rendezvous.file import FileRendezvous
from .rendezvous.pipe import PipeRendezvous
from .resources import HostFacts, cgroup_memory, node_resources, read_host
from .supervision.link import Link
from .supervision.signals import handled
from .versions import versions

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
class _Guest:
    """A rank that has taken a seat."""

    rank: int
    member: str
    environ: Mapping[str, str]
    cpus: tuple[int, ...]
    writer: asyncio.StreamWriter
    nannies: list[Any] = field(default_factory=list)
    gone: bool = False

    def send(self, line: str) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self.writer.write(f"{line}\n".encode())


def host(orders: HostOrders, began: float) -> int:
    """Host workers until the run is over, or no rank is left here.

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
            workers, total = max(len(info.local_ranks), each), max(info.world_size, info.nodes * each)
            # Before anything is forked, which inherits it; how many workers it will be exactly the ranks will tell.
            open_files.make_room(workers, total)
            with importing():
                from .roles import dask_process, dask_security, fork_server, worker

            directory = stack.enter_context(worker.scratch(orders.settings, os.environ, orders.info.run_id))
            stack.enter_context(dask_process.hidden_main())
            stack.enter_context(worker.configured(workers, total))
            timeline.mark("Dask imported")
            dask_security.defer_authorities()
            fork_server.start(directory, workers)
        except EndError as error:
            problem = error
        except Exception as error:  # noqa: BLE001
            problem = unexpected(error, f"the host of the workers on node {orders.info.node}")
        this = _Host(orders, began, directory, problem)
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


class _Host:
    """The host at work, in one event loop."""

    def __init__(self, orders: HostOrders, began: float, directory: str, problem: EndError | None) -> None:
        self._orders = orders
        self._directory = directory
        self._settings = orders.settings
        self._deadline = began + orders.settings.start_timeout
        self._problem = problem
        self._facts = seat.facts()
        self._cgroup_memory = cgroup_memory()
        self._host_facts: HostFacts = read_host()
        self._told: Mapping[str, Any] = {}
        self._address = ""
        self._meeting: Meeting | None = None
        self._rendezvous: Rendezvous = PipeRendezvous(lambda: self._meeting)
        if orders.by_file:
            info, where = orders.info, orders.settings.rendezvous_dir
            self._rendezvous = FileRendezvous(where, info.run_id, info.node, told=lambda: self._meeting)
        self._link: Link | None = None
        self._signals: list[tuple[int, str]] = []
        self._guests: dict[str, _Guest] = {}
        self._everyone: list[_Guest] = []
        self._connections = 0

    async def run(self) -> int:
        """Let ranks sit down, start their workers, wait for the end."""
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._linked: asyncio.Future[None] = self._loop.create_future()
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
        for guest in self._everyone:
            if guest.gone and self._link is not None:
                self._link.send("gone", member=guest.member)
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
        by = by or member(self._orders.info)
        if self._link is None:
            self._signals.append((number, by))
        else:
            self._link.send("signalled", number=number, member=by)

    # Ranks

    async def _sit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        guest: _Guest | None = None
        try:
            if not seat.peer_is_ours(writer.get_extra_info("socket")):
                return
            hello = marshal.loads(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))  # noqa: S302
            if "scheduler" in hello:
                await self._host_scheduler(hello, writer)
                return
            if hello["rank"] != self._orders.info.rank and not self._may_share(hello):
                writer.write(b"own\n")
                return
            guest = _Guest(int(hello["rank"]), str(hello["member"]), hello["environ"], tuple(hello["cpus"]), writer)
            self._guests[guest.member] = guest
            self._everyone.append(guest)
            timeline.mark("last rank came")
            self._widen(guest.cpus)
            if hello.get("meeting"):
                self._meeting = self._meeting or Meeting(**hello["meeting"])
            self._background(self._host_workers(guest))
            while line := await reader.readline():
                self.signalled(int(line.split()[1]), guest.member)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            # Not raised on: asyncio would print the end of a task that we end ourselves.
            pass
        finally:
            if guest is not None:
                self._stand_up(guest)
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
        from .roles import scheduler_process

        await asyncio.shield(self._linked)
        if not scheduler_process.can_start() or not self._may_come_from_here(hello):
            writer.write(b"own\n")
            return
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as connection:
            process = scheduler_process.start(hello["scheduler"], connection)
        link = self._link
        assert link is not None

        def tell() -> None:
            self._loop.remove_reader(process.sentinel)
            process.join()
            link.send("died", how=_ending(process.exitcode))

        self._loop.add_reader(process.sentinel, tell)

    def _stand_up(self, guest: _Guest) -> None:
        """A rank is gone, and takes its workers with it."""
        guest.gone = True
        if self._over.is_set():
            return
        self._guests.pop(guest.member, None)
        if self._link is not None:
            self._link.send("gone", member=guest.member)
        if guest.nannies:
            from .roles import worker

            self._background(worker.close(guest.nannies, 0.0))

    def _check_empty(self) -> None:
        if self._connections == 0 and not self._over.is_set():
            self._over.set()

    # Rank 0

    def _join(self) -> EndError | None:
        """Find rank 0 and learn what it knows; in a thread. Gives the reason if that is not possible."""
        info, settings = self._orders.info, self._settings
        rendezvous = self._rendezvous
        try:
            self._link = link = Link(
                rendezvous.wait(self._deadline + _PATIENCE),
                {
                    "name": f"host-{info.rank}",
                    "role": WORKER,
                    "node": info.node,
                    "local_ranks": list(info.local_ranks),
                    "brings": [member(info)],
                    "versions": versions(),
                },
                self._deadline + _PATIENCE,
                settings.scheduler_timeout,
                rendezvous.latest,
            )
            if self._problem is not None:
                raise self._problem
            for number, by in self._signals:
                link.send("signalled", number=number, member=by)
            timeline.mark("rank 0 found")
            self._told = link.wait("welcome", self._deadline + _PATIENCE)["facts"]
            self._address = reachable_host(info.node, info.nodes, settings.interface)
        except EndError as error:
            return error
        return None

    def _hear(self, message: Mapping[str, Any]) -> None:
        """Do what rank 0 says; in the link's thread."""
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
        from .roles import dask_process, fork_server, worker

        assert self._link is not None
        dask_process.configure_logging()
        self._place = worker.Place(self._address, self._directory, self._security())
        fork_server.give(self._link.credentials)
        self._linked.set_result(None)
        self._link.listen(self._hear)
        await self._over.wait()
        self._end_in_time()
        dask_process.hush()
        await self._close()
        dask_process.end_helpers()

    def _security(self) -> Any:
        from .roles.dask_security import security_for

        assert self._link is not None
        return security_for(self._settings.security, self._link.credentials)

    async def _host_workers(self, guest: _Guest) -> None:
        """Start the workers of a rank."""
        from .roles import dask_process, worker

        await asyncio.shield(self._linked)
        link = self._link
        assert link is not None
        guest.send("seated")
        plans = self._plan(guest)
        if isinstance(plans, EndError):
            link.send("failed", kind=type(plans).__name__, message=str(plans))
            return
        link.send("plan", member=guest.member, workers=[[w.name, w.threads, w.memory] for w in plans])
        address = await asyncio.shield(self._started)
        try:
            rank = worker.RankPlace(guest.environ, guest.cpus, tuple(self._facts["cpus"]))
            specs = [worker.nanny_spec(plan, self._settings, self._place, rank) for plan in plans]
            await asyncio.gather(
                *(
                    worker.start(cls, options, address, guest.nannies, lambda: link.has("ready"))
                    for cls, options in specs
                )
            )
            worker.keep_ports(guest.nannies)
            timeline.mark("last worker started")
            link.send("timeline", who=f"workers of node {self._orders.info.node}", marks=timeline.marks())
            dask_process.report_deaths()
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001
            if not guest.gone and not self._over.is_set():
                failure = error if isinstance(error, EndError) else worker.start_failure("worker", error)
                link.send("failed", kind=type(failure).__name__, message=str(failure))

    def _plan(self, guest: _Guest) -> tuple[WorkerPlan, ...] | EndError:
        """What the rank itself would plan, with what rank 0 knows besides."""
        told = self._told.get(self._orders.info.node)
        facts = replace(self._host_facts, affinity=len(guest.cpus) or self._host_facts.affinity)
        info = replace(self._orders.info, rank=guest.rank)
        try:
            grant = self._orders.environment.grant(guest.environ)
            figure = Figure(int(told[0]), str(told[1])) if told else None
            plan = make_plan(info, node_resources(grant, facts, figure), self._settings)
            # A host that listens has the workers of all ranks here.
            open_files.for_workers(len(plan.workers if self._orders.listen else plan.hosted), info.node)
            return plan.hosted
        except EndError as error:
            return error

    def _end_in_time(self) -> None:
        """See that this process ends, whatever holds it up: a rank of the node waits for that."""
        code = self._link.exit_code if self._link is not None else 1

        def tidy_up() -> None:
            from .roles import dask_process, worker

            with contextlib.suppress(Exception):
                dask_process.end_helpers()
                worker.remove_scratch()
            os._exit(code)

        timeout = self._settings.stop_timeout
        for limit in (threading.Timer(2 * timeout, tidy_up), threading.Timer(3 * timeout, os._exit, [code])):
            limit.daemon = True
            limit.start()

    async def _close(self) -> None:
        """End the workers. The ranks may go meanwhile, but for the one that sees this process end.

        That is the one that has started it, if it is still there. When no rank of a node is, Slurm kills what else is left.
        """
        from .roles import worker

        assert self._link is not None
        code = self._link.exit_code
        ours = self._orders.info.rank
        for name in sorted(self._guests, key=lambda name: self._guests[name].rank != ours)[1:]:
            self._guests.pop(name).send(f"end {code}")
        for task in self._tasks:
            task.cancel()
        nannies = [nanny for guest in self._everyone for nanny in guest.nannies]
        await worker.close(nannies, self._settings.stop_timeout if self._link.end is None else 0.0)
        for guest in self._everyone:
            guest.nannies.clear()

    def _end(self, problem: EndError | None) -> int:
        """Say good-bye to everybody."""
        link = self._link
        if problem is not None and link is not None and link.end is None:
            link.send("failed", kind=type(problem).__name__, message=str(problem))
            link.wait_end(_PATIENCE)
        info = self._orders.info
        if problem is not None and link is None and info.client_rank not in info.local_ranks:
            # Nobody else on this node says so.
            report.failure(problem, time.monotonic() - self._deadline + self._settings.start_timeout)
        code = link.exit_code if link is not None else problem.exit_code if problem is not None else 0
        for guest in self._guests.values():
            guest.send(f"last {code}")
            # Open until this process is gone, whoever closes the connection before: that is what the rank waits for.
            os.dup(guest.writer.get_extra_info("socket").fileno())
        if link is not None:
            link.close()
        self._rendezvous.withdraw(orphaned=link is not None and not link.hub_is_alive)
        return code

    def _background(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
