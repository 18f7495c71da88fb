"""Corners of Dask: its clients, nannies, clusters and configuration. Seen with distributed 2024.8.0 to 2026.8.0."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dask.config
import distributed
import distributed.core
import distributed.utils
from distributed import Client, LocalCluster, Nanny, Worker
from distributed.versions import get_versions

__all__ = [
    "WORKER_PROCESS",
    "ObservedCluster",
    "altered_clients",
    "child_processes",
    "correct_state",
    "give_up_start",
    "is_disconnected",
    "keep_port",
    "keep_preload",
    "living",
    "mp_context",
    "nannies_of",
    "off_the_path",
    "parse_configuration_once",
    "quiet_if",
    "stay_ended",
    "warm_up",
]

#: What Dask's Nanny calls the process of its worker (seen in `WorkerProcess.start`). If it is called otherwise, such a process
#: runs the user's main module again, as Dask without Batchlet has it do.
WORKER_PROCESS = "Dask Worker process (from Nanny)"

# Seconds for a killed process to be gone.
_KILLED = 5.0


def living(kind: type) -> list[Any]:
    """Name the living clients, workers, nannies or clusters of this process.

    Dask has them in a weak set, ``_instances``, of each class. Without it there are none: clients that the user has left open
    are then closed by the end of the process.
    """
    return list(getattr(kind, "_instances", ()))


def quiet_if(client: Any, condition: Callable[[], bool]) -> None:
    """Have a client not show what tasks print and warn (``distributed.print``, ``distributed.warn``) while a condition holds.

    Which events a client shows, and how, is in ``Client._default_event_handlers``. Without it two clients show it twice.
    """

    def unless(handler: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda event: None if condition() else handler(event)

    for topic, handler in getattr(Client, "_default_event_handlers", {}).items():
        client.subscribe_topic(topic, unless(handler))


def is_disconnected(client: Any) -> bool:
    """Whether a client's connection to its scheduler is broken.

    ``client.status`` stays "running" while it tries to connect again; the connection is ``client.scheduler_comm.comm``. Without
    that nothing is known to be broken, and the loss of the scheduler comes to the user's code half a second later.
    """
    batched = getattr(client, "scheduler_comm", None)
    if batched is None:
        return hasattr(client, "scheduler_comm")
    closed = getattr(getattr(batched, "comm", None), "closed", None)
    return bool(closed()) if callable(closed) else False


@contextlib.contextmanager
def altered_clients(alter: Callable[[Mapping[str, Any], frozenset[str]], Mapping[str, Any]]) -> Iterator[None]:
    """Have all clients of this process made with other arguments than those that they are given.

    Puts a function in the place of ``Client.__init__``, which takes all its arguments by their names, and passes those that it
    has no name for (``**kwargs``) on to a `LocalCluster`. A client class of others that does not call it is left alone.

    Parameters
    ----------
    alter : callable
        From the arguments that are given, and the names of those that a client has itself, to those that it gets.
    """
    original = Client.__init__
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, parameter in inspect.signature(original).parameters.items() if parameter.kind in kinds][1:]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **keywords: Any) -> None:
        positions = names[: len(args)]
        if len(args) > len(names) or keywords.keys() & set(positions):
            original(self, *args, **keywords)  # raises, as Python has it
            return
        original(self, **alter({**dict(zip(positions, args, strict=False)), **keywords}, frozenset(names)))

    Client.__init__ = init
    try:
        yield
    finally:
        Client.__init__ = original


def nannies_of(server: Any) -> list[Any]:
    """Name the Nannies by which a server runs its workers: itself, or those that it keeps in its attributes.

    ``dask_cuda.CUDAWorker`` has a list of them, called ``nannies``; what it is called does not matter here.
    """
    server = getattr(server, "wrapped", server)
    if isinstance(server, Nanny):
        return [server]
    found: list[Any] = []
    for value in getattr(server, "__dict__", {}).values():
        members = (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else [value]
        )
        found += [member for member in members if isinstance(member, Nanny) and member not in found]
    return found


def worker_plugins_of(server: Any) -> list[Any]:
    """Name the plugins that a server gives to its workers: ``worker_kwargs["plugins"]`` of its Nannies.

    Without them dask-cuda binds a worker to all CPUs near its GPU, others' among them.
    """
    return [
        plugin
        for nanny in nannies_of(server)
        for plugin in (getattr(nanny, "worker_kwargs", None) or {}).get("plugins") or ()
    ]


def child_processes(server: Any) -> list[Any]:
    """Name the processes of a server's workers: what has ``pid``, ``is_alive()`` and ``await kill()``.

    A Nanny has its `WorkerProcess` as ``process``, and that an `AsyncProcess` as ``process``. Without these a worker that does
    not come back in time is not killed by us, and its end is reported as a death.
    """
    holders = [getattr(nanny, "process", None) for nanny in nannies_of(server)]
    processes = [getattr(holder, "process", None) for holder in holders]
    return [process for process in processes if getattr(process, "pid", None)]


def keep_port(nanny: Any) -> int | None:
    """Have a worker come back under its address when its process is started again; gives its port, if that is known.

    A Nanny starts it with ``process.worker_kwargs``, where ``port`` is 0 or what the user has given: those are tried, as
    ``distributed.utils.parse_ports`` reads them, where somebody else has taken the port meanwhile. Without them it comes back
    at another address, and a task that was submitted for the address before waits for ever.
    """
    keywords = getattr(getattr(nanny, "process", None), "worker_kwargs", None)
    address = getattr(nanny, "worker_address", None)
    if not isinstance(keywords, dict) or not address:
        return None
    port = int(address.rsplit(":", 1)[1])
    others = distributed.utils.parse_ports(keywords.get("port") or 0)
    keywords["port"] = [port, *(other for other in others if other != port)]
    return port


def stay_ended(server: Any, reason: str) -> None:
    """Tell the Nannies of a server that what ends now is not to be started again.

    ``Nanny.close_gracefully`` says so. Without it Nannies may start again what dies while they are closed, and end it.
    """
    for nanny in nannies_of(server):
        say = getattr(nanny, "close_gracefully", None)
        if callable(say):
            say(reason=reason)


async def give_up_start(server: Any) -> None:
    """Kill the workers of a server that are not up yet, so that its Nannies can be closed at once.

    ``WorkerProcess.kill`` waits for the event ``running`` while the status is "starting". Before Dask 2026 nothing set it for a
    start that was cancelled, and a close took as long as its time limit.
    """
    for nanny in nannies_of(server):
        holder = getattr(nanny, "process", None)
        if holder is None or getattr(holder, "status", None) is not distributed.core.Status.starting:
            continue
        with contextlib.suppress(Exception):
            await holder.process.kill()
            await holder.process.join(_KILLED)
        if holder.status is distributed.core.Status.starting:
            holder.status = distributed.core.Status.failed
        holder.running.set()


def off_the_path(server: Any, variable: str) -> None:
    """Take the directories of Nannies off ``sys.path``, and name each of them to its own worker alone.

    Every `distributed.core.Server` puts its ``local_directory`` there, and all workers of the process would inherit them all:
    each import would look through all of them. A worker imports from that of its Nanny what ``UploadDirectory`` brings. Without
    ``Nanny.env``, which becomes the environment of its worker, that is not found.

    Parameters
    ----------
    server : Nanny or other server
        Not started yet.
    variable : str
        By which the worker is told.
    """
    for nanny in nannies_of(server):
        directory = getattr(nanny, "local_directory", None)
        if directory not in sys.path:
            continue
        sys.path.remove(directory)
        if isinstance(getattr(nanny, "env", None), dict):
            nanny.env[variable] = directory


def correct_state(cluster: Any) -> None:
    """Have a cluster start the workers of its ``worker_spec`` that it does not have yet, and wait for them.

    ``SpecCluster._correct_state``; ``scale`` does the same without waiting, which is the way if it is gone.
    """
    correct = getattr(cluster, "_correct_state", None)
    if callable(correct):
        cluster.sync(correct)
    else:
        cluster.scale(len(cluster.worker_spec))
        cluster.wait_for_workers(len(cluster.worker_spec))


class ObservedCluster(LocalCluster):  # type: ignore[misc]
    """A LocalCluster that shows its scheduler before it listens.

    It makes the scheduler from ``scheduler_spec`` in ``_start`` (as all clusters do that are a `SpecCluster`). If that is gone,
    the scheduler is shown once it runs.

    Parameters
    ----------
    on_scheduler : callable
        Is called with the scheduler.
    keywords
        Of LocalCluster.
    """

    def __init__(self, on_scheduler: Callable[[Any], object], **keywords: Any) -> None:
        self._on_scheduler = on_scheduler
        self._shown = False
        super().__init__(**keywords)
        if not self._shown:
            on_scheduler(self.scheduler)

    async def _start(self) -> None:
        made = (getattr(self, "scheduler_spec", None) or {}).get("cls")
        if callable(made) and not self._shown:

            def make(**options: Any) -> Any:
                scheduler = made(**options)
                self._shown = True
                self._on_scheduler(scheduler)
                return scheduler

            self.scheduler_spec["cls"] = make
        await super()._start()


def mp_context() -> Any:
    """Give the context of multiprocessing that Dask's Nannies start their workers with.

    ``distributed.utils.get_mp_context`` follows ``distributed.worker.multiprocessing-method``, as this does without it.
    """
    get = getattr(distributed.utils, "get_mp_context", None)
    return (
        get()
        if callable(get)
        else multiprocessing.get_context(dask.config.get("distributed.worker.multiprocessing-method"))
    )


def keep_preload() -> None:
    """Keep Dask from replacing our list of what a fork server imports first by its own.

    It does so once in a process, in ``get_mp_context``, and imports numpy and pandas into that process for it; the flag says
    that it was done. Without the flag the start takes longer, and workers import more.
    """
    if hasattr(distributed.utils, "_forkserver_preload_set"):
        distributed.utils._forkserver_preload_set = True


def parse_configuration_once() -> None:
    """Have each of Dask's configuration files parsed once, for this process and all that are forked from it.

    Every worker reads them anew, by ``dask.config._load_config_file``. Without it each parses them for itself.
    """
    if hasattr(dask.config, "_load_config_file"):
        dask.config._load_config_file = functools.cache(dask.config._load_config_file)
        dask.config.collect()


# What Dask imports while a worker starts (distributed 2026.8). A name that is missing costs time, and nothing else.
_LATE_IMPORTS = (
    "email.policy",
    "importlib_metadata._adapters",
    "multiprocessing.synchronize",
    "tornado.platform.asyncio",
)


def warm_up(directory: str) -> None:
    """Do once, in a running event loop, what every worker would do while it starts; nothing of it is ever started.

    It makes a `Worker`, imports what Dask imports late, and looks up the versions of packages, which Dask keeps. If one of
    these is gone, each worker does it for itself.

    Parameters
    ----------
    directory : str
        Where files may be made and left.
    """
    for name in _LATE_IMPORTS:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    get_versions()
    # Until 2024.8 at least, a worker has a thread for its profile as soon as it is made.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        Worker("tcp://127.0.0.1:1", nthreads=1, local_directory=directory)
