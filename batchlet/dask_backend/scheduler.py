"""Rank 0: Dask's Scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import dask.config
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from ..errors import EndError
from ..network import in_url
from ..node.sampling import sampling
from ..run_report.log_lines import Limits, Ways, for_report
from ..settings import Settings
from ..timeline import mark
from . import dashboard
from .compat.http_servers import http_address
from .compat.scheduler_state import let_all_leave, lose_worker
from .compat.tls_connections import limit_handshakes
from .log_tap import LogTap
from .logs import configure_logging, hush
from .processes import start_failure
from .scheduler_figures import SchedulerFigures
from .tuning import intervals

__all__ = ["Observer", "dashboard_place", "options", "serve"]

# Seconds between signs of life of the scheduler's event loop.
_BEAT = 0.5
# What may leave this process of its log.
_LOGS = Limits(200, 10.0, 50)


class Observer(Protocol):
    """Who is told how the scheduler is: the coordinator, in this process or another one.

    Attributes
    ----------
    on_stopping : callable
        To be called when the run is over, before the workers leave.
    on_gone : callable
        To be called with the names of workers that are lost.
    """

    on_stopping: Callable[[], object]
    on_gone: Callable[[set[str]], object]

    def beat(self) -> None:
        """Note that the scheduler's event loop runs."""

    def worker_joined(self, name: object) -> None:
        """Note that the scheduler knows a worker."""

    def for_report(self, told: Sequence[Sequence[Any]]) -> None:
        """Note what is known of workers and tasks, for the report."""

    def scheduler_started(self, **start: Any) -> None:
        """Note where the scheduler listens."""

    def fail(self, error: EndError) -> None:
        """End the run."""


class _Join(SchedulerPlugin):  # type: ignore[misc]
    """Tells the coordinator which workers the scheduler knows."""

    name = "batchlet-join"

    def __init__(self, coordinator: Observer) -> None:
        self._coordinator = coordinator

    def add_worker(self, scheduler: Any, worker: str) -> None:
        # A server that makes several workers ("2-0", "2-1") has come with the first; planned ones are never called so.
        name = scheduler.workers[worker].name
        self._coordinator.worker_joined(name.removesuffix("-0") if isinstance(name, str) else name)


def options(settings: Settings, host: str, security: Any, token: str | None) -> dict[str, Any]:
    """Give the keyword arguments of Dask's Scheduler.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    host : str
        Address to listen on.
    security : distributed.Security
        The run's credentials.
    token : str, optional
        The secret part of the dashboard's address; `None` serves it openly.
    """
    if token is None:
        # Dask divides a text at each colon.
        guarded: dict[str, Any] = {"dashboard_address": f"{host}:0" if host == in_url(host) else [(host, 0)]}
    else:
        guarded = {**dashboard.OPTIONS, "http_prefix": token}
    protocol = settings.protocol or ("tls" if security.require_encryption else None)
    common = {"host": in_url(host), "port": 0, "protocol": protocol, "security": security}
    return {**common, **guarded, **settings.scheduler_options}


async def serve(
    coordinator: Observer,
    keywords: Mapping[str, Any],
    token: str | None,
    settings: Settings,
    node: str,
    workers: int,
    on_stop: Callable[[Callable[[], object]], None],
) -> None:
    """Run the scheduler until the run is over.

    Parameters
    ----------
    coordinator : Observer
        Is told the address and the workers.
    keywords : mapping of str to object
        See `options`.
    token : str, optional
        The secret part of the dashboard's address.
    settings : Settings
        What the user asked for.
    node : str
        Name of this node.
    workers : int
        About how many will come.
    on_stop : callable
        Gets a function that ends this coroutine; it may be called from any thread.
    """
    configure_logging()
    ways = Ways(lambda *said: coordinator.for_report(for_report(*said)), _LOGS)
    tap = LogTap(ways.put, node, lambda _: ("scheduler", 0), refuses=ways.refuses)
    try:
        await _serve(coordinator, keywords, token, settings, workers, on_stop, ways)
    finally:
        tap.close()
        ways.drain()


async def _serve(
    coordinator: Observer,
    keywords: Mapping[str, Any],
    token: str | None,
    settings: Settings,
    workers: int,
    on_stop: Callable[[Callable[[], object]], None],
    logs: Ways,
) -> None:
    # This process serves nothing else.
    limit_handshakes()
    mark("Dask imported")
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    on_stop(lambda: loop.call_soon_threadsafe(over.set))
    try:
        with dask.config.set(intervals(total=workers)):
            scheduler = Scheduler(**keywords)
        if token is not None:
            dashboard.guard(scheduler, token)
        scheduler.add_plugin(_Join(coordinator))
        figures = SchedulerFigures(scheduler)
        scheduler.add_plugin(figures)
        await scheduler
    except Exception as error:  # noqa: BLE001
        coordinator.fail(start_failure("scheduler", error))
        await over.wait()
        return
    mark("scheduler listens")

    def stopping() -> None:
        hush()
        loop.call_soon_threadsafe(last_words)

    def last_words() -> None:
        figures.over = True
        coordinator.for_report(figures.told())
        let_all_leave(scheduler)

    # What the workers leave behind when they go is no news from here on.
    coordinator.on_stopping = stopping
    coordinator.on_gone = lambda names: loop.call_soon_threadsafe(_forget, scheduler, names)
    coordinator.scheduler_started(address=scheduler.address, dashboard=dashboard_place(scheduler))
    work = [
        asyncio.create_task(_beat(coordinator, logs)),
        asyncio.create_task(sampling(figures.told, coordinator.for_report, 1)),
    ]
    await over.wait()
    for task in work:
        task.cancel()
    hush()
    await asyncio.wait_for(scheduler.close(), settings.stop_timeout)


def dashboard_place(scheduler: Any) -> tuple[str, int] | None:
    """Give the address and port of the scheduler's HTTP server; `None` where no dashboard can be shown."""
    if not dashboard.available():
        return None
    return http_address(scheduler)


def _forget(scheduler: Any, names: set[str]) -> None:
    """Remove workers whose host is lost; Dask itself finds out half a minute later, and their tasks wait for that."""
    for address in [state.address for state in scheduler.workers.values() if _planned(state.name, names)]:
        lose_worker(scheduler, address)


def _planned(name: object, names: set[str]) -> bool:
    """Whether a worker is one of these, or one of several that a server of one of these names has made ("2-0", "2-1")."""
    return str(name) in names or str(name).rpartition("-")[0] in names


async def _beat(coordinator: Observer, logs: Ways) -> None:
    while True:
        coordinator.beat()
        logs.tick()
        await asyncio.sleep(_BEAT)
