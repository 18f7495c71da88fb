"""The process from which all workers of a host are forked: multiprocessing's fork server, forked itself from the host.

multiprocessing would start that process afresh and import Dask a second time, in each of them, on every node. `start` forks it
from a process that has imported Dask already. Where that is not possible, multiprocessing does it its own way, and imports the
module `worker_process` first.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

from distributed.utils import get_mp_context
from distributed.versions import get_versions

from .dask_process import start_helpers

__all__ = ["start"]

# What Dask imports while a worker starts (distributed 2026.8). A name that is missing costs time, and nothing else.
_LATE_IMPORTS = (
    "email.policy",
    "importlib_metadata._adapters",
    "multiprocessing.popen_forkserver",
    "multiprocessing.synchronize",
    "tornado.platform.asyncio",
    "batchlet.roles.dask_security",
    "batchlet.roles.rank_place",
)
# What `multiprocessing.forkserver.main` takes in the versions of Python that are known to work this way.
_KNOWN = ("listener_fd", "alive_r", "preload", "main_path", "sys_path")


def start() -> None:
    """Fork the fork server from this process, if it has no threads and Dask is to use one."""
    module: Any = multiprocessing.forkserver
    server = module._forkserver
    if (
        get_mp_context().get_start_method() != "forkserver"
        or server._forkserver_pid is not None
        or tuple(inspect.signature(module.main).parameters)[: len(_KNOWN)] != _KNOWN
        or hasattr(server, "_forkserver_authkey")
        or threading.active_count() > 1
    ):
        return
    start_helpers()
    _warm_up()
    listener = socket.socket(socket.AF_UNIX)
    address = tempfile.mktemp(dir=multiprocessing.util.get_temp_dir())  # noqa: S306 - only ours can write there
    listener.bind(address)
    Path(address).chmod(0o600)
    listener.listen()
    alive_r, alive_w = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # What is there now will hardly change: left alone by the garbage collector, its memory stays shared by all workers.
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _serve(module, listener, alive_r)
            code = 0
        finally:
            os._exit(code)
    listener.close()
    os.close(alive_r)
    server._forkserver_address = address
    server._forkserver_alive_fd = alive_w
    server._forkserver_pid = pid


def _warm_up() -> None:
    """Do once what every worker would do while it starts: late imports, looking up the versions of packages.

    Nothing here may start a thread, open a file for good or differ from worker to worker.
    """
    for name in _LATE_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if "numpy" in sys.modules:
        # Each worker seeds it anew.
        importlib.import_module("numpy.random")
    get_versions()
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _serve(module: Any, listener: socket.socket, alive_r: int) -> None:
    """Be the fork server."""
    tracker = int(multiprocessing.resource_tracker.getfd() or 0)
    keep = sorted({0, 1, 2, listener.fileno(), alive_r, tracker})
    for first, last in zip([*keep], [*keep[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        # The host's sockets are not for its workers: who waits on them would not see the host end.
        os.closerange(first + 1, last)
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    # Tasks that look for the main module find an empty one, as in a process that was started afresh.
    sys.modules["__main__"] = types.ModuleType("__main__")
    from . import worker_process  # noqa: F401 - for what its import does

    module.main(listener.fileno(), alive_r, [])
