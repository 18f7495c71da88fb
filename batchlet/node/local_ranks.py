"""The ranks that are attached to an agent: who may attach, and the workers of each, from the start to the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import open_files, timeline
from ..control.connection import Connection
from ..control.messages import ForReport, Gone, Planned, Ready, Replaces, ReportFailure, SchedulerDied, Timeline, Told
from ..errors import EndError
from ..plan import Plan
from ..rendezvous.base import CoordinatorRecord
from ..resources import cgroup_memory, read_host
from . import inputs
from .agent_socket import user_of_peer
from .gpu_views import OWN_GPUS, GpuViews
from .handover import Handover
from .local_rank import LocalRank
from .rank import Facts, Rank
from .sampling import planned
from .sharing import SharingRules

if TYPE_CHECKING:
    from ..dask_backend.workers import Site

__all__ = ["LocalRanks"]

# Seconds for a worker that the scheduler knows to be known to its Nanny too, which looks every 0.05 s.
_MOMENTS = 2.0


@dataclass(frozen=True)
class Block:
    """What is known of a block when its workers can be planned.

    Parameters
    ----------
    rank : Rank
        The rank that has started the agent, with the settings of this block.
    facts : mapping
        What rank 0 knows about the nodes.
    site : Site
        Where workers live.
    scheduler : Future of str
        Its address, once it is known.
    """

    rank: Rank
    facts: Facts
    site: Site
    scheduler: asyncio.Future[str]


class LocalRanks:
    """All the ranks that are attached to this agent.

    Parameters
    ----------
    rank : Rank
        The rank that has started the agent.
    shared : bool
        Whether other ranks may attach too.
    why_own : str
        Why not, if not.
    told : list of CoordinatorRecord
        Takes the coordinator's record, where ranks bring it.
    on_signal : callable
        Called with a signal's number and the participant that got it.
    on_empty : callable
        Called when no rank is attached any more.
    handover : Handover
        What the next agent needs if this one dies.
    """

    def __init__(
        self,
        rank: Rank,
        *,
        shared: bool,
        why_own: str,
        told: list[CoordinatorRecord],
        on_signal: Callable[[int, str], None],
        on_empty: Callable[[], None],
        handover: Handover,
    ) -> None:
        self._rank = rank
        self._shared = shared
        self._told = told
        self._on_signal = on_signal
        self._on_empty = on_empty
        self._handover = handover
        self._gpu_views = GpuViews(None if shared else why_own)
        self._gpu_views.add(rank.info.rank, rank.environ)
        self._rules = SharingRules(rank.environment, cgroup_memory())
        self._host = read_host()
        self._present: dict[str, LocalRank] = {}
        self._everyone: list[LocalRank] = []
        self._connections = 0
        self._over = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._tasks_of_block: set[asyncio.Task[None]] = set()
        self._joined: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._block: Block | None = None
        self._plan_told = False

    @property
    def any_came(self) -> bool:
        """Whether a rank was here, be it gone by now."""
        return bool(self._everyone)

    @property
    def saw(self) -> str:
        """How the agent before this one has ended, if a rank has seen it."""
        return next(filter(None, (str(one.words.get("saw", "")) for one in self._everyone)), "")

    def check_empty(self) -> None:
        """See whether anybody is here."""
        if self._connections == 0:
            self._on_empty()

    def joined(self, connection: Connection) -> None:
        """Let ranks wait: the agent is in touch with the coordinator."""
        for local_rank in self._everyone:
            if local_rank.gone:
                connection.send(Gone(local_rank.name))
        self._joined.set_result(connection)

    def begin(self, rank: Rank, facts: Facts, site: Site) -> None:
        """Begin a block: plan the workers of all ranks that are here, and of those that come."""
        self._plan_told = False
        self._handover.begin_block()
        self._block = Block(rank, facts, site, asyncio.get_running_loop().create_future())
        for local_rank in filter(lambda one: one.accepted, self._present.values()):
            self._in_block(self._start_workers(local_rank, self._block))

    def scheduler_known(self, address: str) -> None:
        """Let workers start."""
        if self._block is not None and not self._block.scheduler.done():
            self._block.scheduler.set_result(address)

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk with a rank for as long as it is there."""
        self._connections += 1
        local_rank: LocalRank | None = None
        try:
            if user_of_peer(writer.get_extra_info("socket")) != os.geteuid():
                return
            size = int.from_bytes(await reader.readexactly(inputs.LENGTH), "big")
            words = inputs.decode(await reader.readexactly(size))
            if "scheduler" in words:
                await self._start_scheduler(words, writer)
                return
            local_rank = self._accept(words, writer)
            if local_rank is None:
                writer.write(f"own {OWN_GPUS if self._gpu_views.differ else ''}\n".encode())
                return
            while line := await reader.readline():
                self._on_signal(int(line.split()[1]), local_rank.name)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            # Not raised on: asyncio would print the end of a task that we end ourselves.
            pass
        finally:
            if local_rank is not None:
                self._lose(local_rank)
            else:
                writer.close()
            self._connections -= 1
            self.check_empty()

    def _accept(self, words: Mapping[str, Any], writer: asyncio.StreamWriter) -> LocalRank | None:
        """Accept a rank, or give `None` if its workers cannot live here."""
        ours = self._rank
        try:
            rank = _identify(words, ours)
        except EndError:
            # The agent of its own that it gets will say so.
            return None
        self._gpu_views.add(rank.info.rank, words["environ"])
        if rank.info.rank != ours.info.rank and not self._rules.may_host_workers_of(words):
            return None
        local_rank = LocalRank(words, rank, tuple(words["cpus"]), writer)
        self._present[local_rank.name] = local_rank
        self._everyone.append(local_rank)
        if words.get("saw") and self._joined.done():
            self._joined.result().send(Replaces(words["saw"], self._handover.before))
        timeline.mark("last rank came")
        _widen(local_rank.cpus)
        if words["record"]:
            self._told.append(CoordinatorRecord(**words["record"]))
        self.background(self._welcome(local_rank))
        return local_rank

    async def _welcome(self, local_rank: LocalRank) -> None:
        """Let a rank wait, and start its workers if a block is under way."""
        await asyncio.shield(self._joined)
        with contextlib.suppress(OSError):
            self._handover.accept(local_rank.writer.get_extra_info("socket").fileno())
        local_rank.accepted = True
        if self._block is not None:
            self._in_block(self._start_workers(local_rank, self._block))

    def _lose(self, local_rank: LocalRank) -> None:
        """A rank is gone, and takes its workers with it."""
        local_rank.gone = True
        if self._over:
            return
        self._present.pop(local_rank.name, None)
        if self._joined.done():
            self._joined.result().send(Gone(local_rank.name))
        if local_rank.nannies:
            from ..dask_backend import workers

            self.background(workers.close(local_rank.nannies, 0.0))

    async def _start_scheduler(self, words: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        """Start the scheduler for rank 0, if it can be forked here; the process answers."""
        from ..dask_backend import scheduler_process

        connection = await asyncio.shield(self._joined)
        if not scheduler_process.can_start() or not self._rules.may_fork_for(words):
            writer.write(b"own\n")
            return
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as given:
            process = scheduler_process.start(words, given)
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.remove_reader(process.sentinel)
            process.join()
            connection.send(SchedulerDied(_ending(process.exitcode), words["scheduler"]["block"]))

        loop.add_reader(process.sentinel, tell)

    async def _start_workers(self, local_rank: LocalRank, block: Block) -> None:
        """Start the workers of a rank."""
        from ..dask_backend import logs, processes, workers
        from ..dask_backend.worker_factory import worker_spec

        connection = self._joined.result()
        try:
            local_rank.rank = _identify(local_rank.words, block.rank)
            plan = self._plan(local_rank, block.facts, await self._gpu_views.own(local_rank.rank))
        except EndError as error:
            connection.send(ReportFailure.of(error))
            return
        connection.send(Planned(local_rank.name, [[w.name, w.threads, w.memory] for w in plan.hosted]))
        self._tell_plan(connection, plan)

        def tell(text: str) -> None:
            connection.send(Told(text, once=1))

        for note in plan.notes:
            tell(note)
        address = await asyncio.shield(block.scheduler)
        try:
            context = workers.RankContext(local_rank.rank.task_environ, local_rank.cpus, self._rules.cpus)
            before = self._handover.ports
            specs = [worker_spec(worker, block.site, block.rank.settings, context, tell) for worker in plan.hosted]
            await asyncio.gather(
                *(
                    workers.start(
                        workers.at_port(cls, before.get(str(worker.name))),
                        options,
                        address,
                        local_rank.nannies,
                        lambda: bool(before) or connection.has(Ready),
                    )
                    for worker, (cls, options) in zip(plan.hosted, specs, strict=True)
                )
            )
            self._handover.keep_ports(workers.keep_ports(local_rank.nannies))
            timeline.mark("last worker started")
            if not before:
                connection.send(Timeline(f"workers of node {self._rank.info.node}", timeline.marks()))
            logs.report_deaths()
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001
            if not local_rank.gone and not self._over and block is self._block:
                failure = error if isinstance(error, EndError) else processes.start_failure("worker", error)
                connection.send(ReportFailure.of(failure))

    def _plan(self, local_rank: LocalRank, facts: Facts, own_gpus: bool | None) -> Plan:
        """Plan the workers of a rank, on the CPUs that it is bound to."""
        rank = local_rank.rank
        mask = local_rank.cpus or self._host.mask
        host = replace(self._host, affinity=len(mask) or self._host.affinity, mask=mask)
        plan = rank.plan(facts, host, own_gpus)
        open_files.for_workers(len(plan.workers if self._shared else plan.hosted), rank.info.node)
        return plan

    def _tell_plan(self, connection: Connection, plan: Plan) -> None:
        """Tell of workers for the report; what the plan rests on, once a block."""
        first, self._plan_told = not self._plan_told, True
        connection.send(ForReport(planned(plan if first else replace(plan, figures={}), plan.hosted)))

    def processes(self) -> dict[str, int]:
        """Give the process ids of all workers by their names."""
        from ..dask_backend.compat.figures import pids_of

        return pids_of(server for local_rank in self._everyone for server in local_rank.nannies)

    async def pause(self, timeout: float) -> None:
        """End the workers of the block; the ranks wait for another one."""
        from ..dask_backend import workers

        self._block = None
        starts = list(self._tasks_of_block)
        if starts and timeout and self._joined.done() and self._joined.result().has(Ready):
            await asyncio.wait(starts, timeout=_MOMENTS)
        for task in starts:
            task.cancel()
        nannies = [nanny for local_rank in self._everyone for nanny in local_rank.nannies]
        await workers.close(nannies, timeout)
        for local_rank in self._everyone:
            local_rank.nannies.clear()

    def over(self, code: int) -> None:
        """Let the ranks know that the run is over: they need no other agent, whatever becomes of this one."""
        for local_rank in self._present.values():
            local_rank.send(f"ending {code}")

    async def close(self, code: int, timeout: float) -> None:
        """End the workers. The ranks may go meanwhile, but for the one that sees this process end.

        That is the one that has started it, if it is still there. When no rank of a node is, Slurm kills what else is left.
        """
        self._over = True
        ours = self._rank.info.rank
        for name in sorted(self._present, key=lambda name: self._present[name].rank.info.rank != ours)[1:]:
            self._present.pop(name).send(f"end {code}")
        for task in self._tasks:
            task.cancel()
        await self.pause(timeout)

    def dismiss(self, code: int) -> None:
        """Let the ranks end with this exit code, once this process has."""
        self._over = True
        for local_rank in self._present.values():
            local_rank.send(f"last {code}")
            # Open until this process is gone, whoever closes the connection before: that is what the rank waits for.
            os.dup(local_rank.writer.get_extra_info("socket").fileno())

    def background(self, coroutine: Any) -> None:
        """Run a coroutine; what is not done when the ranks are dismissed is cancelled."""
        _run(coroutine, self._tasks)

    def _in_block(self, coroutine: Any) -> None:
        """Run a coroutine that the end of the block cancels."""
        _run(coroutine, self._tasks_of_block)


def _run(coroutine: Any, tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _identify(words: Mapping[str, Any], ours: Rank) -> Rank:
    """Find out who a rank is, with the settings of ours."""
    return Rank.identify(ours.settings, words["environ"], ours.began, layout=words["layout"])


def _widen(cpus: tuple[int, ...]) -> None:
    """Run wherever any of the ranks may run: this process serves them all."""
    if cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(0) | set(cpus))


def _ending(code: int) -> str:
    """Say how a process has ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (the node may be out of memory)" if name == "SIGKILL" else "")
