"""Local mode: Dask's LocalCluster in this process, sized by the plan."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from distributed import LocalCluster

from .. import report
from ..errors import EndError
from ..node.sampling import Sampler, death, sampling
from ..plan import Plan
from ..settings import Settings
from . import gpu_workers, rank_preload
from .compat.dask_internals import ObservedCluster, correct_state, off_the_path
from .compat.figures import pids_of
from .dashboard import guard
from .logs import DASK_LOG_LEVEL, configure_logging, hear_deaths, logging_is_the_users, report_deaths
from .processes import start_failure
from .scheduler import options as scheduler_options
from .scheduler_figures import SchedulerFigures
from .worker_factory import worker_spec
from .workers import Site, keep_ports

__all__ = ["sample", "start"]

# Seconds for a last look at an event loop that may be busy.
_MOMENT = 2.0


def start(plan: Plan, settings: Settings, site: Site, token: str | None) -> LocalCluster:
    """Start a LocalCluster with exactly the workers of the plan; its event loop is in a thread of its own.

    Blocks until all workers have joined, and must not be called in a running event loop.

    Parameters
    ----------
    plan : Plan
        Sizes the workers.
    settings : Settings
        What the user asked for.
    site : Site
        Where to listen and to spill, and the credentials.
    token : str, optional
        The secret part of the dashboard's address.

    Returns
    -------
    LocalCluster
        Running, with all workers joined; `close` ends it, in any thread.

    Raises
    ------
    InputError
        If Dask refuses an option that was passed through.
    """
    configure_logging()

    def show(scheduler: Any) -> None:
        # It answers HTTP with the token alone, from the moment that it listens.
        if token is not None:
            guard(scheduler, token)

    with _explained("scheduler"):
        cluster = ObservedCluster(show, **_options(settings, site, token))
    try:
        with _explained("worker"):
            # LocalCluster itself gives all workers the same threads; the plan may give some of them one more.
            tell = functools.cache(report.note)
            gpu_workers.spill_here(settings.worker_options, plan.workers)
            for worker in plan.workers:
                make, options = worker_spec(worker, site, settings, tell=tell)
                cluster.worker_spec[worker.name] = {"cls": functools.partial(_made, make), "options": options}
            correct_state(cluster)
        keep_ports(list(cluster.workers.values()))
    except BaseException:
        cluster.close()
        raise
    report_deaths()
    return cluster


def sample(cluster: Any, node: str, tell: Callable[[Any], object]) -> Callable[[], object]:
    """Look at the workers and the scheduler of a cluster until it ends, in its event loop.

    Parameters
    ----------
    cluster : SpecCluster
        Running.
    node : str
        Name of this host.
    tell : callable
        Is told what was seen; see `batchlet.run_report.told.Told.take`.

    Returns
    -------
    callable
        Looks for the last time; to be called before the cluster is closed.
    """
    figures = SchedulerFigures(cluster.scheduler)

    def processes() -> dict[str, int]:
        return pids_of(list(cluster.workers.values()))

    sampler = Sampler(node, processes)

    def look() -> Any:
        return [*figures.told(), *sampler.sample()]

    def died(pid: int, text: str) -> None:
        sampler.died(pid)
        tell([death(text, node)])

    hear_no_more = hear_deaths(died)

    async def begin() -> asyncio.Task[None]:
        cluster.scheduler.add_plugin(figures)
        return asyncio.get_running_loop().create_task(sampling(look, tell, 1))

    async def end() -> None:
        task.cancel()
        figures.over = True
        tell(look())

    task = cluster.sync(begin)

    def last_look() -> None:
        hear_no_more()
        with contextlib.suppress(Exception):
            cluster.sync(end, callback_timeout=_MOMENT)

    return last_look


def _made(make: Callable[..., Any], address: str, **options: Any) -> Any:
    server = make(address, **options)
    off_the_path(server, rank_preload.UPLOADS)
    return server


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except EndError:
        raise
    except Exception as error:
        raise start_failure(what, error) from error


def _options(settings: Settings, site: Site, token: str | None) -> dict[str, Any]:
    keywords = scheduler_options(settings, site.host, site.security, token)
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
