"""A guest: a process of another job that hosts workers for a run, or for a cluster of jobs, which is under way.

It is what an agent is (`batchlet.node.agent`), for one task of its own job, without ranks: whoever runs the scheduler neither
waits for it nor fails with it. It sizes its workers itself, from what its own job was granted, by the rule that holds for runs.
Before it goes it has what its workers have computed brought to others.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import environments, open_files, report
from ..binding import bind_plan
from ..control.connection import Connection
from ..control.guests import GUEST
from ..control.messages import (
    Failed,
    ForReport,
    Message,
    Pause,
    Paused,
    Planned,
    SchedulerStarted,
    Stop,
    Welcome,
)
from ..cuda_workers import choose_in_plan
from ..environments import Environment, ProcessInfo
from ..environments.allocation_end import AllocationEnd, find_allocation_end
from ..errors import ClusterLostError, EndError, UsageError
from ..network import reachable_host
from ..plan import WorkerPlan, make_plan, processes_of
from ..rendezvous import CoordinatorRecord
from ..resources import HostFacts, NodeResources, node_resources, read_host
from ..run_report.log_lines import for_report
from ..settings import Settings, describe_bytes
from ..walltime import at_clock, default_lead
from . import inputs
from .hosting import connect, end_in, hosting, signals_to
from .rank import unexpected
from .sampling import Sampling, planned_here

__all__ = ["plan_guest", "run_guest"]

# Seconds in which a coordinator that is alive lets a guest in.
_CONNECT = 30.0
# Ranks of a run that host no workers. None of a guest's tasks is one of them.
_HEADS = 2
# About how many workers there will be, before the run has said what they are like.
_SOME = 64
# Seconds between the moments at which two tasks of a job ask the batch system for its end.
_IN_TURN = 0.05


def run_guest(record: CoordinatorRecord, *, speaks: bool) -> int:
    """Host workers for a run until it is over, or this job is.

    Parameters
    ----------
    record : CoordinatorRecord
        Where the run's coordinator is, and the secret by which this process proves that it belongs to the same user.
    speaks : bool
        Whether this process says what all tasks of its job would.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    EndError
        If this process cannot take part.
    """
    environment = environments.detected(os.environ)
    info = environment.identity(os.environ)
    guests: list[_Guest] = []
    settings = Settings.resolve({}, os.environ)
    with signals_to(guests), hosting(environment, settings, info.run_id, 1, _SOME) as directory:
        guests.append(_Guest(environment, info, record, directory, speaks=speaks))
        return asyncio.run(guests[0].run())


def plan_guest(
    info: ProcessInfo, resources: NodeResources, settings: Settings, host: HostFacts, *, in_job: bool
) -> tuple[tuple[WorkerPlan, ...], tuple[str, ...]]:
    """Plan the workers of one task of a job that joins a run: none of its tasks is the scheduler or the client.

    Parameters
    ----------
    info : ProcessInfo
        Which task of its job.
    resources : NodeResources
        What the job was granted on this node.
    settings : Settings
        What the run's user asked for.
    host : HostFacts
        What the task can see of the node.
    in_job : bool
        Whether a batch system has granted it.

    Returns
    -------
    workers : tuple of WorkerPlan
        The workers.
    notes : tuple of str
        What the user is to hear of them.

    Raises
    ------
    PlanError
        If more was asked for than the node has, or workers cannot be of the kind that was asked for.
    """
    alone = info.world_size == 1 and info.mode == "local"
    shifted = replace(
        info,
        rank=info.rank + _HEADS,
        world_size=info.world_size + _HEADS,
        local_ranks=tuple(rank + _HEADS for rank in info.local_ranks),
        client_rank=1,
        extra_clients=0,
        slots=processes_of(min(resources.cpus.value, resources.cpus_per_rank.value)) if alone else info.slots,
    )
    plan = choose_in_plan(make_plan(shifted, resources, settings), settings)
    hosted = bind_plan(plan, resources, host, settings, in_job=in_job).hosted
    named = tuple(
        replace(worker, name=f"{info.run_id}-{info.rank}-{number}", rank=info.rank)
        for number, worker in enumerate(hosted)
    )
    return named, plan.notes


class _Guest:
    """The guest at work, in one event loop."""

    def __init__(
        self, environment: Environment, info: ProcessInfo, record: CoordinatorRecord, directory: str, *, speaks: bool
    ) -> None:
        self._environment = environment
        self._info = info
        self._record = record
        self._directory = directory
        self._speaks = speaks
        self._settings = Settings()
        self._welcome: Welcome | None = None
        self._nannies: list[Any] = []
        self._retire: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._connection: Connection | None = None
        self._signal = 0
        # When this job ends, once its workers have to go because of that.
        self._ends: AllocationEnd | None = None
        self._watch: asyncio.Task[None] | None = None
        self._problem: EndError | None = None
        self._said = False
        self._logs: Any = None
        self._sampling = Sampling(lambda told: self._connection.send(ForReport(told)) if self._connection else None)

    async def run(self) -> int:
        """Connect, host workers in each block of the run, and wait for the end."""
        from ..dask_backend import fork_server, logs, processes, worker_logs, workers

        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        info, record = self._info, self._record
        name = info.job or f"a process on node {info.node}"
        to = (record, name, GUEST, info.node, _CONNECT, self._settings.scheduler_timeout)
        connection = await self._loop.run_in_executor(None, connect, *to)
        if isinstance(connection, EndError):
            raise UsageError(f"Run {record.run_id} cannot be joined. {connection}")
        self._connection = connection
        logs.configure_logging()
        fork_server.give(connection.credentials)
        self._logs = worker_logs.NodeLogs(
            lambda *said: connection.send(ForReport(for_report(*said))), self._info.node, ranks=False
        )
        self._logs.listen()
        connection.listen(self._hear)
        await self._over.wait()
        lost = not connection.coordinator_is_alive
        self._end_in_time()
        logs.hush()
        for task in [*self._tasks, *filter(None, [self._watch])]:
            task.cancel()
        if (self._signal or self._ends is not None) and not lost and self._retire is not None:
            await self._retire(self._time_to_leave())
        self._sampling.end()
        await workers.close(self._nannies, 0.0 if lost else self._settings.stop_timeout)
        self._logs.close()
        processes.end_helpers()
        connection.close()
        return self._end(connection)

    def signalled(self, number: int) -> None:
        """Leave the run: the batch system is about to end this job, or somebody has typed Ctrl-C."""
        self._signal = self._signal or number
        if self._connection is None:
            sys.exit(128 + number)
        self._loop.call_soon_threadsafe(self._over.set)

    def _time_to_leave(self) -> float:
        """Seconds that the workers have to finish what they are at, and for what they have computed to be brought to others."""
        if self._signal or self._ends is None:
            return self._settings.grace
        return max(0.0, self._ends.at - time.time() - self._settings.stop_timeout)

    def _end(self, connection: Connection) -> int:
        """Say why this is the end, and give the exit code."""
        run, failure = self._record.run_id, connection.failure
        if self._problem is not None:
            report.failure(self._problem)
            return self._problem.exit_code
        if self._signal:
            return 128 + self._signal
        if not connection.coordinator_is_alive:
            failure = ClusterLostError(
                f"Run {run} is lost: nothing is heard any more from node {self._record.node}, which has its scheduler."
            )
        if self._ends is not None and connection.coordinator_is_alive and failure is None:
            # The line that says so came when it began.
            return 0
        if failure is not None and not (connection.coordinator_is_alive and self._welcome is not None):
            if self._speaks:
                report.failure(failure)
            return failure.exit_code
        if self._speaks:
            report.note(f"run {run} is over" if failure is None else f"run {run} has failed; its own output says why")
        return 0

    # The run

    def _hear(self, message: Message) -> None:
        """Do what the coordinator says; in the connection's thread."""
        if isinstance(message, Welcome):
            self._welcome = message
        elif isinstance(message, SchedulerStarted) and self._welcome is not None:
            self._loop.call_soon_threadsafe(self._begin, self._start(self._welcome, message.address))
        elif isinstance(message, Pause):
            self._loop.call_soon_threadsafe(self._begin, self._pause())
        elif isinstance(message, (Stop, Failed)):
            self._loop.call_soon_threadsafe(self._over.set)

    def _begin(self, coroutine: Any) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = [self._loop.create_task(coroutine)]

    # Workers

    async def _start(self, welcome: Welcome, scheduler: str) -> None:
        """Start the workers of a block, with its settings and within what this node was granted."""
        from ..dask_backend import logs, processes, tls, workers
        from ..dask_backend.compat.figures import pids_of
        from ..dask_backend.worker_factory import worker_spec

        connection = self._connection
        assert connection is not None
        logs.configure_logging()
        try:
            words = inputs.from_text(welcome.launch)
            sys.path[:] = words["sys_path"]
            options, config = inputs.unpack_options(words)
            self._settings = settings = Settings.resolve(options, {**os.environ, **words["variables"]})
            plans, notes = await self._loop.run_in_executor(None, self._plan, settings)
            tell = functools.cache(report.note if self._speaks else lambda _: None)
            for note in notes:
                tell(note)
            if config is not None:
                workers.reconfigure(config, len(plans), _SOME)
            open_files.make_room(len(plans), _SOME)
            open_files.for_workers(len(plans), self._info.node)
            security = tls.security_for(settings, connection.credentials)
            host = reachable_host(self._info.node, 2, settings.interface)
            site = workers.Site(host, self._directory, security, self._logs.path)
            self._retire = lambda timeout: workers.retire(self._nannies, scheduler, security, timeout)
            connection.send(Planned(self._info.node, [[plan.name, plan.threads, plan.memory] for plan in plans]))
            connection.send(ForReport(planned_here(self._info.node, plans)))
            cpus = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
            context = workers.RankContext(self._environment.task_environ(os.environ), cpus, cpus)
            specs = [worker_spec(plan, site, settings, context, tell) for plan in plans]
            # Before they have started: the first one works at once, and the block may be over a moment later.
            self._sampling.begin(self._info.node, lambda: pids_of(self._nannies), _SOME, logs.hear_deaths)
            await asyncio.gather(
                *(workers.start(make, keywords, scheduler, self._nannies, lambda: True) for make, keywords in specs)
            )
            workers.keep_ports(self._nannies)
            logs.report_deaths()
            self._say(plans)
            self._watch = self._watch or self._loop.create_task(self._go_in_time())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001
            if isinstance(error, EndError):
                self._problem = error
            elif self._nannies:
                self._problem = processes.start_failure("worker", error)
            else:
                self._problem = unexpected(error, f"what hosts the workers of node {self._info.node}")
            self._over.set()

    def _plan(self, settings: Settings) -> tuple[tuple[WorkerPlan, ...], tuple[str, ...]]:
        """Plan this task's workers; asks the launcher's controller for the memory where nothing else tells."""
        environment, host = self._environment, read_host()
        grant, asked = environment.granted(os.environ), None
        if grant.memory is None and host.cgroup_memory is None:
            asked = environment.ask(os.environ).get(self._info.node)
        resources = node_resources(grant, host, asked)
        return plan_guest(self._info, resources, settings, host, in_job=grant.cpus is not None)

    def _say(self, plans: Sequence[WorkerPlan]) -> None:
        if self._said or not self._speaks or not plans:
            return
        self._said = True
        each = plans[0]
        tasks = report.count(self._info.world_size, "task")
        report.note(
            f"joined run {self._record.run_id} on node {self._record.node} with {tasks}, here "
            f"{report.count(len(plans), 'worker')} x {report.count(each.threads, 'thread')} x {describe_bytes(each.memory)}"
        )

    async def _go_in_time(self) -> None:
        """Leave the run before the batch system ends this job."""
        await asyncio.sleep(self._info.rank * _IN_TURN)
        end = await self._loop.run_in_executor(None, find_allocation_end, os.environ)
        if end is None:
            return
        left = end.at - time.time()
        await asyncio.sleep(left - default_lead(left))
        self._ends = end
        if self._speaks:
            report.note(f"leaves run {self._record.run_id}: this job ends at {at_clock(end.at)} ({end.source})")
        self._over.set()

    async def _pause(self) -> None:
        """End the workers of the block, and say so."""
        from ..dask_backend import logs, workers

        logs.hush()
        self._sampling.end()
        await workers.close(self._nannies, self._settings.stop_timeout)
        self._nannies.clear()
        self._retire = None
        if self._connection is not None:
            self._connection.send(Paused())

    def _end_in_time(self) -> None:
        """See that this process ends, whatever holds it up."""
        leaving = self._time_to_leave() if self._signal or self._ends is not None else 0.0
        end_in(self._settings.stop_timeout + leaving, 128 + self._signal if self._signal else 1)
