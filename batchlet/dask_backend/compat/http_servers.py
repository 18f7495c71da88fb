"""Corners of the HTTP servers that Dask's scheduler and workers always have. Seen with distributed 2024.8.0 to 2026.8.0."""

from __future__ import annotations

import importlib
from typing import Any

from distributed import Worker
from tornado.routing import Router, RuleRouter

__all__ = ["DASHBOARD", "connect_dashboard", "deafen_workers", "http_address", "pages", "route"]

#: The module of the scheduler's dashboard; its import takes a second, as Bokeh's does.
DASHBOARD = "distributed.dashboard.scheduler"


def route(server: Any, router: Router) -> None:
    """Have a server's HTTP server ask this router, and no other, what to do with a request.

    Tornado's `HTTPServer` keeps what it was made with as ``request_callback``. Where it does not, nothing may be served at all:
    the HTTP server is stopped.

    Parameters
    ----------
    server : distributed.Scheduler or distributed.Worker
        The server.
    router : tornado.routing.Router
        What it is to ask.
    """
    http = getattr(server, "http_server", None)
    if http is None:
        return
    if hasattr(http, "request_callback"):
        http.request_callback = router
    else:
        http.stop()


def pages(scheduler: Any) -> Router:
    """Give the router of all pages that a scheduler has, ``http_application``; without it there are none."""
    return getattr(scheduler, "http_application", None) or RuleRouter([])


def connect_dashboard(scheduler: Any, prefix: str) -> None:
    """Add the dashboard to the pages of a scheduler that was made without.

    Dask does the same in `Scheduler.__init__`, by ``connect`` of the module `DASHBOARD`. Without it there is no dashboard.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Made with ``dashboard=False``.
    prefix : str
        What the paths of its pages begin with.
    """
    connect = getattr(importlib.import_module(DASHBOARD), "connect", None)
    if callable(connect):
        connect(scheduler.http_application, scheduler.http_server, scheduler, prefix=prefix)


def http_address(scheduler: Any) -> tuple[str, int] | None:
    """Give the address and port of a scheduler's HTTP server, which `start_http_server` notes there; `None` if it does not."""
    server = getattr(scheduler, "http_server", None)
    address, port = getattr(server, "address", None), getattr(server, "port", None)
    return None if address is None or port is None else (str(address), int(port))


def deafen_workers() -> None:
    """Have the HTTP servers of workers know no page, in this process, where the run is closed.

    Dask always starts them (`ServerNode.start_http_server`). Their routes can be left out by configuration, all but
    ``/sitemap.json``; options passed through bring them back. Without that method the configuration alone holds.
    """
    start = getattr(Worker, "start_http_server", None)
    if start is None or hasattr(start, "_batchlet"):
        return

    def start_deaf(self: Any, *positional: Any, **keywords: Any) -> None:
        start(self, *positional, **keywords)
        if self.security.require_encryption:
            route(self, RuleRouter([]))

    start_deaf._batchlet = True  # type: ignore[attr-defined]
    Worker.start_http_server = start_deaf
