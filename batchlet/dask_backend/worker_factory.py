"""Which class runs a worker, and with what options: the one place that knows kinds of workers.

A kind is a class of one of three shapes: Dask's Worker or one derived from it (a Nanny runs it in a process of its own), a
Nanny, or any other server with their life cycle, which starts by being awaited and ends by ``close()``.
``dask_cuda.CUDAWorker`` is of the third: it makes the Nannies itself, one for each GPU.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Generator, Mapping
from typing import Any, NoReturn

import dask.config
from distributed import Nanny, Worker
from distributed.core import Status

from .. import report
from ..cuda_workers import INSTALL
from ..errors import SettingsError
from ..network import LOOPBACK, in_url
from ..plan import WorkerPlan
from ..settings import Settings
from . import gpu_workers, rank_preload
from .logs import DASK_LOG_LEVEL, logging_is_the_users
from .worker_logs import VARIABLE, told
from .workers import DISKS, RankContext, Site

__all__ = ["worker_spec"]

# A worker always has an HTTP server, which gives metrics and more to everybody: here it answers nothing, to nobody.
_HTTP = "distributed.worker.http.routes"
# What a Nanny takes from the configuration as well: the environment of its worker.
_ENVIRON = "distributed.nanny.environ"


def worker_spec(
    plan: WorkerPlan,
    site: Site,
    settings: Settings,
    context: RankContext | None = None,
    tell: Callable[[str], object] = report.note,
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Choose what makes the server of a worker, and its keyword arguments.

    Parameters
    ----------
    plan : WorkerPlan
        Name, threads and memory of the worker.
    site : Site
        Where it lives.
    settings : Settings
        What the user asked for.
    context : RankContext, optional
        The rank that it belongs to, where that is another process than this one.
    tell : callable
        Says a line to the user, who need not hear it from every worker.

    Returns
    -------
    callable
        To be called with the scheduler's address and the keyword arguments. What it gives is awaited to start it, and has
        ``close()``.
    dict of str to object
        The keyword arguments: of ours those that the class takes, and all that the user has given.

    Raises
    ------
    SettingsError
        If the ``worker_class`` cannot be imported, or is no such class.
    """
    given = settings.worker_options
    cls = gpu_workers.cuda_worker(given, tell) if plan.worker_class else _load(settings.worker_class)
    config = {
        DISKS: dask.config.get(DISKS),
        **({} if settings.security is False else {_HTTP: []}),
        **(given.get("config") or {}),
    }
    options: dict[str, Any] = {
        "name": plan.name,
        "nthreads": plan.threads,
        "memory_limit": plan.memory,
        "host": in_url(site.host),
        "protocol": settings.protocol,
        "local_directory": os.path.join(site.local_directory, str(plan.name)),  # noqa: PTH118
        "security": site.security,
        "silence_logs": None if logging_is_the_users() else DASK_LOG_LEVEL(),
        "dashboard": False,
        **({} if settings.security is False else {"dashboard_address": f"{LOOPBACK}:0"}),
        **given,
        **(context.options(given) if context is not None else {}),
        "config": config,
    }
    rank_preload.bind(options, given, plan.cpus)
    gpu_workers.give_gpus(options, plan, given)
    if cls is None or issubclass(cls, (Worker, Nanny)) or gpu_workers.is_dask_cudas(cls):
        # Others may not take it; they have it where the rank has something to set (see `RankContext`).
        options |= rank_preload.preload(given)
    if site.logs and rank_preload.__name__ in options.get("preload", ()):
        options["env"] = {**(options.get("env") or {}), VARIABLE: told(site.logs, plan.name, plan.rank)}
    if cls is None or issubclass(cls, Worker):
        return Nanny, options if cls is None else {**options, "worker_class": cls}
    if issubclass(cls, Nanny):
        return cls, options
    return _for_another(cls, options, given, plan, tell)


def _for_another(
    cls: type, options: dict[str, Any], given: Mapping[str, Any], plan: WorkerPlan, tell: Callable[[str], object]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Do without what a class of another kind does not take, or settles itself for the Nannies that it makes."""
    parameters = inspect.signature(cls).parameters.values()
    named = {parameter.name for parameter in parameters}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    # What takes all passes it on, beside an environment and a configuration of its own: CUDAWorker gives each Nanny a GPU.
    ours = {"env", "config"} - named
    config = dict(options["config"]) if "config" in ours else {}
    if "env" in ours and options.get("env"):
        config[_ENVIRON] = {**dask.config.get(_ENVIRON), **options["env"]}
    if not any(options.get("preload_argv") or ()):
        # One for each module to preload, where such a class adds words for those that it preloads itself.
        ours.add("preload_argv")
    passed = {
        name: value
        for name, value in options.items()
        if name not in ours and (name in named or takes_all or name in given)
    }

    of_dask_cuda = gpu_workers.is_dask_cudas(cls)
    if of_dask_cuda:
        gpu_workers.for_dask_cuda(cls, passed, named)

    def make(address: str, **keywords: Any) -> Any:
        try:
            with dask.config.set(config), gpu_workers.only_own_visible(plan):
                server = cls(address, **keywords)
        except Exception as error:  # noqa: BLE001 - whatever the class cannot do
            try:
                if of_dask_cuda:
                    gpu_workers.instead(error, cls, given, tell, chosen=bool(plan.worker_class))
                    return Nanny(address, **options)
            except Exception as problem:  # noqa: BLE001 - the same, said better
                error = problem
            return _Server(_Unmade(error))
        if of_dask_cuda:
            gpu_workers.keep_to_cpus(server, options)
        gpu_workers.show_peers(server, plan)
        return _Server(server)

    return make, passed


class _Unmade:
    """Stands for a server that could not be made, and fails when it is to start: not before does LocalCluster expect that.

    Parameters
    ----------
    error : Exception
        Why it could not be made.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __await__(self) -> NoReturn:
        raise self._error

    def close(self) -> None:
        """Do nothing."""


class _Server:
    """A server of another kind, with what LocalCluster and our own code expect of a Nanny: a status, and a time-out to end in.

    Parameters
    ----------
    wrapped : object
        The server.
    """

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.status = Status.init

    def __await__(self) -> Generator[Any, None, _Server]:
        return self._start().__await__()

    async def _start(self) -> _Server:
        if self.status == Status.init:
            await self.wrapped
            self.status = Status.running
        return self

    async def close(self, timeout: float | None = None) -> None:
        if self.status == Status.closed:
            return
        takes = inspect.signature(self.wrapped.close).parameters
        self.status = Status.closing
        try:
            ending = self.wrapped.close(**({"timeout": timeout} if "timeout" in takes and timeout else {}))
            if inspect.isawaitable(ending):
                await ending
        finally:
            self.status = Status.closed


def _load(worker_class: str | type | None) -> type | None:
    if worker_class is None:
        return None
    cls: Any = worker_class
    if isinstance(worker_class, str):
        module, _, name = worker_class.rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            hint = f" {INSTALL}." if module.partition(".")[0] == "dask_cuda" else ""
            raise SettingsError(f'worker_class="{worker_class}" cannot be imported: {error}.{hint}') from None
    if not isinstance(cls, type) or not (issubclass(cls, (Worker, Nanny)) or _is_server(cls)):
        name = worker_class if isinstance(worker_class, str) else getattr(cls, "__qualname__", repr(cls))
        raise SettingsError(
            f'worker_class="{name}" is not a subclass of Dask\'s Worker or Nanny, nor a server that is started and ended as '
            "they are (`await server`, `server.close()`): give the dotted name of such a class."
        )
    return cls


def _is_server(cls: type) -> bool:
    return hasattr(cls, "__await__") and callable(getattr(cls, "close", None))
