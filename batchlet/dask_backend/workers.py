"""Workers: Dask's Nannies, or servers like them, that start, keep their ports and end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.config
from distributed import Nanny, rpc

from ..node.wait import AGENT_ENVIRONMENT
from . import rank_preload
from .compat import dask_internals, scheduler_state
from .compat.multiprocessing_internals import true_exit_codes
from .compat.tls_connections import limited_handshakes
from .logs import expect_death
from .tuning import intervals

__all__ = ["DISKS", "RankContext", "Site", "at_port", "close", "configured", "keep_ports", "retire", "start"]

_TERMINATE = 2.0
_STARTS = 3
_NEWS = 0.2
#: Nobody looks at what each Nanny knows of the node's disks, and reading it is most of what its monitor does.
DISKS = "distributed.admin.system-monitor.disk"
# What a Nanny gives a worker's environment, and what Dask itself has it give there to the allocator.
_ENVIRON = "distributed.nanny.pre-spawn-environ"
_TRIM, _DASKS_TRIM = "MALLOC_TRIM_THRESHOLD_", "65536"


@dataclass(frozen=True)
class Site:
    """Where a process hosts workers.

    Parameters
    ----------
    host : str
        Address to listen on.
    local_directory : str
        Scratch for spilled data.
    security : distributed.Security
        The run's credentials.
    logs : str
        Where workers say what is to be kept of their logs; see `batchlet.dask_backend.worker_logs`.
    """

    host: str
    local_directory: str
    security: Any
    logs: str = ""


@dataclass(frozen=True)
class RankContext:
    """The rank that a worker belongs to, where that is another process than the one that hosts it.

    Parameters
    ----------
    environ : mapping of str to str
        The rank's environment, which is to be the worker's.
    cpus : tuple of int
        The CPUs that the rank is bound to.
    host_cpus : tuple of int
        The CPUs that the worker would inherit.
    """

    environ: Mapping[str, str]
    cpus: tuple[int, ...]
    host_cpus: tuple[int, ...]

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Give the Nanny's keyword arguments for it, on top of those `given` by the user."""
        place = {
            "cpus": self.cpus if self.cpus != self.host_cpus else (),
            "unset": [name for name in os.environ if name not in self.environ and name not in AGENT_ENVIRONMENT],
        }
        options: dict[str, Any] = {"env": {**self.environ, **(given.get("env") or {})}}
        if any(place.values()):
            options["env"][rank_preload.VARIABLE] = json.dumps(place)
            options |= rank_preload.preload(given)
        return options


@contextlib.contextmanager
def configured(workers: int = 1, total: int = 1) -> Iterator[None]:
    """Configure Dask in a process that starts about so many workers, of so many in the cluster.

    Workers may start processes themselves (``daemon``), and are forked from one process that has imported Dask, unless the
    user has chosen another way.
    """
    # A Nanny writes these into the environment of its own process too.
    touched = {*dask.config.get(_ENVIRON), *AGENT_ENVIRONMENT}
    before = {name: os.environ.get(name) for name in touched}
    try:
        with dask.config.set(_settings(workers, total)), true_exit_codes(), limited_handshakes():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def reconfigure(config: Mapping[str, Any], workers: int, total: int) -> None:
    """Take over another configuration of Dask in a process that is `configured`, for the workers that it starts from now on.

    Parameters
    ----------
    config : mapping
        All of it, the user's and Dask's defaults.
    workers, total : int
        As in `configured`.
    """
    dask.config.update(dask.config.config, config)
    dask.config.set(_settings(workers, total))


def _settings(workers: int, total: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "distributed.worker.daemon": False,
        # Each worker would look for what dead ones have left, with three lock files. Its directory is its own; what it leaves
        # there its Nanny removes, and all of it whoever made the scratch.
        "distributed.worker.use-file-locking": False,
        **intervals(workers, total),
    }
    if str(dask.config.get(_ENVIRON).get(_TRIM)) == _DASKS_TRIM:
        config |= {
            f"{_ENVIRON}.{name}": value for name, value in AGENT_ENVIRONMENT.items() if name.startswith("MALLOC_")
        }
    if importlib.util.find_spec("gilknocker") is None:
        # Each Nanny and each worker would look for it, through all of the path.
        config["distributed.admin.system-monitor.gil.enabled"] = False
    if dask.config.get("distributed.worker.multiprocessing-method") == "spawn":
        config["distributed.worker.multiprocessing-method"] = "forkserver"
        multiprocessing.set_forkserver_preload(["batchlet.dask_backend.worker_process"])
        dask_internals.keep_preload()
    return config


async def start(
    make: Callable[..., Any], options: dict[str, Any], address: str, servers: list[Any], in_use: Callable[[], bool]
) -> None:
    """Start one worker. Once the cluster is in use, a task may end it before its Nanny has noticed that it was up.

    Parameters
    ----------
    make : callable
        Makes the server, from the scheduler's address and the options; see `batchlet.dask_backend.worker_factory`.
    options : dict of str to object
        Its keyword arguments.
    address : str
        Of the scheduler.
    servers : list
        Gets the server, before it has started.
    in_use : callable
        Whether the cluster is in use already.
    """
    for attempt in range(_STARTS):
        with dask.config.set({DISKS: False}):
            server = make(address, **options)
        servers.append(server)
        dask_internals.off_the_path(server, rank_preload.UPLOADS)
        try:
            await server
            return
        except Exception:
            if attempt == _STARTS - 1 or not in_use():
                raise
            servers.remove(server)


def at_port(make: Callable[..., Any], port: int | None) -> Callable[..., Any]:
    """Have a worker start at the port that one of its name had in a process that has died, if it is free; see `keep_ports`.

    Parameters
    ----------
    make : callable
        As for `start`.
    port : int, optional
        Which; `None` where there was none.
    """
    if port is None or not (isinstance(make, type) and issubclass(make, Nanny)):
        return make
    tried = False

    def make_there(address: str, **options: Any) -> Any:
        nonlocal tried
        there = {} if tried or options.get("worker_port") else {"worker_port": port}
        tried = True
        return make(address, **options, **there)

    return make_there


def keep_ports(servers: Sequence[Any]) -> dict[str, int]:
    """Have each worker come back under its address when its process is started again.

    Dask turns ``submit(..., workers=2)`` into an address at once; at another address the task would wait for ever.

    Returns
    -------
    dict of str to int
        The ports, by the names of the workers.
    """
    ports = {}
    for server in servers:
        for nanny in dask_internals.nannies_of(server):
            port = dask_internals.keep_port(nanny)
            if port is not None:
                ports[str(nanny.name)] = port
    return ports


async def retire(servers: Sequence[Any], scheduler: str, security: Any, timeout: float) -> None:
    """Have workers finish what they are at, and what they have computed brought to others, for as long as that may take.

    They get no more to do. Of what they are still computing when the time is over others begin anew.

    Parameters
    ----------
    servers : sequence
        What runs the workers.
    scheduler : str
        Address of the scheduler.
    security : distributed.Security
        The run's credentials.
    timeout : float
        Seconds.
    """
    there = (nanny.worker_address for server in servers for nanny in dask_internals.nannies_of(server))
    addresses = list(filter(None, there))
    arguments = security.get_connection_args("worker")

    async def go(remote: Any) -> None:
        busy = [True]
        while any(busy):
            await remote.retire_workers(workers=addresses, remove=False)
            busy = await asyncio.gather(*(scheduler_state.is_computing(address, arguments) for address in addresses))
            await asyncio.sleep(_NEWS)
        # What was finished meanwhile.
        await remote.retire_workers(workers=addresses, remove=False)

    with contextlib.suppress(Exception):
        async with rpc(scheduler, connection_args=arguments) as remote:
            await asyncio.wait_for(go(remote), timeout)
    # The scheduler tells them so on another way: one that is ended before it hears that logs an error.
    await asyncio.sleep(_NEWS)


async def close(servers: Sequence[Any], timeout: float) -> None:
    """Close workers in good order, and the hard way those that do not come back in time; with no time, all of them.

    A worker whose scheduler is gone tries for seconds to take its leave.
    """
    processes = [process for server in servers for process in dask_internals.child_processes(server)]
    for process in processes:
        expect_death(process.pid)
    for server in servers:
        dask_internals.stay_ended(server, "batchlet-stop")
    await asyncio.gather(*(dask_internals.give_up_start(server) for server in servers))
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
        if timeout:
            await asyncio.wait_for(
                asyncio.gather(*(server.close(timeout=_TERMINATE) for server in servers), return_exceptions=True),
                timeout,
            )
    for process in processes:
        with contextlib.suppress(Exception):
            if process.is_alive():
                await process.kill()
