"""What one process of a run does: plan its node, meet the others, and be the scheduler or a host of workers."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import report
from ..dask_import import quicker_import
from ..environments import Environment, Figure, ProcessInfo
from ..errors import BatchletError, EndError, NetworkError, PlanError
from ..network import reachable_host
from ..plan import CLIENT, WORKER, Plan, hosts_workers, make_plan, role_of
from ..rendezvous import CoordinatorRecord, FileRendezvous, Rendezvous
from ..resources import node_resources, read_host
from ..security import Credentials, dashboard_token
from ..settings import Settings
from ..timeline import mark
from ..versions import versions
from . import attach
from .attach import Seat
from .bootstrap import HostOrders, SchedulerOrders, dask_config, start_host

if TYPE_CHECKING:
    import subprocess

    from ..control.coordinator import Coordinator
    from .scheduler_request import SchedulerProcess

__all__ = ["Rank", "participant", "unexpected"]

# Seconds by which a rank's own patience exceeds rank 0's, so that rank 0, who knows who is missing, speaks first.
_PATIENCE = 5.0


class Rank:
    """One process of a run.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    environment : Environment
        How the process was started.
    info : ProcessInfo
        Who it is.
    environ : mapping of str to str
        The launcher's variables.
    began : float
        When it began, in seconds of `time.monotonic`.

    Attributes
    ----------
    plan : Plan or None
        What this node does; `None` while `plan_error` says why there is none.
    connection : Connection or None
        The connection to rank 0's coordinator.
    record : CoordinatorRecord or None
        The record by which the ranks have found each other.
    credentials : Credentials or None
        The run's TLS credentials, once this rank has them.

    Raises
    ------
    PlanError
        If the plan fails in a world of one. With more ranks it is kept in `plan_error`, to be told to rank 0, which
        speaks for all.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Environment,
        info: ProcessInfo,
        environ: Mapping[str, str],
        began: float,
    ) -> None:
        self.settings = settings
        self.environment = environment
        self.info = info
        self.environ = environ
        self.began = began
        self.deadline = began + settings.start_timeout
        self.plan: Plan | None = None
        self.plan_error: PlanError | None = None
        self.connection: Any = None
        self.record: CoordinatorRecord | None = None
        self.credentials: Credentials | None = None
        self.make_plan(None)

    @property
    def role(self) -> str:
        """What this rank is."""
        return role_of(self.info, self.info.rank)

    def make_plan(self, controller_memory: Figure[int] | None) -> None:
        """Plan this node; `controller_memory` is its memory in bytes according to the launcher's controller."""
        self.plan_error = None
        resources = node_resources(self.environment.grant(self.environ), read_host(), controller_memory)
        try:
            self.plan = make_plan(self.info, resources, self.settings)
        except PlanError as error:
            if self.info.world_size == 1 and self.info.client_rank == 1:
                raise
            self.plan_error = error

    def reachable_host(self) -> str:
        """Address of this node; see `batchlet.network.reachable_host`."""
        return reachable_host(self.info.node, self.info.nodes, self.settings.interface)

    def connect(
        self,
        record: CoordinatorRecord,
        *,
        name: str | None = None,
        role: str | None = None,
        latest: Callable[[], CoordinatorRecord | None] | None = None,
    ) -> None:
        """Connect to rank 0 and settle the plan with what it knows.

        Parameters
        ----------
        record : CoordinatorRecord
            Where rank 0 is.
        name, role : str, optional
            Other than this rank's own, for a process beside it.
        latest : callable, optional
            Looks for a newer record when nobody listens where this one says.

        Raises
        ------
        StartTimeoutError
            If rank 0 cannot be reached.
        EndError
            The root cause, if the run has failed.
        """
        from ..control.connection import Connection

        info = self.info
        self.record = record
        role = role or self.role
        brings = [f"{info.rank}w"] if role == CLIENT and self.brings_host else []
        self.connection = Connection(
            record,
            {
                "name": name or str(info.rank),
                "role": role,
                "node": info.node,
                "local_ranks": list(info.local_ranks),
                "brings": brings,
                "versions": versions(),
            },
            self.deadline + _PATIENCE,
            self.settings.scheduler_timeout,
            latest,
        )
        self.record, self.credentials = self.connection.record, self.connection.credentials
        mark("rank 0 found")
        facts = self.connection.wait("welcome", self.deadline + _PATIENCE)["facts"]
        controller_memory = facts.get(info.node)
        self.make_plan(Figure(int(controller_memory[0]), str(controller_memory[1])) if controller_memory else None)
        if self.plan_error is not None:
            self.fail_all(self.plan_error)

    def security(self) -> Any:
        """Dask's security for this process."""
        from ..dask_backend.tls import security_for

        return security_for(self.settings.security, self.credentials)

    def notes(self, directory: str | None = None) -> FileRendezvous:
        """Where the client leaves a note for the run's owner, however the ranks meet; rank 0 removes it if need be.

        Parameters
        ----------
        directory : str, optional
            Other than that in which the ranks meet.
        """
        # A step in an allocation has its own name for the run; the record has one that both sides know.
        run_id = self.record.run_id if self.record is not None else self.info.run_id
        return FileRendezvous(directory or self.settings.rendezvous_dir, run_id, self.info.node)

    @property
    def brings_host(self) -> bool:
        """Whether this head rank has a process beside it that hosts workers."""
        rank = self.info.rank
        return self.role != WORKER and rank in self.info.local_ranks and hosts_workers(self.info, self.settings, rank)

    def fail_all(self, error: EndError) -> None:
        """End the run for all ranks with this rank's error; rank 0 prints it and answers with the end of the run."""
        self.connection.send("failed", kind=type(error).__name__, message=str(error))
        self.connection.wait("end", time.monotonic() + _PATIENCE)
        raise error

    def wait(self, message: str) -> Mapping[str, Any]:
        """Wait for a message of the coordinator until the start is overdue; see `Connection.wait`."""
        answer: Mapping[str, Any] = self.connection.wait(message, self.deadline + _PATIENCE)
        return answer

    def work(self, rendezvous: Rendezvous) -> int:
        """Leave this rank's workers to the host of the node, and wait until the run is over.

        Returns
        -------
        int
            The exit code.
        """
        from ..control.signals import handled

        by_file = isinstance(rendezvous, FileRendezvous)
        # Some ways to meet need every rank.
        place = self._seat(by_file, lambda: None if by_file else rendezvous.wait(self.deadline + _PATIENCE), park=True)
        with handled(lambda number, _: place.signalled(number)):
            return place.hold()

    def _seat(self, by_file: bool, record: Callable[[], CoordinatorRecord | None], *, park: bool) -> Seat:
        """Make this rank's seat at the host of its node."""

        def hello() -> dict[str, Any]:
            found = record()
            return attach.hello(
                self.info.rank, participant(self.info), self.environ, asdict(found) if found is not None else None
            )

        def start(descriptor: int, listen: bool) -> subprocess.Popen[bytes]:
            orders = HostOrders(
                self.settings,
                tuple(sys.path),
                self.deadline - time.monotonic(),
                self.info,
                self.environment,
                descriptor,
                listen,
                by_file,
                config,
            )
            return start_host(orders)

        info, settings = self.info, self.settings
        # Now: a head rank starts its host in a thread, while it imports Dask itself.
        config = dask_config()
        name = attach.socket_name(info.run_id, info.node, self.environ) if settings.share_node else None
        return Seat(name, hello, start, self.deadline + attach.PATIENCE, settings.stop_timeout, park=park)

    @contextlib.contextmanager
    def host_beside(self, record: CoordinatorRecord | None) -> Iterator[None]:
        """Have the host of the node run this head rank's workers, so that they never share the head's event loop.

        Parameters
        ----------
        record : CoordinatorRecord, optional
            Where rank 0 is; `None` if the host is to find out by itself, from rank 0's file.
        """
        if not self.brings_host:
            yield
            return
        place = self._seat(record is None, lambda: record, park=False)
        thread = threading.Thread(target=_hold, args=(place,), name="batchlet-seat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            place.leave()
            thread.join(self.settings.stop_timeout)

    def run_scheduler(self, rendezvous: Rendezvous) -> int:
        """Be rank 0: the coordinator, the record by which the others find it, and the scheduler, until the run is over.

        Returns
        -------
        int
            The exit code.
        """
        return _SchedulerRank(self, rendezvous).run()

    def participants(self) -> set[str]:
        """Name all the processes that rank 0 expects."""
        names = {str(rank) for rank in range(1, self.info.world_size)}
        if self.info.client_rank is None:
            names.add("client")
        return names | ({"0w"} if self.brings_host else set())

    def facts(self) -> dict[str, tuple[int, str]]:
        """Ask the launcher's controller about memory, where no variable and no cgroup says anything."""
        if self.environment.grant(self.environ).memory is not None or read_host().cgroup_memory is not None:
            return {}
        return {node: (figure.value, figure.source) for node, figure in self.environment.ask(self.environ).items()}


def participant(info: ProcessInfo) -> str:
    """What a rank is called as one that brings workers; a head rank is somebody itself."""
    return str(info.rank) if role_of(info, info.rank) == WORKER else f"{info.rank}w"


def _hold(place: Seat) -> None:
    try:
        place.hold()
    except EndError:
        pass  # the coordinator misses the workers, and says so
    except Exception as error:  # noqa: BLE001
        report.failure(unexpected(error, "the host of this node's workers"))


def unexpected(error: Exception, where: str) -> EndError:
    """Make the report of an error that nobody foresaw, with the last lines of its traceback."""
    import traceback

    tail = "".join(traceback.format_exception(error)[-3:]).rstrip()
    return BatchletError(f"{where} failed:\n{tail}")


class _SchedulerRank:
    """Rank 0 at work."""

    def __init__(self, rank: Rank, rendezvous: Rendezvous) -> None:
        self._rank = rank
        self._rendezvous = rendezvous
        self._failure: EndError | None = None
        self._over = threading.Event()
        self._stop_serving: Callable[[], object] | None = None
        self._process: SchedulerProcess | None = None

    def run(self) -> int:
        from ..control.coordinator import Coordinator
        from ..control.signals import handled

        info, settings = self._rank.info, self._rank.settings
        host, failure = self._host()
        secret = secrets.token_hex(32)
        credentials = Credentials.generate() if settings.security is not False else None
        coordinator = Coordinator(
            host=host,
            secret=secret,
            credentials=credentials,
            node=info.node,
            participants=self._rank.participants(),
            start_timeout=settings.start_timeout,
            patience=max(0.0, self._rank.deadline - time.monotonic()),
            stop_timeout=settings.stop_timeout,
            grace=settings.grace,
            scheduler_timeout=settings.scheduler_timeout,
            versions=versions(),
            quorum=self._quorum,
            # All have read the record: whatever ends the run, it will not be left behind.
            on_met=self._rendezvous.withdraw,
            on_stop=self._on_stop,
            on_failure=self._on_failure,
            on_loss=report.note,
            on_stuck=self._end_hard,
            expected_nodes=lambda: self._rank.environment.expected_nodes(self._rank.environ),
        )
        certificate = credentials.certificate if credentials is not None else ""
        record = CoordinatorRecord(
            info.run_id, secrets.token_hex(8), info.node, host, coordinator.listen(), secret, certificate
        )
        self._rank.record, self._rank.credentials = record, credentials
        where = f"rank {info.rank} on node {info.node}"
        try:
            with handled(lambda number, _: coordinator.signalled(number, where)):
                self._meet(coordinator, host, record, failure)
        except EndError:
            raise
        except Exception as error:  # noqa: BLE001
            coordinator.fail(unexpected(error, where))
            self._over.wait(_PATIENCE)
        finally:
            self._rendezvous.withdraw()
            self._remove_note()
            coordinator.close()
        return self._failure.exit_code if self._failure is not None else 0

    def _meet(self, coordinator: Coordinator, host: str, record: CoordinatorRecord, failure: EndError | None) -> None:
        self._rendezvous.publish(record)
        mark("record published")
        with self._rank.host_beside(record):
            self._welcome(coordinator, host, record, failure)

    def _welcome(
        self, coordinator: Coordinator, host: str, record: CoordinatorRecord, failure: EndError | None
    ) -> None:
        info = self._rank.info
        facts = self._rank.facts()
        controller_memory = facts.get(info.node)
        self._rank.make_plan(Figure(*controller_memory) if controller_memory else None)
        coordinator.tell(facts)
        error = failure or self._rank.plan_error or self._too_few_files()
        if error is not None:
            coordinator.fail(error)
            self._over.wait()
        else:
            self._serve(coordinator, host, record)

    def _too_few_files(self) -> EndError | None:
        """What is wrong with the limit of open files, which is the same for the scheduler's own process."""
        from .. import open_files

        try:
            open_files.for_scheduler(self._workers(), self._rank.info.node)
        except EndError as error:
            return error
        return None

    def _host(self) -> tuple[str, EndError | None]:
        """Address to listen on, and what is wrong with it; the other ranks hear of that through the coordinator."""
        try:
            return self._rank.reachable_host(), None
        except NetworkError as error:
            return reachable_host(self._rank.info.node, self._rank.info.nodes, None), error

    def _serve(self, coordinator: Coordinator, host: str, record: CoordinatorRecord) -> None:
        self._process = self._ask_host(host, record)
        if self._process is None:
            # The host may have gone because the run has failed.
            if not self._over.is_set():
                self._serve_here(coordinator, host, record)
            return
        self._process.watch(coordinator.scheduler_gone)
        try:
            self._over.wait()
        finally:
            self._process.end(self._rank.settings.stop_timeout)

    def _ask_host(self, host: str, record: CoordinatorRecord) -> SchedulerProcess | None:
        """Have the host of this node's workers run the scheduler, if there will be one and this process has no Dask yet."""
        rank = self._rank
        info, settings = rank.info, rank.settings
        if (
            "distributed" in sys.modules
            or not settings.share_node
            or not any(hosts_workers(info, settings, local) for local in info.local_ranks)
        ):
            return None
        name = attach.socket_name(info.run_id, info.node, rank.environ)
        if name is None:
            return None
        from .scheduler_request import ask

        cpus = tuple(attach.facts()["cpus"])
        orders = SchedulerOrders(
            settings,
            {**os.environ, **rank.environ},
            tuple(sys.path),
            cpus,
            info,
            record,
            host,
            self._workers(),
            rank.deadline,
            dask_config(),
        )
        return ask(name, orders, rank.deadline)

    def _workers(self) -> int:
        """About how many workers will come."""
        info, each = self._rank.info, self._rank.settings.workers_per_node or 0
        return max(info.world_size, info.nodes * each)

    def _serve_here(self, coordinator: Coordinator, host: str, record: CoordinatorRecord) -> None:
        import asyncio

        with quicker_import():
            from ..dask_backend import scheduler
            from ..dask_backend.compat.tls_connections import defer_authorities
            from ..dask_backend.scratch import scratch

            defer_authorities()
            # What is there now stays for as long as the scheduler works; no collection needs to look through it again.
            gc.freeze()

        with scratch(self._rank.settings, self._rank.environ, self._rank.info.run_id):
            token = dashboard_token(record.secret) if record.certificate else None
            options = scheduler.options(self._rank.settings, host, self._rank.security(), token)
            asyncio.run(
                scheduler.serve(coordinator, options, token, self._rank.settings, self._workers(), self._set_stop)
            )

    def _set_stop(self, stop: Callable[[], object]) -> None:
        self._stop_serving = stop
        if self._over.is_set():
            stop()

    def _on_stop(self) -> None:
        self._over.set()
        if self._stop_serving is not None:
            with contextlib.suppress(RuntimeError):
                self._stop_serving()

    def _end_hard(self) -> None:
        """End this process although the scheduler's event loop does not; in the coordinator's thread."""
        if self._process is not None:
            self._process.kill()
        else:
            from ..dask_backend.scratch import remove_scratch

            remove_scratch()
        self._rendezvous.withdraw()
        self._remove_note()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(self._failure.exit_code if self._failure is not None else 0)

    def _remove_note(self) -> None:
        """Remove the note of a client that was killed."""
        with contextlib.suppress(EndError):
            self._rank.notes().remove_note()

    def _on_failure(self, error: EndError) -> None:
        self._failure = error
        report.failure(error, time.monotonic() - self._rank.began)

    def _quorum(self, planned: int) -> int | None:
        """How many of the planned workers are enough."""
        wanted = self._rank.settings.min_workers
        if wanted is None:
            return None
        return math.ceil(wanted * planned) if isinstance(wanted, float) else wanted
