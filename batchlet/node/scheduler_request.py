"""Rank 0's scheduler in a process of its own, which the host of the node's workers forks: that has imported Dask already.

Rank 0 imports Dask for nothing else. It asks through the node's socket (see `batchlet.node.attach`); the answer is the number
of the process, which has that connection from then on, so that each of the two sees at once when the other is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import IO

from . import attach
from .bootstrap import SchedulerOrders, pack

__all__ = ["SchedulerProcess", "ask"]

_PAUSE = 0.005
# Seconds within which a worker rank of this node is there, if all have been started together.
_TOGETHER = 3.0
# Seconds for a killed process to be gone.
_GONE = 1.0


class SchedulerProcess:
    """The process of the scheduler, as rank 0 sees it.

    Parameters
    ----------
    connection : socket
        To the process.
    lines : file
        What it says there: the directories that it has made, as JSON.
    pid : int
        Its number.
    """

    def __init__(self, connection: socket.socket, lines: IO[bytes], pid: int) -> None:
        self.pid = pid
        self._connection = connection
        self._lines = lines
        self._scratch: list[str] = []
        self._gone = threading.Event()

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` in a thread when the process has ended."""

        def wait() -> None:
            with contextlib.suppress(OSError):
                for line in self._lines:
                    self._scratch = json.loads(line)
            self._gone.set()
            on_gone()

        threading.Thread(target=wait, name="batchlet-scheduler-process", daemon=True).start()

    def end(self, timeout: float) -> None:
        """See the process end, the hard way if it has not after so many seconds."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        if not self._gone.wait(timeout):
            self.kill()

    def kill(self) -> None:
        """End the process at once, if it is still there, and remove its scratch."""
        if not self._gone.is_set():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            self._gone.wait(_GONE)
            for directory in self._scratch:
                shutil.rmtree(directory, ignore_errors=True)


def ask(name: bytes, orders: SchedulerOrders, deadline: float) -> SchedulerProcess | None:
    """Have the host of this node start the scheduler; `None` where that is not possible.

    Parameters
    ----------
    name : bytes
        The node's socket.
    orders : SchedulerOrders
        What the scheduler has to know.
    deadline : float
        Until when the host must have answered, in seconds of `time.monotonic`.
    """
    try:
        words = {"scheduler": pack(orders), **attach.facts(), "environ": dict(orders.environ)}
    except Exception:  # noqa: BLE001 - pickling runs the user's code; it can do without here
        return None
    connection = _connect(name, min(deadline, time.monotonic() + _TOGETHER))
    if connection is None:
        return None
    try:
        connection.settimeout(max(_PAUSE, deadline - time.monotonic()))
        connection.sendall(attach.message(words))
        lines = connection.makefile("rb")
        answer = lines.readline().split()
    except OSError:
        connection.close()
        return None
    if len(answer) != 2 or answer[0] != b"started":
        connection.close()
        return None
    connection.settimeout(None)
    return SchedulerProcess(connection, lines, int(answer[1]))


def _connect(name: bytes, deadline: float) -> socket.socket | None:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(name)
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE)
            continue
        except OSError:
            connection.close()
            return None
        if attach.peer_is_ours(connection):
            return connection
        connection.close()
        return None
