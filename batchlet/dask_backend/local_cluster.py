"""Local mode: Dask's LocalCluster in this process, sized by the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from distributed import LocalCluster

from ..errors import EndError
from ..plan import Plan
from ..settings import Settings
from .dashboard import guard
from .processes import DASK_LOG_LEVEL, configure_logging, logging_is_the_users, report_deaths, start_failure
from .scheduler import options as scheduler_options
from .workers import Site, nanny_spec

__all__ = ["start", "start_async"]


def start(plan: Plan, settings: Settings, place: Site, token: str | None) -> Any:
    """Start a LocalCluster with exactly the workers of the plan, in a thread of its own.

    Parameters
    ----------
    plan : Plan
        Sizes the workers.
    settings : Settings
        What the user asked for.
    place : Site
        Where to listen and to spill, and the credentials.
    token : str, optional
        The secret part of the dashboard's address.

    Returns
    -------
    LocalCluster
        Running, with all workers joined.

    Raises
    ------
    InputError
        If Dask refuses an option that was passed through.
    """
    configure_logging()
    with _explained("scheduler"):
        cluster = _Cluster(token, **_options(settings, place, token))
    try:
        with _explained("worker"):
            _complete(cluster, plan, settings, place)
            cluster.sync(cluster._correct_state)
    except BaseException:
        cluster.close()
        raise
    report_deaths()
    return cluster


async def start_async(plan: Plan, settings: Settings, place: Site, token: str | None) -> Any:
    """Do as `start`, in the running event loop."""
    configure_logging()
    with _explained("scheduler"):
        cluster = await _Cluster(token, **_options(settings, place, token), asynchronous=True)
    try:
        with _explained("worker"):
            _complete(cluster, plan, settings, place)
            await cluster._correct_state()
    except BaseException:
        await cluster.close()
        raise
    report_deaths()
    return cluster


class _Cluster(LocalCluster):  # type: ignore[misc]
    """A LocalCluster whose scheduler answers HTTP with the token alone, from the moment that it listens."""

    def __init__(self, token: str | None, **keywords: Any) -> None:
        self._token = token
        super().__init__(**keywords)

    async def _start(self) -> None:
        made = self.scheduler_spec["cls"]
        self.scheduler_spec["cls"] = lambda **options: self._guarded(made(**options))
        await super()._start()

    def _guarded(self, scheduler: Any) -> Any:
        if self._token is not None:
            guard(scheduler, self._token)
        return scheduler


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except EndError:
        raise
    except Exception as error:
        raise start_failure(what, error) from error


def _options(settings: Settings, place: Site, token: str | None) -> dict[str, Any]:
    keywords = scheduler_options(settings, place.host, place.security, token)
    return {
        "n_workers": 0,
        "host": keywords.pop("host"),
        "protocol": keywords.pop("protocol"),
        "security": keywords.pop("security"),
        "scheduler_port": keywords.pop("port"),
        "dashboard_address": keywords.pop("dashboard_address"),
        "scheduler_kwargs": keywords,
        "silence_logs": False if logging_is_the_users() else DASK_LOG_LEVEL(),
    }


def _complete(cluster: Any, plan: Plan, settings: Settings, place: Site) -> None:
    # LocalCluster itself gives all workers the same threads; the plan may give some of them one more.
    for worker in plan.workers:
        cls, options = nanny_spec(worker, settings, place)
        cluster.worker_spec[worker.name] = {"cls": cls, "options": options}
