"""The dashboard: on the loopback only, under a path that only the run's owner knows, imported when it is first looked at.

Dask serves its pages to whoever connects. A random path alone would cross the network in the clear, and TLS with a
certificate that no browser trusts teaches people to click warnings away; so the server listens on the loopback of its node,
where ssh brings its owner, and every request without the secret gets the same "404 Not Found", whatever it asks for.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.routing import PathMatches, Router, Rule, RuleRouter
from tornado.web import Application, RequestHandler

from ..network import LOOPBACK
from .compat.http_servers import DASHBOARD, connect_dashboard, pages, route

__all__ = ["OPTIONS", "available", "guard"]

OPTIONS: dict[str, Any] = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}


def available() -> bool:
    """Whether the dashboard's packages are installed."""
    return importlib.util.find_spec("bokeh") is not None


def guard(scheduler: Any, token: str) -> None:
    """Let no request through to the scheduler's HTTP server but those for ``/<token>/...``.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Made with ``http_prefix=token`` and `OPTIONS`.
    token : str
        The secret part of the address.
    """
    gate = Rule(PathMatches(rf"/{token}(/.*)?"), _Late(scheduler, token))
    route(scheduler, RuleRouter([gate]))


class _Late(Router):  # type: ignore[misc]
    """Imports the dashboard in a thread when somebody first asks for it: that takes a second, which the start has not."""

    def __init__(self, scheduler: Any, token: str) -> None:
        self._scheduler = scheduler
        self._token = token
        self._thread: threading.Thread | None = None
        self._connected = False
        self._waiting = Application([(r".*", _Wait)])

    def find_handler(self, request: HTTPServerRequest, **keywords: Any) -> Any:
        if not self._connected and available():
            if self._thread is None:
                self._thread = threading.Thread(target=importlib.import_module, args=(DASHBOARD,), daemon=True)
                self._thread.start()
            if self._thread.is_alive():
                return self._waiting.find_handler(request, **keywords)
            connect_dashboard(self._scheduler, self._token)
            self._connected = True
        return pages(self._scheduler).find_handler(request, **keywords)


class _Wait(RequestHandler):  # type: ignore[misc]
    def get(self) -> None:
        self.set_header("Refresh", "1")
        self.finish("The dashboard is being loaded.")
