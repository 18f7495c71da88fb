"""The process from which a host's workers and rank 0's scheduler are forked: multiprocessing's fork server, itself forked.

multiprocessing would start that process afresh and import Dask a second time, in each of them, on every node. `start` forks it
from a process that has imported Dask already. Where that is not possible, multiprocessing does it its own way, and imports the
module `worker_process` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import multiprocessing.util
import numbers
import os
import pickle
import signal
import socket
import ssl
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import dask.config

from ..security import Credentials
from . import stopped_host
from .compat import dask_internals, multiprocessing_internals
from .compat.dask_internals import mp_context
from .logs import DASK_LOG_LEVEL, logging_is_the_users
from .processes import close_files

__all__ = ["give", "start"]

# Modules of ours that are imported while a worker starts.
_LATE_IMPORTS = ("batchlet.dask_backend.tls", "batchlet.dask_backend.rank_preload")
# With two workers warming up takes as long as it saves, and they share more memory.
_WORTH_WARMING = 2
# Where the fork server waits for the run's credentials before it serves.
_waiting: int | None = None


def start(directory: str, workers: int, patience: float | None = None) -> int | None:
    """Fork the fork server from this process, if it has no threads and Dask is to use one.

    Parameters
    ----------
    directory : str
        Where files may be made and left.
    workers : int
        About how many workers will be forked.
    patience : float, optional
        Seconds after which this process is killed where it has been stopped; see `stopped_host`.

    Returns
    -------
    int or None
        The number of the fork server's process, which is the leader of its workers' session; `None` where there is none yet.
    """
    if (
        mp_context().get_start_method() != "forkserver"
        or not multiprocessing_internals.may_adopt_fork_server()
        or threading.active_count() > 1
    ):
        return None
    if workers >= _WORTH_WARMING:
        _warm_up(directory)
    # What is there now will hardly change: left alone by the garbage collector, its memory stays shared by all workers.
    gc.freeze()
    _start_tracker()
    listener = socket.socket(socket.AF_UNIX)
    address = tempfile.mktemp(dir=multiprocessing.util.get_temp_dir())  # noqa: S306 - only ours can write there
    listener.bind(address)
    Path(address).chmod(0o600)
    listener.listen()
    global _waiting
    alive_r, alive_w = os.pipe()
    given_r, _waiting = os.pipe()
    tracker = multiprocessing_internals.tracker_file()
    pid = _fork({listener.fileno(), alive_r, given_r, tracker}, lambda: _serve(listener, alive_r, given_r, patience))
    listener.close()
    os.close(alive_r)
    os.close(given_r)
    multiprocessing_internals.adopt_fork_server(pid, address, alive_w)
    return pid


def give(credentials: Credentials | None) -> None:
    """Let the fork server serve, and have it prepare these credentials for all workers; to be called once they are known."""
    global _waiting
    if _waiting is not None:
        # Less than a pipe holds, so that this waits for nobody.
        with contextlib.suppress(OSError):
            os.write(_waiting, pickle.dumps(credentials))
        os.close(_waiting)
        _waiting = None


def _start_tracker() -> None:
    """Fork multiprocessing's resource tracker too, or start it."""

    def fork(work: Callable[[], None], needs: int) -> int:
        def serve() -> None:
            # It removes the semaphores of a host that was killed, which is its job, and would warn of them.
            warnings.simplefilter("ignore")
            work()

        return _fork({needs}, serve)

    if not multiprocessing_internals.adopt_tracker(fork):
        multiprocessing_internals.start_quiet_tracker()


def _fork(keep: set[int], work: Callable[[], None]) -> int:
    """Do `work` in a copy of this process that has no connections open but those to `keep`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        close_files(keep)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        work()
        code = 0
    finally:
        os._exit(code)


def _warm_up(directory: str) -> None:
    """Do once what every worker would do while it starts: late imports, looking up the versions of packages.

    Nothing here may start a thread, open a file for good or differ from worker to worker.
    """
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    if "numpy" in sys.modules:
        # Each worker seeds it anew.
        importlib.import_module("numpy.random")
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Who is compared with an abstract class for the first time is compared with all that are derived from it.
    for value in (0, 0.5):
        isinstance(value, numbers.Real)
        isinstance(value, numbers.Integral)
    dask.config.update({}, dask.config.config)
    # Code that has run once is faster, and what it has changed in memory the workers then share.
    if not logging_is_the_users():
        logging.getLogger("distributed").setLevel(DASK_LOG_LEVEL())
    path = list(sys.path)
    asyncio.run(_make_worker(directory))
    # It has put its own directory there.
    sys.path[:] = path


async def _make_worker(directory: str) -> None:
    dask_internals.warm_up(directory)


def _serve(listener: socket.socket, alive_r: int, given_r: int, patience: float | None) -> None:
    """Be the fork server."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    # Tasks that look for the main module find an empty one, as in a process that was started afresh.
    sys.modules["__main__"] = types.ModuleType("__main__")
    from . import tls, worker_process  # noqa: F401 - the latter for what its import does

    with open(given_r, "rb") as given:
        words = given.read()
    credentials = pickle.loads(words) if words else None  # noqa: S301 - from the process that this one is a copy of
    if credentials is not None:
        tls.prepare(credentials)
    if patience is not None:
        stopped_host.watch(patience)
    multiprocessing_internals.serve_forks(listener.fileno(), alive_r)
