"""What a `BatchletRunner` does: from the processes that a launcher has started to one Dask cluster, and back to exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from .. import report, timeline
from ..environments import Environment, detected, first_process, select
from ..errors import EndError, TerminatedError, UsageError, terminated
from ..network import LOOPBACK, in_url
from ..node.rank import Rank, importing
from ..plan import CLIENT, LOCAL, SCHEDULER, WORKER, Plan
from ..rendezvous import FileRendezvous, MpiRendezvous, MpiUnavailableError, Rendezvous
from ..security import Credentials, dashboard_token
from ..settings import Settings

if TYPE_CHECKING:
    from ..control.signals import ClientGuard

__all__ = ["Run"]

# Seconds by which a rank's own patience exceeds rank 0's, so that rank 0, who knows who is missing, speaks first.
_PATIENCE = 5.0
# Seconds within which all connections to a dead process break.
_MOMENT = 1.0
# Seconds for the last words after `stop_timeout`.
_FAREWELL = 3.0


class Run:
    """What a `BatchletRunner` does; the runner itself says what its attributes mean.

    Parameters
    ----------
    asynchronous : bool
        Whether it will be entered with ``async with``.
    options : mapping of str to object
        What the user asked for.
    """

    active: ClassVar[Run | None] = None

    def __init__(self, *, asynchronous: bool, options: Mapping[str, object]) -> None:
        self._began = time.monotonic()
        self._outer = Run.active
        self._asynchronous = asynchronous
        self._entered = False
        self._closed = False
        self._cluster: Any = None
        self._start: Mapping[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._known: Rank | None = None
        self._met_by: Rendezvous | None = None
        self._guard: ClientGuard | None = None
        self._callbacks: list[Callable[[int], object]] = []
        self._security: Any = None
        self._token: str | None = None
        self._notes: FileRendezvous | None = None
        self._scratch: str | None = None
        self._marks: timeline.Marks = ()
        try:
            self._settings = Settings.resolve(options, os.environ)
            if self._outer is not None:
                self._join(self._outer, options)
                return
            environment, self._reason = select(self._settings.mode, os.environ)
            info = environment.process(os.environ)
            self._known = Rank(self._settings, environment, info, os.environ, self._began)
            self._met_by = self._choose_rendezvous(self._known)
        except EndError as error:
            self.refuse(error)

    def _join(self, outer: Run, options: Mapping[str, object]) -> None:
        """Be another name for the run that this process is already in (``python -m batchlet`` has started it)."""
        self._settings, self._known, self._reason = outer._settings, outer._known, "already inside a Batchlet run"
        if options:
            report.note(
                f"{', '.join(options)}: without effect here, since this script runs inside `python -m batchlet`"
            )

    def on_terminate(self, callback: Callable[[int], object]) -> None:
        """See the runner."""
        (self._outer or self)._callbacks.append(callback)

    # What the user can ask of a runner

    @property
    def mode(self) -> str:
        """See the runner."""
        return self._rank.info.mode

    @property
    def role(self) -> str:
        """See the runner."""
        return self._rank.role

    @property
    def run_id(self) -> str:
        """See the runner."""
        return self._rank.info.run_id

    @property
    def plan(self) -> Plan:
        """See the runner."""
        if self._rank.plan is None:
            self.refuse(self._rank.plan_error or UsageError("There is no plan."))
        return self._rank.plan

    @property
    def n_workers(self) -> int:
        """See the runner."""
        self.must_run("n_workers")
        return int(self._start["workers"])

    @property
    def scheduler_address(self) -> str:
        """See the runner."""
        self.must_run("scheduler_address")
        return str(self._start["address"])

    @property
    def dashboard_link(self) -> str | None:
        """See the runner."""
        self.must_run("dashboard_link")
        if self._start["dashboard"] is None:
            return None
        host, port = self._start["dashboard"]
        shown = "localhost" if host == LOOPBACK else in_url(host)
        return f"http://{shown}:{port}{'/' + self._token if self._token else ''}/status"

    @property
    def security(self) -> Any:
        """See the runner."""
        self.must_run("security")
        return self._security

    @property
    def status(self) -> Any:
        """See the runner."""
        from distributed.core import Status

        connection = self._rank.connection if self._entered else None
        if (
            connection is not None
            and threading.current_thread() is not threading.main_thread()
            and self._disconnected()
        ):
            # Dask's client has lost its connection and asks whether to try again: our own news come in a moment. It also
            # asks each time that it gives a sign of life, in the event loop that brings all results.
            connection.wait_end(_MOMENT)
            if connection.end is not None:
                if self._guard is not None:
                    self._guard.wait_delivered(_MOMENT)
                return Status.closed
        if self._closed:
            return Status.closed
        return Status.running if self._entered else Status.created

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._entered else "not started"
        return f"<BatchletRunner {self.run_id}: {self.mode}, {self.role}, {state}>"

    # Entering

    def enter(self) -> None:
        """Take part in the run. Only the client comes back."""
        if self._asynchronous:
            self.refuse(UsageError("BatchletRunner(asynchronous=True) needs `async with`."))
        self._begin()
        self._watch()
        try:
            if self._outer is not None:
                self._running(self._outer._start)
            elif self.role == LOCAL:
                from ..dask_backend import local_cluster

                self._run_local(local_cluster.start(self.plan, self._settings, *self._local_place()))
            else:
                self._take_part()
        except EndError as error:
            self._abandon(error)
        except BaseException:
            self._stack.close()
            raise

    async def enter_async(self) -> None:
        """Do as `enter`, in an event loop."""
        import asyncio

        if not self._asynchronous:
            self.refuse(UsageError("`async with` needs BatchletRunner(asynchronous=True)."))
        self._begin()
        self._watch()
        try:
            if self._outer is not None:
                self._running(self._outer._start)
            elif self.role == LOCAL:
                from ..dask_backend import local_cluster

                self._run_local(await local_cluster.start_async(self.plan, self._settings, *self._local_place()))
            else:
                await asyncio.to_thread(self._take_part)
        except EndError as error:
            self._abandon(error)
        except BaseException:
            self._stack.close()
            raise

    def _begin(self) -> None:
        if self._entered:
            self.refuse(
                UsageError("This BatchletRunner was used before. The processes of a launch make one cluster, once.")
            )
        if self._outer is None and self._rank.info.world_size > 1 and not self._starts_ranks:
            try:
                self._check_rendezvous()
            except EndError as error:
                self.refuse(error)

    def _choose_rendezvous(self, rank: Rank) -> Rendezvous:
        wanted, info = self._settings.rendezvous, rank.info
        by_mpi = rank.environment.rendezvous[0] == "mpi"
        if wanted == "mpi" or (wanted == "auto" and by_mpi and MpiRendezvous.available() is None):
            # Rank 0's patience ends first, so that it is the one to say who is missing.
            return MpiRendezvous(
                rank=info.rank,
                world_size=info.world_size,
                node=info.node,
                source=self._reason,
                deadline=rank.deadline + (_PATIENCE if info.rank else 0.0),
            )
        return FileRendezvous(self._settings.rendezvous_dir, info.run_id, info.node)

    def _check_rendezvous(self) -> None:
        """Find out whether the ranks can meet as planned; where MPI cannot be loaded, a file serves too."""
        try:
            self._rendezvous.check()
        except MpiUnavailableError:
            if self._settings.rendezvous == "mpi":
                raise
            info = self._rank.info
            self._met_by = FileRendezvous(self._settings.rendezvous_dir, info.run_id, info.node)
            self._rendezvous.check()
        if isinstance(self._rendezvous, MpiRendezvous):
            # The launcher's variables allow a guess only.
            local_ranks, nodes = self._rendezvous.layout
            self._rank.info = replace(self._rank.info, local_ranks=local_ranks, nodes=nodes)
            self._rank.make_plan(None)

    def _take_part(self) -> None:
        """Be what this rank is. Only the client returns."""
        rank = self._rank
        launcher = rank.environment.launcher(rank.environ)
        if launcher is not None:
            from ..launchers.step import start_step

            rank.connect(self._stack.enter_context(start_step(rank, launcher)), name="client")
            self._stack.callback(rank.connection.close)
            self._running({**rank.wait("start"), **rank.wait("ready")})
            return
        if rank.role == SCHEDULER:
            self._end_process(rank.run_scheduler(self._rendezvous))
        if rank.role == WORKER:
            code = rank.work(self._rendezvous)
            self._rendezvous.withdraw()
            self._end_process(code)
        by_file = isinstance(self._rendezvous, FileRendezvous)
        if by_file:
            self._stack.enter_context(rank.host_beside(None))
        record = self._rendezvous.wait(rank.deadline + _PATIENCE)
        if not by_file:
            self._stack.enter_context(rank.host_beside(record))
        rank.connect(record, latest=self._rendezvous.latest)
        self._stack.callback(rank.connection.close)
        with importing():
            # The script is about to do it; here it is done while the workers start.
            importlib.import_module("distributed")
            tuning = importlib.import_module("batchlet.dask_backend.tuning")
        tuning.be_patient(rank.info.world_size)
        self._running({**rank.wait("start"), **rank.wait("ready")})

    def _local_place(self) -> tuple[Any, str | None]:
        """Where the local cluster lives, and the secret of its dashboard."""
        from .. import open_files
        from ..dask_backend import processes, workers
        from ..dask_backend.tls import security_for

        wanted = self._settings.security
        security = security_for(wanted, Credentials.generate() if wanted is True else None)
        self._scratch = directory = self._stack.enter_context(
            workers.scratch(self._settings, self._environment.scratch_directories(os.environ), self.run_id)
        )
        self._stack.enter_context(open_files.for_local(len(self.plan.workers)))
        self._stack.enter_context(processes.hidden_main())
        self._stack.enter_context(workers.configured())
        host = self._rank.reachable_host() if self._settings.interface else LOOPBACK
        self._security = security
        self._token = secrets.token_hex(16) if wanted is not False else None
        return workers.Site(host, directory, security), self._token

    def _run_local(self, cluster: Any) -> None:
        from ..dask_backend.scheduler import dashboard_place

        self._cluster = cluster
        workers = self.plan.workers
        self._running(
            {
                "address": cluster.scheduler_address,
                "dashboard": dashboard_place(cluster.scheduler),
                "node": self._rank.info.node,
                "workers": len(workers),
                "threads": _extent([worker.threads for worker in workers]),
                "memory": _extent([worker.memory for worker in workers]),
                "nodes": 1,
            }
        )

    def _running(self, start: Mapping[str, Any]) -> None:
        self._start = start
        self._entered = True
        timeline.mark("ready")
        self._marks = timeline.marks()
        if self._outer is not None:
            self._security, self._token = self._outer._security, self._outer._token
            return
        Run.active = self
        if self._rank.record is not None:
            self._security = self._rank.security()
            self._token = dashboard_token(self._rank.record.secret) if self._rank.record.certificate else None
        if self._rank.connection is not None:
            self._rank.connection.listen(self._hear)
        tunnel = self._tunnel()
        report.started(
            where=f"{self.mode} {self._rank.info.job}".strip(),
            ranks=self._rank.info.world_size,
            nodes=start["nodes"],
            workers=start["workers"],
            threads=tuple(start["threads"]),
            memory=tuple(start["memory"]),
            dashboard=self.dashboard_link,
            tunnel=tunnel,
            secure=self._settings.security is not False,
            instead=self._tell_owner(tunnel) if self._token and self._others_may_read() else None,
        )

    def _tell_owner(self, tunnel: str | None) -> str | None:
        """Leave the dashboard's address in a file for the run's owner alone, and say where."""
        address = self.dashboard_link
        if address is None:
            return None
        try:
            # Of a local run the scratch is as good a place, which is removed even after a SIGKILL: there is no rank 0.
            self._notes = self._rank.notes(self._scratch)
            self._stack.callback(self._notes.remove_note)
            path = self._notes.leave_note("\n".join([address, *([tunnel] if tunnel else [])]) + "\n")
        except EndError:
            where = self._settings.rendezvous_dir
            return f"runner.dashboard_link has it (others may read this, and {where} cannot be written)"
        with contextlib.suppress(ValueError, OSError):
            path = path.relative_to(os.getcwd())  # noqa: PTH109
        return f"cat {shlex.quote(str(path))}"

    def _tunnel(self) -> str | None:
        """Give the command that brings the dashboard to the user's own machine; `None` where the user is here."""
        place, here = self._start["dashboard"], self.mode == "local" and "SSH_CONNECTION" not in os.environ
        if here or place is None or place[0] != LOOPBACK:
            return None
        record = self._rank.record
        node = record.node if record is not None else self._rank.info.node
        login = self._environment.login_host(os.environ)
        jump = f" -J {login}" if login and login != node else ""
        return f"ssh -N -L {place[1]}:localhost:{place[1]}{jump} {node}"

    def _hear(self, message: Mapping[str, Any]) -> None:
        """Bring what rank 0 says, or its silence, to the user's code; in the connection's thread."""
        if self._guard is None:
            return
        if message["op"] == "terminate":
            self._guard.terminate(int(message["number"]), str(message["where"]))
        elif message["op"] == "end":
            from ..dask_backend.processes import hush

            hush()
            error = self._rank.connection.failure(message)
            if not self._rank.connection.coordinator_is_alive:
                report.failure(error, time.monotonic() - self._began)
            self._guard.deliver(error)

    def _watch(self) -> None:
        """Handle signals from here on, where the user's code is or will be."""
        if self._outer is not None:
            return
        if self.role not in (CLIENT, LOCAL):
            from ..control.signals import handled

            # Until it has met the others, this rank can only end.
            self._stack.enter_context(handled(_end_by_signal))
            return
        from ..control.signals import ClientGuard

        settings = self._settings
        self._guard = ClientGuard(
            grace=settings.grace, stop_timeout=settings.stop_timeout, callbacks=self._callbacks, leave=self._leave
        )
        self._stack.enter_context(self._guard.watch())

    # Leaving

    def leave(self, error: BaseException | None) -> None:
        """End the run: the user's code has left the block, with an exception or without one."""
        if self._outer is not None:
            self._closed = True
            return
        lost = self._loss(error)
        self._close_clients()
        try:
            if self._cluster is not None:
                self._cluster.close()
            else:
                self._leave()
        finally:
            self._finish(lost or error)
        if lost is not None:
            raise lost from None

    async def leave_async(self, error: BaseException | None) -> None:
        """Do as `leave`, in an event loop."""
        import asyncio

        if self._outer is not None:
            self._closed = True
            return
        lost = self._loss(error)
        for client in self._clients():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.close(), self._settings.stop_timeout)
        try:
            if self._cluster is not None:
                await self._cluster.close()
            else:
                await asyncio.to_thread(self._leave)
        finally:
            self._finish(lost or error)
        if lost is not None:
            raise lost from None

    def _loss(self, error: BaseException | None) -> EndError | None:
        """Say whether the cluster is lost and `error` only what Dask made of that; the guard's watch ends here."""
        assert self._guard is not None
        connection = self._rank.connection
        module = type(error).__module__.split(".")[0]
        from_dask = module in ("distributed", "asyncio", "concurrent", "tornado") or isinstance(error, OSError)
        if connection is not None and from_dask:
            # Dask may notice that its scheduler is gone a moment before we do.
            connection.wait_end(_MOMENT)
        self._guard.end()
        if error is None or isinstance(error, (EndError, SystemExit)):
            return None
        # Raised in the midst of a library, the guard's error may come out as the cause of another one.
        cause: BaseException | None = error
        while cause is not None:
            if cause is self._guard.error:
                return self._guard.error
            cause = cause.__cause__ or cause.__context__
        lost: EndError | None = connection.end if connection is not None and from_dask else None
        return lost

    def _leave(self) -> None:
        """Tell rank 0 that the run is over, and wait until the workers are gone."""
        if self._guard is not None and isinstance(self._guard.error, TerminatedError):
            self._environment.keep_exit_code(os.environ)
        if self._notes is not None:
            self._notes.remove_note()
        connection = self._rank.connection
        if connection is None:
            return
        connection.send("done")
        with contextlib.suppress(EndError):
            bye = connection.wait("bye", time.monotonic() + self._settings.stop_timeout + _FAREWELL)
            if self._settings.timeline:
                for line in timeline.lines({"the client": self._marks, **bye["timeline"]}):
                    report.note(line)

    def _finish(self, error: BaseException | None) -> None:
        self._closed = True
        Run.active = None
        self._stack.close()
        connection = self._rank.connection
        self._rendezvous.withdraw(orphaned=connection is not None and not connection.coordinator_is_alive)
        if connection is None or connection.end is None:
            report.ended(
                seconds=time.monotonic() - self._began,
                workers=int(self._start["workers"]),
                error=None if type(error) in (type(None), SystemExit) else _called(error),
            )

    def _clients(self) -> list[Any]:
        """Clients that are still connected to this cluster, by whatever way they found it."""
        from distributed import Client

        address = self._start["address"]
        return [
            client
            for client in list(Client._instances)
            if client.status == "running" and getattr(client.scheduler, "address", None) == address
        ]

    def _disconnected(self) -> bool:
        return any(client.scheduler_comm is None or client.scheduler_comm.comm.closed() for client in self._clients())

    def _close_clients(self) -> None:
        for client in self._clients():
            with contextlib.suppress(Exception):
                client.close(timeout=self._settings.stop_timeout)

    # Common

    @property
    def _rank(self) -> Rank:
        assert self._known is not None
        return self._known

    @property
    def _rendezvous(self) -> Rendezvous:
        assert self._met_by is not None
        return self._met_by

    @property
    def _environment(self) -> Environment:
        return self._rank.environment

    @property
    def _starts_ranks(self) -> bool:
        """Whether the ranks are yet to be started, by this process."""
        return self._environment.launcher(os.environ) is not None

    def _others_may_read(self) -> bool:
        return report.others_may_read(shared=self._environment.output_is_shared(os.environ))

    def must_run(self, what: str) -> None:
        """Refuse what makes sense only while the run is under way."""
        if not self._entered:
            self.refuse(
                UsageError(
                    f"BatchletRunner has not been started ({what} was asked for). Use it in a with statement: "
                    "`with BatchletRunner() as runner, Client(runner) as client:`."
                )
            )

    def _speaks_of(self, error: EndError) -> bool:
        """Whether this process prints an error that rank 0 has not printed."""
        if error.same_on_every_rank:
            return self._speaks()
        info = self._rank.info
        # Without a word from rank 0, all others run into the same: one on each node says so.
        others = [rank for rank in info.local_ranks if rank != 0]
        return self._rank.connection is not None or info.rank in (0, *others[:1])

    def _speaks(self) -> bool:
        """Whether this process is the one that prints what all ranks run into."""
        if self._known is not None:
            return self._known.info.rank == 0 or self._starts_ranks
        return first_process(os.environ)

    def refuse(self, error: EndError) -> NoReturn:
        """End with an error that nothing was started for."""
        if not error.same_on_every_rank or self._speaks():
            report.failure(error)
        elif detected(os.environ).ends_all:
            # Let the first one that fails be the one that speaks.
            time.sleep(_MOMENT)
        if self._met_by is not None:
            self._met_by.abandon(error.exit_code)
        raise error from None

    def _abandon(self, error: EndError) -> NoReturn:
        """End with an error while starting or taking part."""
        connection = self._rank.connection
        hub_speaks = connection is not None and connection.coordinator_is_alive and connection.end is not None
        if connection is not None and connection.coordinator_is_alive and connection.end is None:
            # The others must not wait for this rank; rank 0 tells them, and the user.
            connection.send("failed", kind=type(error).__name__, message=str(error))
            connection.wait_end(_MOMENT)
            hub_speaks = connection.end is not None
        self._stack.close()
        self._rendezvous.withdraw(orphaned=connection is not None and not connection.coordinator_is_alive)
        if not hub_speaks and self._speaks_of(error):
            report.failure(error, time.monotonic() - self._began)
        self._rendezvous.abandon(error.exit_code)
        raise error from None

    def _end_process(self, code: int) -> NoReturn:
        sys.stdout.flush()
        if code:
            self._rendezvous.abandon(code)
        sys.exit(code)


def _end_by_signal(number: int, _frame: object) -> NoReturn:
    raise terminated(number)


def _called(error: BaseException | None) -> str:
    """Name what has ended the ``with`` block: a signal, or an exception."""
    if isinstance(error, TerminatedError):
        return str(error).replace(" ended the run", "").rstrip(".")
    return type(error).__name__


def _extent(numbers: list[int]) -> tuple[int, int]:
    return min(numbers), max(numbers)
