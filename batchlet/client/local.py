"""The backend *local*: Dask's LocalCluster in this process, sized by the plan."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import open_files, report, timeline
from ..environments.batch_jobs import in_job
from ..errors import EndError, NetworkError
from ..network import LOOPBACK
from ..node.rank import Rank
from ..node.sampling import planned
from ..rendezvous import FileRendezvous
from ..run_report.book import Book
from ..run_report.log_lines import LogLine, for_report
from ..security import Credentials, dashboard_token
from ..versions import versions
from . import telling
from .backend import News, Outcome, StartInfo
from .porch import Porch

__all__ = ["LocalBackend"]

# Seconds for the report of a process that is about to be ended the hard way.
_MOMENT = 2.0
# The book of this process, by its id: all its blocks are one run.
_books: dict[int, Book] = {}


def _book(rank: Rank) -> Book:
    """Give the book of this process; the first block gives it its name."""
    found = _books.get(os.getpid())
    if found is None:
        _books.clear()
        found = _books[os.getpid()] = Book(versions())
        found.about(id=rank.info.run_id, mode=rank.info.mode, job=rank.info.job, ranks=rank.info.world_size)
    return found


class LocalBackend:
    """See `batchlet.client.backend.Backend`.

    Parameters
    ----------
    rank : Rank
        This process.

    Raises
    ------
    PlanError
        If more was asked for than there is.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._plan = rank.plan()
        self._stack = contextlib.ExitStack()
        self._cluster: Any = None
        self._scratch: str | None = None
        self._notes: FileRendezvous | None = None
        self._book: Book | None = None
        self._last_look: Callable[[], object] = lambda: None
        self._porch: Porch | None = None

    @property
    def rank(self) -> Rank:
        """See the protocol."""
        return self._rank

    def check(self) -> None:
        """Do nothing: whatever could be wrong shows in a moment."""

    def start(self, check: Callable[[], None]) -> StartInfo:
        """See the protocol."""
        check()
        from ..dask_backend import local_cluster, processes, scratch, tls, worker_logs, workers
        from ..dask_backend.compat.multiprocessing_internals import fork_server_of_this_block
        from ..dask_backend.scheduler import dashboard_place

        timeline.mark("Dask imported")
        rank, plan, settings = self._rank, self._plan, self._rank.settings
        wanted = settings.security
        credentials = Credentials.generate() if wanted is True or (wanted and settings.attach) else None
        security = tls.security_for(settings, credentials)
        secret = secrets.token_hex(32)
        token = dashboard_token(secret) if wanted is not False else None
        enter = self._stack.enter_context
        self._scratch = enter(
            scratch.scratch(settings, rank.environment.scratch_directories(rank.environ), rank.info.run_id)
        )
        enter(fork_server_of_this_block())
        enter(open_files.for_local(len(plan.workers)))
        enter(processes.hidden_main())
        enter(workers.configured())
        host = self._host()
        self._book = book = _book(rank)
        book.take(telling.about(settings, rank.environ))
        book.began()
        book.take(planned(plan, plan.workers))
        logs = worker_logs.NodeLogs(
            lambda *said: book.take(for_report(*said)),
            rank.info.node,
            ranks=False,
            who=worker_logs.all_in_one,
            warn=False,
        )
        enter(contextlib.closing(logs))
        site = workers.Site(host, self._scratch, security, logs.path)
        for note in plan.notes:
            report.note(note)
        self._cluster = local_cluster.start(plan, settings, site, token)
        self._cluster.loop.add_callback(logs.listen)
        book.take([("ready", {})])
        self._last_look = local_cluster.sample(self._cluster, rank.info.node, book.take)
        dashboard = dashboard_place(self._cluster.scheduler)
        attached = False
        if settings.attach:
            porch = Porch(rank, host, secret, credentials)
            self._stack.callback(porch.close)
            attached = porch.open(self._cluster.scheduler_address, dashboard)
            self._porch = porch
        threads, memory = [worker.threads for worker in plan.workers], [worker.memory for worker in plan.workers]
        return StartInfo(
            address=self._cluster.scheduler_address,
            dashboard=dashboard,
            token=token,
            node=rank.info.node,
            security=security,
            plan=plan,
            workers=len(plan.workers),
            nodes=1,
            threads=(min(threads), max(threads)),
            memory=(min(memory), max(memory)),
            run_id=rank.info.run_id if attached else None,
        )

    def _host(self) -> str:
        """Where to listen: in a job of a batch system whoever attaches does so from another machine."""
        rank, settings = self._rank, self._rank.settings
        if settings.interface:
            return rank.reachable_host()
        if settings.attach and in_job(rank.environ):
            with contextlib.suppress(NetworkError):
                return rank.reachable_host()
        return LOOPBACK

    def for_report(self, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """See the protocol."""
        if self._book is not None:
            self._book.take(told)

    def listen(self, news: News) -> None:
        """Do nothing: signals come to this process itself, and its scheduler lives as long as it does."""

    @property
    def connected(self) -> bool:
        """See the protocol."""
        return False

    def root_cause(self, seconds: float = 0.0) -> EndError | None:  # noqa: ARG002
        """See the protocol; there is nobody else who could fail."""
        return None

    def logs(self) -> tuple[list[LogLine], int]:
        """See the protocol."""
        kept = self._book.logs if self._book is not None else None
        return (kept.lines(), kept.dropped) if kept is not None else ([], 0)

    def note(self, text: str) -> Path:
        """See the protocol. In the scratch, which is removed even after a SIGKILL: there is no rank 0 to do it."""
        self._notes = self._rank.notes(None, self._scratch)
        return self._notes.leave_note(text)

    def stop(self) -> Outcome:
        """See the protocol."""
        self._last_look()
        if self._porch is not None:
            # Whoever looks on leaves before the cluster goes.
            self._porch.close()
        from ..dask_backend.logs import hushed

        # A worker that is busy beyond its time is ended the hard way, and that is neither a loss nor news.
        with hushed():
            self._cluster.close()
        return Outcome(use=self._book.use() if self._book is not None else {})

    def let_go(self) -> None:
        """Write what there is to say of the run: its workers end with this process."""
        if self._book is not None:
            self._book.close(_MOMENT)

    def close(self) -> None:
        """See the protocol."""
        if self._notes is not None:
            self._notes.remove_note()
        self._stack.close()
        if self._book is not None:
            self._book.close(self._rank.settings.stop_timeout)

    def give_up(self, error: EndError) -> bool:  # noqa: ARG002
        """See the protocol. A signal may come when the cluster is there and the user's code not yet."""
        if self._cluster is not None:
            self._cluster.close()
        self.close()
        return False

    def abandon(self, code: int) -> None:
        """Do nothing: nobody waits."""
