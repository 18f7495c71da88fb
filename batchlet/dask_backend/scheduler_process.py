"""The process of the scheduler where the host of rank 0's node has forked it; see `batchlet.node.scheduler_request`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import dask.config

from .. import timeline
from ..control.connection import Connection
from ..control.signals import handled
from ..errors import EndError
from ..node.bootstrap import SchedulerOrders, unpack
from ..plan import SCHEDULER
from ..security import dashboard_token
from ..versions import versions
from . import processes, scheduler
from .compat.dask_internals import mp_context
from .compat.multiprocessing_internals import forget_tracker
from .scratch import forget_scratch, remove_scratch, scratch, scratch_directories
from .tls import security_for

__all__ = ["can_start", "main", "start"]

# Seconds by which patience here exceeds rank 0's.
_PATIENCE = 5.0
# Seconds that the event loop has to come back once nobody waits for it any more.
_AT_ONCE = 2.0
# At most 15 bytes.
_NAME = "dask-scheduler"


def can_start() -> bool:
    """Whether processes are forked here from one that has imported Dask."""
    return bool(mp_context().get_start_method() == "forkserver")


def start(orders: bytes, connection: socket.socket) -> Any:
    """Start the process; in the host.

    Parameters
    ----------
    orders : bytes
        A packed `SchedulerOrders`.
    connection : socket
        To rank 0. The process gets a copy.

    Returns
    -------
    multiprocessing.Process
        The process.
    """
    process = mp_context().Process(
        target=main, args=(orders, connection), name=processes.SCHEDULER_PROCESS, daemon=False
    )
    process.start()
    return process


def main(words: bytes, connection: socket.socket) -> NoReturn:
    """Be the scheduler until the run is over, or rank 0 is gone."""
    # Its own group: the host ends that of its fork server when it ends itself.
    os.setsid()
    code = 1
    try:
        processes.close_files({connection.fileno()})
        # That of the host ends with the host.
        forget_tracker()
        connection.setblocking(True)
        orders = unpack(words)
        assert isinstance(orders, SchedulerOrders)
        _move(orders)
        connection.sendall(b"started %d\n" % os.getpid())
        code = _SchedulerHost(orders, connection).run()
    except EndError as error:
        code = error.exit_code
    except Exception as error:  # noqa: BLE001
        # Rank 0 misses it, and says so.
        sys.stderr.write(f"batchlet: error: the scheduler's process failed: {type(error).__name__}: {error}\n")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _move(orders: SchedulerOrders) -> None:
    """Be at home in rank 0 rather than in the rank that has started the host."""
    timeline.forget()
    with contextlib.suppress(OSError):
        # For `top` and `ps`; it would be called "python", as everything here.
        Path("/proc/self/comm").write_text(_NAME, encoding="utf-8")
    for name in [name for name in os.environ if name not in orders.environ]:
        del os.environ[name]
    os.environ.update(orders.environ)
    sys.path[:] = orders.sys_path
    if orders.cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, orders.cpus)
    forget_scratch()
    dask.config.refresh()
    if orders.dask_config is not None:
        dask.config.update(dask.config.config, orders.dask_config)


class _SchedulerHost:
    """The scheduler at work."""

    def __init__(self, orders: SchedulerOrders, connection: socket.socket) -> None:
        self._orders = orders
        self._socket = connection
        self._over = threading.Event()
        self._stop: Callable[[], object] | None = None

    def run(self) -> int:
        orders = self._orders
        threading.Thread(target=self._watch_rank_0, name="batchlet-rank-0", daemon=True).start()
        info, settings, record = orders.info, orders.settings, orders.record
        connection = Connection(
            record,
            {
                "name": "scheduler",
                "role": SCHEDULER,
                "node": info.node,
                "local_ranks": [],
                "brings": [],
                "versions": versions(),
            },
            orders.until + _PATIENCE,
            settings.scheduler_timeout,
        )
        coordinator = _RemoteCoordinator(connection, self._end)
        connection.listen(coordinator.hear)
        token = dashboard_token(record.secret) if record.certificate else None
        options = scheduler.options(
            settings, orders.host, security_for(settings.security, connection.credentials), token
        )
        with handled(coordinator.signalled), scratch(settings, os.environ, info.run_id):
            # If rank 0 has to kill this process, it tidies up.
            self._socket.sendall(json.dumps(scratch_directories()).encode() + b"\n")
            asyncio.run(scheduler.serve(coordinator, options, token, settings, orders.workers, self._set_stop))
        connection.close()
        return connection.exit_code

    def _set_stop(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        if self._over.is_set():
            stop()

    def _end(self, at_once: bool) -> None:
        """End the scheduler; `at_once` whatever its event loop does, since the run has failed and nothing is left to save."""
        self._over.set()
        if self._stop is not None:
            with contextlib.suppress(RuntimeError):
                self._stop()
        limit = threading.Timer(_AT_ONCE if at_once else self._orders.settings.stop_timeout + _AT_ONCE, self._end_hard)
        limit.daemon = True
        limit.start()

    def _end_hard(self) -> None:
        remove_scratch()
        os._exit(1)

    def _watch_rank_0(self) -> None:
        """End when rank 0 does not need this process any more, or is gone."""
        with contextlib.suppress(OSError):
            while self._socket.recv(1):
                pass
        self._end(at_once=self._stop is None)


class _RemoteCoordinator:
    """The coordinator, which is in another process, as the scheduler sees it."""

    def __init__(self, connection: Connection, end: Callable[[bool], None]) -> None:
        self._connection = connection
        self._end = end
        self.on_stopping: Callable[[], object] = lambda: None
        self.on_gone: Callable[[set[str]], object] = lambda _: None

    def hear(self, message: Mapping[str, Any]) -> None:
        """Do what rank 0 says; in the connection's thread."""
        op = message["op"]
        if op == "stopping":
            self.on_stopping()
        elif op == "forget":
            self.on_gone(set(message["workers"]))
        elif op in ("stop", "end"):
            self._end(op == "end")

    def beat(self) -> None:
        self._connection.send("beat")

    def worker_joined(self, name: object) -> None:
        self._connection.send("joined", worker=str(name))

    def scheduler_started(self, **start: Any) -> None:
        self._connection.send("timeline", who="the scheduler", marks=timeline.marks())
        self._connection.send("started", start=start)

    def fail(self, error: EndError) -> None:
        self._connection.send("failed", kind=type(error).__name__, message=str(error))

    def signalled(self, number: int, _frame: object) -> None:
        self._connection.send("signalled", number=number, participant="0")
