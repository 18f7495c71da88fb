"""The part of a block that is rank 0's: its rules, and its scheduler, here or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import open_files
from ..control.coordinator import Coordinator
from ..control.events import Rules
from ..dask_import import quicker_import
from ..errors import EndError, PlanError
from ..rendezvous import CoordinatorRecord
from ..resources import read_host
from ..security import Credentials
from . import inputs, scheduler_request
from .rank import Facts, Rank

__all__ = ["SchedulerBlock", "import_scheduler"]


def import_scheduler() -> None:
    """Import what a scheduler in this process needs."""
    with quicker_import():
        from ..dask_backend import scheduler, tls  # noqa: F401
        from ..dask_backend.compat.tls_connections import defer_authorities

        defer_authorities()
        # What is there now stays for as long as the scheduler works; no collection needs to look through it again.
        gc.freeze()


class SchedulerBlock:
    """One block, from its beginning to its end.

    Parameters
    ----------
    number : int
        Which one, from 1 on.
    rank : Rank
        Rank 0, with the settings of this block.
    words : mapping
        What the user asked for, as `batchlet.node.inputs.for_agent` has made it.
    record : CoordinatorRecord
        Where the coordinator is.
    credentials : Credentials, optional
        The run's.
    coordinator : Coordinator
        It.
    """

    def __init__(
        self,
        number: int,
        rank: Rank,
        words: Mapping[str, Any],
        record: CoordinatorRecord,
        credentials: Credentials | None,
        coordinator: Coordinator,
    ) -> None:
        self._number = number
        self._rank = rank
        self._words = words
        self._record = record
        self._credentials = credentials
        self._coordinator = coordinator
        self._over = threading.Event()
        self._stop_serving: Callable[[], object] | None = None
        self._process: scheduler_request.SchedulerProcess | None = None

    def announce(self, launch: str) -> None:
        """Let the coordinator know what the block is like."""
        rank, settings = self._rank, self._rank.settings
        rules = Rules(
            participants=self._participants(),
            start_timeout=settings.start_timeout,
            patience=max(0.0, rank.deadline - time.monotonic()),
            stop_timeout=settings.stop_timeout,
            grace=settings.grace,
            scheduler_timeout=settings.scheduler_timeout,
            quorum=self._quorum,
        )
        self._coordinator.begin(rules, launch)

    def serve(self, problem: EndError | None, layout: Sequence[Any] | None) -> None:
        """Run the scheduler until the block is over.

        Parameters
        ----------
        problem : EndError, optional
            What is wrong with this rank.
        layout : sequence, optional
            Which ranks share this node, where the launcher's variables do not tell.
        """
        facts = self._facts()
        self._coordinator.tell(facts)
        error = problem or self._problem(facts)
        if error is not None:
            self._coordinator.fail(error)
            self._over.wait()
            return
        self._process = self._ask_agent(layout)
        if self._process is None:
            # The agent may have gone because the run has failed.
            if not self._over.is_set():
                self._serve_here()
            return
        self._process.watch(self._coordinator.scheduler_gone)
        try:
            self._over.wait()
        finally:
            self._process.end(self._rank.settings.stop_timeout)

    def end(self) -> None:
        """End the scheduler; may be called from any thread."""
        self._over.set()
        if self._stop_serving is not None:
            with contextlib.suppress(RuntimeError):
                self._stop_serving()

    def kill(self) -> None:
        """Leave nothing of the scheduler behind although its event loop does not end."""
        if self._process is not None:
            self._process.kill()
        else:
            from ..dask_backend.scratch import remove_scratch

            remove_scratch()

    def _participants(self) -> set[str]:
        """Name all whom the coordinator expects."""
        info = self._rank.info
        names = {str(rank) for rank in range(1, info.world_size)}
        if info.client_rank is None:
            names.add("client")
        return names | ({self._rank.participant} if self._rank.has_workers_beside else set())

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

    def _ask_agent(self, layout: Sequence[Any] | None) -> scheduler_request.SchedulerProcess | None:
        """Have the agent of this node run the scheduler, if there will be one and this process has no Dask yet."""
        rank = self._rank
        if "distributed" in sys.modules or not rank.settings.share_node or not rank.local_worker_ranks:
            return None
        return scheduler_request.ask(rank, self._words, self._record, layout, self._number)

    def _serve_here(self) -> None:
        import_scheduler()
        import dask.config

        from ..dask_backend import scheduler, tls
        from ..dask_backend.scratch import scratch

        _, config = inputs.unpack_options(self._words)
        if config is not None:
            dask.config.update(dask.config.config, config)
        rank, record = self._rank, self._record
        usual = rank.environment.scratch_directories(rank.environ)
        with scratch(rank.settings, usual, rank.info.run_id):
            token = rank.dashboard_token(record)
            security = tls.security_for(rank.settings, self._credentials)
            options = scheduler.options(rank.settings, rank.reachable_host(), security, token)
            node, workers = rank.info.node, rank.workers_expected
            asyncio.run(
                scheduler.serve(self._coordinator, options, token, rank.settings, node, workers, self._set_stop)
            )

    def _set_stop(self, stop: Callable[[], object]) -> None:
        self._stop_serving = stop
        if self._over.is_set():
            stop()

    def _quorum(self, planned: int) -> int | None:
        """How many of the planned workers are enough."""
        wanted = self._rank.settings.min_workers
        if wanted is None:
            return None
        return math.ceil(wanted * planned) if isinstance(wanted, float) else wanted
