"""The account of a cluster of jobs: what its nodes, its scheduler and its keeper tell comes into a report, as with a run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from .. import report
from ..client.telling import about, ending
from ..dask_backend.compat.scheduler_state import let_all_leave
from ..dask_backend.scheduler_figures import SchedulerFigures
from ..node.sampling import sampling
from ..run_report.book import Book
from ..run_report.log_lines import LogStore
from ..settings import Settings
from ..versions import versions
from . import hub as h

__all__ = ["ClusterAccount"]


class ClusterAccount:
    """The account of one cluster, whose process has scheduler and client.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    run_id : str
        Name of the cluster.
    system : str
        The batch system.
    others : callable
        Gets what the hub hears and is not for the report alone.
    """

    def __init__(self, settings: Settings, run_id: str, system: str, others: Callable[[h.Event], object]) -> None:
        self._settings = settings
        self._others = others
        self._book = book = Book(versions())
        book.about(id=run_id, mode="jobs", job=system, ranks=1)
        self._ready = False
        self._scheduler: Any = None
        self._figures: SchedulerFigures | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._performance = contextlib.ExitStack()
        self._error: BaseException | None = None

    def begin(self, scheduler: Any) -> None:
        """Begin: the scheduler runs, in the event loop of this moment."""
        self._book.take(about(self._settings))
        self._book.began()
        self._scheduler = scheduler
        self._figures = figures = SchedulerFigures(scheduler)
        scheduler.add_plugin(figures)
        self._sampling = asyncio.get_running_loop().create_task(sampling(figures.told, self._book.take, 1))

    @property
    def logs(self) -> LogStore:
        """What workers, their hosts and the scheduler have logged."""
        return self._book.logs

    def say(self, text: str) -> None:
        """Tell the user a line, which the report has too."""
        report.note(text)
        self._book.event("note", text)

    def heard(self, event: h.Event) -> None:
        """Take in what the hub hears of nodes, in its thread; what is not for the report alone goes on."""
        if isinstance(event, h.Noted):
            # A node whose words make no sense is none of the cluster's worries.
            with contextlib.suppress(TypeError, ValueError, KeyError):
                self._book.take(event.told, event.node)
            return
        if isinstance(event, h.Serves) and not self._ready:
            self._ready = True
            self._book.take([("ready", {})])
        self._others(event)

    # The block

    def enter(self, cluster: Any) -> None:
        """Note that the user's code enters a ``with`` block."""
        path = self._settings.path("performance_report")
        if path is not None and not cluster.asynchronous:
            from ..client.performance import Place, performance_report

            start = Place(cluster.scheduler_address, cluster.security)
            self._performance.enter_context(performance_report(start, path, self._settings.stop_timeout))

    def leave(self, error: BaseException | None) -> None:
        """Note how the user's code has left it."""
        self._error = error
        self._performance.close()

    def end(self) -> None:
        """Look for the last time, while workers are there; in the event loop."""
        if self._sampling is not None and self._figures is not None:
            self._sampling.cancel()
            self._sampling = None
            self._figures.over = True
            self._book.take(self._figures.told())
            let_all_leave(self._scheduler)
            self._book.take(ending(self._error))

    def close(self) -> None:
        """Write the report for the last time; takes `stop_timeout` at most."""
        self._book.close(self._settings.stop_timeout)
