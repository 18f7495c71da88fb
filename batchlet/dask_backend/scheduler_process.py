"""The process of the scheduler where the agent of rank 0's node has forked it; see `batchlet.node.scheduler_request`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import dask.config

from .. import timeline
from ..control.connection import Connection
from ..control.messages import (
    Beat,
    Failed,
    Forget,
    ForReport,
    Message,
    ReportFailure,
    SchedulerStarted,
    Signalled,
    Stop,
    Stopping,
    Timeline,
    WorkerJoined,
)
from ..control.signals import handled
from ..errors import EndError
from ..node.inputs import unpack_options
from ..node.join import connect
from ..node.rank import Rank
from ..node.resolve import resolve
from ..plan import SCHEDULER
from ..rendezvous.base import CoordinatorRecord
from . import processes, scheduler
from .compat.dask_internals import mp_context
from .compat.multiprocessing_internals import forget_tracker
from .scratch import forget_scratch, remove_scratch, scratch, scratch_directories
from .tls import security_for

__all__ = ["can_start", "main", "start"]

# Seconds that the event loop has to come back once nobody waits for it any more.
_AT_ONCE = 2.0
# At most 15 bytes.
_NAME = "dask-scheduler"


def can_start() -> bool:
    """Whether processes are forked here from one that has imported Dask."""
    return bool(mp_context().get_start_method() == "forkserver")


def start(words: Mapping[str, Any], connection: socket.socket) -> Any:
    """Start the process; in the agent.

    Parameters
    ----------
    words : mapping
        What rank 0 has said; see `batchlet.node.scheduler_request`.
    connection : socket
        To rank 0. The process gets a copy.

    Returns
    -------
    multiprocessing.Process
        The process.
    """
    process = mp_context().Process(
        target=main, args=(dict(words), connection), name=processes.SCHEDULER_PROCESS, daemon=False
    )
    process.start()
    return process


def main(words: Mapping[str, Any], connection: socket.socket) -> NoReturn:
    """Be the scheduler until the run is over, or rank 0 is gone."""
    # Its own group: the agent ends that of its fork server when it ends itself.
    os.setsid()
    code = 1
    try:
        processes.close_files({connection.fileno()})
        # That of the agent ends with the agent.
        forget_tracker()
        connection.setblocking(True)
        orders = words["scheduler"]
        sys.argv[:] = orders["argv"]
        rank = resolve(orders, words["environ"])
        _move(rank, words)
        connection.sendall(b"started %d\n" % os.getpid())
        code = _SchedulerHost(rank, CoordinatorRecord(**orders["record"]), connection).run()
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


def _move(rank: Rank, words: Mapping[str, Any]) -> None:
    """Be at home in rank 0 rather than in the rank that has started the agent."""
    timeline.forget()
    with contextlib.suppress(OSError):
        # For `top` and `ps`; it would be called "python", as everything here.
        Path("/proc/self/comm").write_text(_NAME, encoding="utf-8")
    environ, orders = rank.task_environ, words["scheduler"]
    for name in [name for name in os.environ if name not in environ]:
        del os.environ[name]
    os.environ.update(environ)
    sys.path[:] = orders["sys_path"]
    if words["cpus"]:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, words["cpus"])
    forget_scratch()
    dask.config.refresh()
    _, config = unpack_options(orders)
    if config is not None:
        dask.config.update(dask.config.config, config)


class _SchedulerHost:
    """The scheduler at work."""

    def __init__(self, rank: Rank, record: CoordinatorRecord, connection: socket.socket) -> None:
        self._rank = rank
        self._record = record
        self._socket = connection
        self._over = threading.Event()
        self._stop: Callable[[], object] | None = None

    def run(self) -> int:
        threading.Thread(target=self._watch_rank_0, name="batchlet-rank-0", daemon=True).start()
        rank, settings, record = self._rank, self._rank.settings, self._record
        connection = connect(rank, record, name="scheduler", role=SCHEDULER)
        coordinator = _RemoteCoordinator(connection, self._end)
        connection.listen(coordinator.hear)
        token = rank.dashboard_token(record)
        security = security_for(settings.security, connection.credentials)
        options = scheduler.options(settings, rank.reachable_host(), security, token)
        usual = rank.environment.scratch_directories(os.environ)
        with handled(coordinator.signalled), scratch(settings, usual, rank.info.run_id):
            # If rank 0 has to kill this process, it tidies up.
            self._socket.sendall(json.dumps(scratch_directories()).encode() + b"\n")
            asyncio.run(scheduler.serve(coordinator, options, token, settings, rank.workers_expected, self._set_stop))
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
        limit = threading.Timer(_AT_ONCE if at_once else self._rank.settings.stop_timeout + _AT_ONCE, self._end_hard)
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

    def hear(self, message: Message) -> None:
        """Do what rank 0 says; in the connection's thread."""
        if isinstance(message, Stopping):
            self.on_stopping()
        elif isinstance(message, Forget):
            self.on_gone(set(message.workers))
        elif isinstance(message, (Stop, Failed)):
            self._end(isinstance(message, Failed))

    def beat(self) -> None:
        self._connection.send(Beat())

    def worker_joined(self, name: object) -> None:
        self._connection.send(WorkerJoined(str(name)))

    def for_report(self, told: Sequence[Sequence[Any]]) -> None:
        self._connection.send(ForReport(told))

    def scheduler_started(self, **start: Any) -> None:
        self._connection.send(Timeline("the scheduler", timeline.marks()))
        self._connection.send(SchedulerStarted(**start))

    def fail(self, error: EndError) -> None:
        self._connection.send(ReportFailure.of(error))

    def signalled(self, number: int, _frame: object) -> None:
        self._connection.send(Signalled(number, "0"))
