"""The agent of a node of a submitted job: imports Dask once and hosts workers, for as long as the cluster's client wants them.

The batch system has started it. It finds the client by the cluster's record, a file for its owner alone, and is told the rest
(`Orders`) once it has proved that it has read that.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import environments, open_files, report
from ..binding import bind_workers
from ..control.connection import Connection
from ..control.messages import (
    Failed,
    ForReport,
    Message,
    Orders,
    Others,
    Remaining,
    ReportFailure,
    Serving,
    Signalled,
    Stop,
    Told,
)
from ..cuda_workers import choose_class
from ..environments import Environment
from ..environments.allocation_end import allocation_end, job_started
from ..errors import ClientLostError, EndError, StartTimeoutError
from ..jobs.sizing import fit
from ..network import reachable_host
from ..rendezvous import CoordinatorRecord, FileRendezvous
from ..resources import node_resources, read_host
from ..run_report.log_lines import for_report
from ..settings import Settings
from . import inputs
from .hosting import connect, end_in, hosting, signals_to
from .rank import unexpected
from .sampling import Sampling, planned_here

__all__ = ["run_job_agent"]

# Seconds that the record may take to be seen on this node: a network file system remembers that it was not there.
_RECORD = 20.0
# Seconds in which a client that is alive lets an agent in.
_CONNECT = 60.0


def run_job_agent(name: str, record: str, count: int, local_directory: str | None) -> int:
    """Host the workers of this node.

    Parameters
    ----------
    name : str
        The cluster's name for the job.
    record : str
        File with the cluster's record.
    count : int
        Workers of this node.
    local_directory : str, optional
        Where scratch is to be.

    Returns
    -------
    int
        The exit code: 0 unless something has failed.
    """
    environment = environments.detected(os.environ)
    try:
        node = environment.process(os.environ).node
    except EndError:
        node = socket.gethostname().split(".")[0]
    path = Path(record)
    try:
        settings = Settings.resolve({"local_directory": local_directory}, {})
        rendezvous = FileRendezvous(str(path.parent), path.stem, node)
        try:
            found = rendezvous.wait(time.monotonic() + _RECORD)
        except StartTimeoutError:
            report.note(f"job {name} on node {node} ends: {record} is not there, so its cluster is closed")
            return 0
        agents: list[_JobAgent] = []
        with signals_to(agents), hosting(environment, settings, name, count, count) as directory:
            agents.append(_JobAgent(name, node, environment, found, directory))
            code = asyncio.run(agents[0].run())
        if code == ClientLostError.exit_code:
            # Where the client is there all the same, and this node alone is cut off, it writes them again.
            rendezvous.withdraw(orphaned=True)
            shutil.rmtree(path.with_suffix(".logs"), ignore_errors=True)
            rendezvous.withdraw()
        return code
    except EndError as error:
        report.failure(error)
        return error.exit_code


class _JobAgent:
    """The agent at work, in one event loop."""

    def __init__(
        self, name: str, node: str, environment: Environment, record: CoordinatorRecord, directory: str
    ) -> None:
        self._name = name
        self._node = node
        self._environment = environment
        self._record = record
        self._directory = directory
        self._settings = Settings()
        self._nannies: list[Any] = []
        self._others: Sequence[str] = ()
        self._ways: Any = None
        self._starting: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._logs: Any = None
        self._sampling = Sampling(lambda told: self._say(ForReport(told)))

    async def run(self) -> int:
        """Connect, do as ordered, and wait for the end."""
        from ..dask_backend import fork_server, logs, processes, worker_logs, workers

        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        to = (self._record, self._name, "job", self._node, _CONNECT, self._settings.scheduler_timeout)
        connection = await self._loop.run_in_executor(None, connect, *to)
        if isinstance(connection, EndError):
            where = f"{self._record.node} ({self._record.host}:{self._record.port})"
            raise ClientLostError(
                f"Job {self._name} on node {self._node} cannot reach its cluster's client on {where}."
            )
        self._connection = connection
        logs.configure_logging()
        fork_server.give(connection.credentials)
        self._logs = worker_logs.NodeLogs(
            lambda *said: self._say(ForReport(for_report(*said))), self._node, ranks=False
        )
        self._logs.listen()
        connection.listen(self._hear)
        await self._over.wait()
        lost = not connection.coordinator_is_alive
        end_in(self._settings.stop_timeout, ClientLostError.exit_code if lost else 1)
        logs.hush()
        if self._starting is not None:
            self._starting.cancel()
        self._sampling.end()
        await workers.close(self._nannies, 0.0 if lost else self._settings.stop_timeout)
        self._logs.close()
        processes.end_helpers()
        if lost:
            report.note(
                f"job {self._name} on node {self._node} ends: its cluster's client on {self._record.node} is gone"
            )
            await self._loop.run_in_executor(None, self._cancel_pending)
            return ClientLostError.exit_code
        connection.close()
        return 0

    def signalled(self, number: int) -> None:
        """Tell the client that the batch system is about to end this job; it sees to the results, and then ends this."""
        connection = self._connection
        if connection is None:
            sys.exit(128 + number)
        connection.send(Signalled(number, self._name))
        self._loop.call_soon_threadsafe(self._loop.call_later, self._settings.grace, self._over.set)

    # The client

    def _hear(self, message: Message) -> None:
        """Do what the client says; in the connection's thread."""
        if isinstance(message, Orders):
            self._loop.call_soon_threadsafe(self._begin, message)
        elif isinstance(message, Others):
            self._others = message.jobs
        elif isinstance(message, (Stop, Failed)):
            self._loop.call_soon_threadsafe(self._over.set)

    def _say(self, message: Message) -> None:
        if self._connection is not None:
            self._connection.send(message)

    # Workers

    def _begin(self, orders: Orders) -> None:
        if self._starting is None:
            self._starting = self._loop.create_task(self._start(inputs.from_text(orders.launch)))

    async def _start(self, words: Mapping[str, Any]) -> None:
        """Start the workers, within what this node was granted."""
        from ..dask_backend import logs, processes, tls, workers
        from ..dask_backend.compat.figures import pids_of
        from ..dask_backend.worker_factory import worker_spec

        connection = self._connection
        assert connection is not None
        try:
            sys.path[:] = words["sys_path"]
            options, config = inputs.unpack_options(words)
            self._settings = settings = Settings.resolve(options, {})
            self._ways, self._others = words["ways"], words["others"]
            grant, seen = self._environment.granted(os.environ), read_host()
            granted = node_resources(grant, seen)
            plans, difference = fit(words["names"], words["threads"], words["limit"], granted, settings)
            choice = choose_class(plans, settings, 0, self._node)
            plans, _ = bind_workers(choice.workers, granted, seen, settings, alone=grant.cpus is None)
            if config is not None:
                workers.reconfigure(config, len(plans), words["total"])
            open_files.make_room(len(plans), words["total"])
            open_files.for_workers(len(plans), self._node)
            security = tls.security_for(settings, connection.credentials)
            host = reachable_host(self._node, 2, settings.interface)
            site = workers.Site(host, self._directory, security, self._logs.path)
            self._say(ForReport(planned_here(self._node, plans)))
            if difference is not None:
                self._say(Told(f"was granted {difference}; the limits of its workers follow"))
            tell = functools.cache(lambda text: self._say(Told(text, once=1)))
            if choice.note is not None:
                tell(choice.note)
            here = f" on node {socket.gethostname()}"
            logs.tell_deaths(lambda text: self._say(Told(text.replace(here, ""))))
            specs = [worker_spec(plan, site, settings, tell=tell) for plan in plans]
            # Before they have started: the first one works at once, and the cluster may be closed a moment later.
            self._sampling.begin(self._node, lambda: pids_of(self._nannies), max(1, words["total"] // len(plans)))
            await asyncio.gather(
                *(
                    workers.start(make, keywords, words["scheduler"], self._nannies, lambda: True)
                    for make, keywords in specs
                )
            )
            workers.keep_ports(self._nannies)
            logs.report_deaths()
            self._tell_end()
            self._say(Serving())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001
            if isinstance(error, EndError):
                failure: EndError = error
            elif self._nannies:
                failure = processes.start_failure("worker", error)
            else:
                failure = unexpected(error, "its agent")
            self._say(ReportFailure.of(failure))
            report.failure(failure)

    def _tell_end(self) -> None:
        """Say when the job ends, as far as its variables tell; else the client asks the system, for all its jobs together."""
        now = time.time()
        end = allocation_end(os.environ, now=now, started=job_started(os.environ, now))
        if end is not None:
            self._say(Remaining(max(0, int(end.at - now))))

    # The end

    def _cancel_pending(self) -> None:
        """Cancel the jobs of the cluster that have not begun: their client is lost, and they would wait for nothing."""
        if self._ways is None or not self._others:
            return
        from ..jobs.commands import cancel_pending

        cancel_pending(self._ways, [job for job in self._others if job])
