"""Rank 0: the coordinator, the record by which all others find it, and the scheduler, here or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping

from .. import open_files, report
from ..control.coordinator import Coordinator, CoordinatorConfig
from ..control.signals import handled
from ..dask_import import quicker_import
from ..errors import EndError, NetworkError, PlanError
from ..network import reachable_host
from ..rendezvous import CoordinatorRecord, Rendezvous
from ..resources import read_host
from ..security import Credentials, dashboard_token
from ..timeline import mark
from ..versions import versions
from . import scheduler_request
from .rank import PATIENCE, Facts, Rank, unexpected
from .worker_rank import Options, agent_beside, layout_of

__all__ = ["CoordinatorRank"]


class CoordinatorRank:
    """Rank 0 at work.

    Parameters
    ----------
    rank : Rank
        It.
    options : mapping of str to object
        What the user asked for, as it was given.
    rendezvous : Rendezvous
        How the ranks meet.
    """

    def __init__(self, rank: Rank, options: Options, rendezvous: Rendezvous) -> None:
        self._rank = rank
        self._options = options
        self._rendezvous = rendezvous
        self._record: CoordinatorRecord | None = None
        self._credentials = Credentials.generate() if rank.settings.security is not False else None
        self._failure: EndError | None = None
        self._over = threading.Event()
        self._stop_serving: Callable[[], object] | None = None
        self._process: scheduler_request.SchedulerProcess | None = None

    def run(self) -> int:
        """Coordinate until the run is over.

        Returns
        -------
        int
            The exit code.
        """
        rank, info, settings = self._rank, self._rank.info, self._rank.settings
        host, failure = self._host()
        secret = secrets.token_hex(32)
        config = CoordinatorConfig(
            host=host,
            secret=secret,
            credentials=self._credentials,
            node=info.node,
            participants=self._participants(),
            start_timeout=settings.start_timeout,
            patience=max(0.0, rank.deadline - time.monotonic()),
            stop_timeout=settings.stop_timeout,
            grace=settings.grace,
            scheduler_timeout=settings.scheduler_timeout,
            versions=versions(),
            quorum=self._quorum,
        )
        coordinator = Coordinator(config, self)
        certificate = self._credentials.certificate if self._credentials is not None else ""
        port = coordinator.listen()
        record = CoordinatorRecord(info.run_id, secrets.token_hex(8), info.node, host, port, secret, certificate)
        self._record = record
        where = f"rank {info.rank} on node {info.node}"
        try:
            with handled(lambda number, _: coordinator.signalled(number, where)):
                self._rendezvous.publish(record)
                mark("record published")
                with agent_beside(rank, self._options, self._rendezvous, lambda: record, told=True):
                    self._welcome(coordinator, host, record, failure)
        except EndError:
            raise
        except Exception as error:  # noqa: BLE001
            coordinator.fail(unexpected(error, where))
            self._over.wait(PATIENCE)
        finally:
            self._rendezvous.withdraw()
            self._remove_note()
            coordinator.close()
        return self._failure.exit_code if self._failure is not None else 0

    def _participants(self) -> set[str]:
        """Name all whom the coordinator expects."""
        info = self._rank.info
        names = {str(rank) for rank in range(1, info.world_size)}
        if info.client_rank is None:
            names.add("client")
        return names | ({self._rank.participant} if self._rank.has_workers_beside else set())

    def _host(self) -> tuple[str, EndError | None]:
        """Address to listen on, and what is wrong with it; the other ranks hear of that through the coordinator."""
        try:
            return self._rank.reachable_host(), None
        except NetworkError as error:
            return reachable_host(self._rank.info.node, self._rank.info.nodes, None), error

    def _welcome(
        self, coordinator: Coordinator, host: str, record: CoordinatorRecord, failure: EndError | None
    ) -> None:
        facts = self._facts()
        coordinator.tell(facts)
        error = failure or self._problem(facts)
        if error is not None:
            coordinator.fail(error)
            self._over.wait()
        else:
            self._serve(coordinator, host, record)

    def _facts(self) -> Facts:
        """Ask the launcher's controller about memory, where no variable and no cgroup says anything."""
        rank = self._rank
        if rank.environment.grant(rank.environ).memory is not None or read_host().cgroup_memory is not None:
            return {}
        return {node: (figure.value, figure.source) for node, figure in rank.environment.ask(rank.environ).items()}

    def _problem(self, facts: Facts) -> EndError | None:
        """What prevents the run: the plan of this node, or the limit of open files, the same for the scheduler's process."""
        try:
            self._rank.plan(facts)
            open_files.for_scheduler(self._rank.workers_expected, self._rank.info.node)
        except PlanError as error:
            return error
        return None

    def _serve(self, coordinator: Coordinator, host: str, record: CoordinatorRecord) -> None:
        self._process = self._ask_agent(host, record)
        if self._process is None:
            # The agent may have gone because the run has failed.
            if not self._over.is_set():
                self._serve_here(coordinator, host, record)
            return
        self._process.watch(coordinator.scheduler_gone)
        try:
            self._over.wait()
        finally:
            self._process.end(self._rank.settings.stop_timeout)

    def _ask_agent(self, host: str, record: CoordinatorRecord) -> scheduler_request.SchedulerProcess | None:
        """Have the agent of this node run the scheduler, if there will be one and this process has no Dask yet."""
        rank = self._rank
        if "distributed" in sys.modules or not rank.settings.share_node or not rank.local_worker_ranks:
            return None
        return scheduler_request.ask(rank, self._options, record, host, layout_of(self._rendezvous))

    def _serve_here(self, coordinator: Coordinator, host: str, record: CoordinatorRecord) -> None:
        with quicker_import():
            from ..dask_backend import scheduler, tls
            from ..dask_backend.compat.tls_connections import defer_authorities
            from ..dask_backend.scratch import scratch

            defer_authorities()
            # What is there now stays for as long as the scheduler works; no collection needs to look through it again.
            gc.freeze()
        rank = self._rank
        usual = rank.environment.scratch_directories(rank.environ)
        with scratch(rank.settings, usual, rank.info.run_id):
            token = dashboard_token(record.secret) if record.certificate else None
            security = tls.security_for(rank.settings.security, self._credentials)
            options = scheduler.options(rank.settings, host, security, token)
            asyncio.run(
                scheduler.serve(coordinator, options, token, rank.settings, rank.workers_expected, self._set_stop)
            )

    def _set_stop(self, stop: Callable[[], object]) -> None:
        self._stop_serving = stop
        if self._over.is_set():
            stop()

    # What the coordinator has its owner do, in its own thread

    def met(self) -> None:
        """All have read the record: whatever ends the run, it will not be left behind."""
        self._rendezvous.withdraw()

    def lost(self, text: str) -> None:
        """Tell the user that something was lost and the run goes on."""
        report.note(text)

    def failed(self, error: EndError) -> None:
        """Tell the user why the run has failed."""
        self._failure = error
        report.failure(error, time.monotonic() - self._rank.began)

    def expected_nodes(self) -> Mapping[int, str]:
        """Give the node on which each rank should be."""
        return self._rank.environment.expected_nodes(self._rank.environ)

    def stop_serving(self) -> None:
        """End the scheduler, and then this rank."""
        self._over.set()
        if self._stop_serving is not None:
            with contextlib.suppress(RuntimeError):
                self._stop_serving()

    def end_hard(self) -> None:
        """End this process although the scheduler's event loop does not."""
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
            self._rank.notes(self._record).remove_note()

    def _quorum(self, planned: int) -> int | None:
        """How many of the planned workers are enough."""
        wanted = self._rank.settings.min_workers
        if wanted is None:
            return None
        return math.ceil(wanted * planned) if isinstance(wanted, float) else wanted
