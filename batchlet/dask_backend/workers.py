"""The ranks that host workers: Dask's Nannies, each with a worker in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import glob
import importlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import distributed.utils
from distributed import Nanny, Worker

from ..errors import SettingsError
from ..network import LOOPBACK, in_url
from ..node.wait import AGENT_ENVIRONMENT
from ..plan import WorkerPlan
from ..report import note
from ..security import unsafe
from ..settings import Settings
from . import rank_preload
from .processes import DASK_LOG_LEVEL, expect_death, logging_is_the_users, start_failure, true_exit_codes
from .tuning import intervals

__all__ = [
    "RankContext",
    "Site",
    "close",
    "configured",
    "forget_scratch",
    "keep_ports",
    "nanny_spec",
    "remove_scratch",
    "scratch",
    "scratch_directories",
    "start",
    "start_failure",
]

_TERMINATE = 2.0
_STARTS = 3
# A worker always has an HTTP server, which gives metrics and more to everybody: here it answers nothing, to nobody.
_HTTP = "distributed.worker.http.routes"
# Nobody looks at what each Nanny knows of the node's disks, and reading it is most of what its monitor does.
_DISKS = "distributed.admin.system-monitor.disk"


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
    """

    host: str
    local_directory: str
    security: Any


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


def nanny_spec(
    worker: WorkerPlan, settings: Settings, place: Site, rank: RankContext | None = None
) -> tuple[type, dict[str, Any]]:
    """Choose the class that runs a worker, and its keyword arguments.

    Raises
    ------
    SettingsError
        If the ``worker_class`` cannot be imported.
    """
    cls = _load(settings.worker_class)
    options = {
        "name": worker.name,
        "nthreads": worker.threads,
        "memory_limit": worker.memory,
        "host": in_url(place.host),
        "protocol": settings.protocol,
        "local_directory": os.path.join(place.local_directory, str(worker.name)),  # noqa: PTH118
        "security": place.security,
        "silence_logs": None if logging_is_the_users() else DASK_LOG_LEVEL(),
        "dashboard": False,
        **({} if settings.security is False else {"dashboard_address": f"{LOOPBACK}:0"}),
        **settings.worker_options,
        **(rank.options(settings.worker_options) if rank is not None else {}),
        "config": {
            _DISKS: dask.config.get(_DISKS),
            **({} if settings.security is False else {_HTTP: []}),
            **(settings.worker_options.get("config") or {}),
        },
    }
    if cls is not None and issubclass(cls, Nanny):
        return cls, options
    if cls is not None:
        options["worker_class"] = cls
    return Nanny, options


def _load(worker_class: str | type | None) -> type | None:
    if not isinstance(worker_class, str):
        return worker_class
    module, _, name = worker_class.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f'worker_class="{worker_class}" cannot be imported: {error}.') from None
    if not isinstance(cls, type) or not issubclass(cls, (Worker, Nanny)):
        raise SettingsError(f'worker_class="{worker_class}" is not a subclass of Dask\'s Worker or Nanny.')
    return cls


@contextlib.contextmanager
def configured(workers: int = 1, total: int = 1) -> Iterator[None]:
    """Configure Dask in a process that starts about so many workers, of so many in the cluster.

    Workers may start processes themselves (``daemon``), and are forked from one process that has imported Dask, unless the
    user has chosen another way.
    """
    config: dict[str, Any] = {
        "distributed.worker.daemon": False,
        # Each worker would look for what dead ones have left, with three lock files. Its directory is its own; what it leaves
        # there its Nanny removes, and all of it whoever made the scratch.
        "distributed.worker.use-file-locking": False,
        **intervals(workers, total),
    }
    if importlib.util.find_spec("gilknocker") is None:
        # Each Nanny and each worker would look for it, through all of the path.
        config["distributed.admin.system-monitor.gil.enabled"] = False
    if dask.config.get("distributed.worker.multiprocessing-method") == "spawn":
        config["distributed.worker.multiprocessing-method"] = "forkserver"
        multiprocessing.set_forkserver_preload(["batchlet.dask_backend.worker_process"])
        # Dask would replace our list by its own, for which it imports numpy and pandas into this process first.
        distributed.utils._forkserver_preload_set = True
    # A Nanny writes these into the environment of its own process too.
    touched = [*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED"]
    before = {name: os.environ.get(name) for name in touched}
    try:
        with dask.config.set(config), true_exit_codes():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# Bytes that the path of a Unix socket may have (sun_path, 108 on Linux and 104 on macOS), less what multiprocessing adds.
_LONGEST_SOCKET_DIRECTORY = 104 - len("/listener-xxxxxxxx") - 1


_directories: set[str] = set()
# Open files of theirs.
_locks: set[int] = set()
_PREFIX = "batchlet-"
# What marks a directory as ours; a user's own may be called batchlet-something, too.
_LOCK = ".batchlet-lock"
# Seconds after which a directory that nobody has locked is nobody's, and not just about to be locked.
_STALE = 60.0
# Where Linux keeps named semaphores.
_SEMAPHORES = "/dev/shm/sem."  # noqa: S108
# Who ends well has removed its semaphores itself, and may have made some that the user still needs.
_JANITOR = 'read -r end || rm -f -- "$0"-*; rm -rf -- "$@"'
# Seconds that making a directory takes on a file system that is no place for scratch.
_SLOW = 1.0


def remove_scratch() -> None:
    """Remove this process's directories at once; for an end in which nothing else is done."""
    for directory in list(_directories):
        shutil.rmtree(directory, ignore_errors=True)


def scratch_directories() -> list[str]:
    """Name this process's directories."""
    return sorted(_directories)


def forget_scratch() -> None:
    """Leave the directories of the process that this one was forked from to that."""
    _directories.clear()
    while _locks:
        # A network file system keeps what somebody has open, and the directory with it.
        with contextlib.suppress(OSError):
            os.close(_locks.pop())
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config.pop("tempdir", None)


@contextlib.contextmanager
def scratch(settings: Settings, usual: Sequence[str], run_id: str) -> Iterator[str]:
    """Make a directory of this process's own on node-local scratch, and see it removed at the end.

    Dask and multiprocessing put what they need into it as well.

    A shell waits for the end of this process and removes the directory, so that it also goes when this process is killed.

    Parameters
    ----------
    settings : Settings
        What the user asked for, a directory among it.
    usual : sequence of str
        Directories that this place has for scratch, the best one first.
    run_id : str
        The run, by which people shall know what the directory is for.

    Raises
    ------
    SettingsError
        If the directory cannot be made.
    """
    base = next(iter([*filter(None, [settings.local_directory]), *usual, tempfile.gettempdir()]))
    began = time.monotonic()
    try:
        if settings.local_directory:
            Path(base).mkdir(parents=True, exist_ok=True)
        if problem := unsafe(base):
            raise SettingsError(
                f"The scratch directory {base} cannot be trusted: {problem}, so that others could put their own files in the "
                "place of the run's. Set local_directory= (BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY) to a directory of your own."
            )
        directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{run_id}-", dir=base)
        short = len(directory) <= _LONGEST_SOCKET_DIRECTORY
        sockets = directory if short else tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    except OSError as error:
        raise SettingsError(
            f"The scratch directory {base} cannot be used ({error.strerror}): set local_directory= "
            "(BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY) to a directory on the node's own disk."
        ) from None
    locks = [lock for place in {directory, sockets} if (lock := _lock(place, new=True)) is not None]
    for place in {base, os.path.dirname(sockets)}:  # noqa: PTH120
        _sweep(place)
    if time.monotonic() - began > _SLOW:
        note(
            f"the scratch directory {base} is slow ({time.monotonic() - began:.1f} s to make one in it); if it is not on the "
            "node's own disk, set local_directory= (BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY)"
        )
    # A session of its own, so that signals to this process's group do not end it first.
    name = os.path.basename(directory)  # noqa: PTH119
    janitor = subprocess.Popen(
        ["/bin/sh", "-c", _JANITOR, f"{_SEMAPHORES}{name}", directory, sockets],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    _directories.update((directory, sockets))
    _locks.update(locks)
    config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config.setdefault("tempdir", sockets)
    # So that the next run can tell whose the semaphores are that a killed run leaves behind, six of each worker.
    prefix = config.get("semprefix")
    config["semprefix"] = f"/{name}"
    try:
        with dask.config.set({"temporary-directory": directory}):
            yield directory
    finally:
        if config.get("tempdir") == sockets:
            del config["tempdir"]
        config["semprefix"] = prefix
        janitor.communicate(b"good\n")
        for lock in locks:
            os.close(lock)
        _locks.difference_update(locks)
        _directories.difference_update((directory, sockets))


def _lock(directory: str, *, new: bool) -> int | None:
    """Show others that a directory is in use, for as long as this process or one that is forked from it lives.

    `None` if it is in use already, or none of ours, or on a file system without locks.
    """
    descriptor: int | None = None
    try:
        flags = os.O_CREAT | os.O_EXCL if new else os.O_NOFOLLOW
        descriptor = os.open(os.path.join(directory, _LOCK), os.O_RDWR | flags, 0o600)  # noqa: PTH118
        if not new and time.time() - os.fstat(descriptor).st_mtime < _STALE:
            raise BlockingIOError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _sweep(base: str) -> None:
    """Remove what earlier runs of this user have left on this node, where Slurm had killed all of their processes at once."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(base)):
            if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            lock = _lock(entry.path, new=False)
            if lock is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                for semaphore in glob.glob(f"{_SEMAPHORES}{glob.escape(entry.name)}-*"):  # noqa: PTH207
                    os.unlink(semaphore)  # noqa: PTH108
                os.close(lock)


async def start(
    cls: type, options: dict[str, Any], address: str, nannies: list[Any], in_use: Callable[[], bool]
) -> None:
    """Start one worker. Once the cluster is in use, a task may end it before its Nanny has noticed that it was up."""
    for attempt in range(_STARTS):
        with dask.config.set({_DISKS: False}):
            nanny = cls(address, **options)
        nannies.append(nanny)
        with contextlib.suppress(ValueError, AttributeError):
            # Each one puts its own directory there, and nobody has anything to import from it.
            sys.path.remove(nanny.local_directory)
        try:
            await nanny
            return
        except Exception:
            if attempt == _STARTS - 1 or not in_use():
                raise
            nannies.remove(nanny)


def keep_ports(nannies: Sequence[Any]) -> None:
    """Have a worker come back under its address when its process is started again.

    Dask turns ``submit(..., workers=2)`` into an address at once; at another address the task would wait for ever.
    """
    for nanny in nannies:
        if nanny.process is not None and nanny.worker_address:
            nanny.process.worker_kwargs["port"] = int(nanny.worker_address.rsplit(":", 1)[1])


async def close(nannies: Sequence[Any], timeout: float) -> None:
    """Close workers in good order, and the hard way those that do not come back in time; with no time, all of them.

    A worker whose scheduler is gone tries for seconds to take its leave.
    """
    processes = [nanny.process.process for nanny in nannies if nanny.process is not None and nanny.process.process]
    for process in processes:
        expect_death(process.pid)
    for nanny in nannies:
        nanny.close_gracefully(reason="batchlet-stop")  # do not start again what we end
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
        if timeout:
            await asyncio.wait_for(
                asyncio.gather(*(nanny.close(timeout=_TERMINATE) for nanny in nannies), return_exceptions=True), timeout
            )
    for process in processes:
        with contextlib.suppress(Exception):
            if process.is_alive():
                await process.kill()
