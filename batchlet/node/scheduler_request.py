"""Rank 0's scheduler in a process of its own, which the agent of its node forks: that has imported Dask already.

Rank 0 imports Dask for nothing else. It asks through the agent's socket (see `batchlet.node.attach`), with the raw inputs that
an agent would get; the answer is the number of the process, which has that connection from then on, so that each of the two
sees at once when the other is gone. ``own`` from the agent says that rank 0 is to be the scheduler itself.
"""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from ..rendezvous.base import CoordinatorRecord
from . import agent_socket, inputs
from .rank import Rank

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
            # In this order: whoever waits for the end may begin the next block at once.
            on_gone()
            self._gone.set()

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


def ask(
    rank: Rank,
    words: Mapping[str, Any],
    record: CoordinatorRecord,
    layout: Sequence[Any] | None,
    block: int,
) -> SchedulerProcess | None:
    """Have the agent of this node start the scheduler; `None` where that is not possible.

    Parameters
    ----------
    rank : Rank
        Rank 0.
    words : mapping
        What the user asked for, as `batchlet.node.inputs.for_agent` has made it.
    record : CoordinatorRecord
        Where the coordinator is.
    layout : sequence, optional
        Which ranks share this node, where the launcher's variables do not tell.
    block : int
        Number of the block that the scheduler is for.
    """
    orders = {**words, "until": rank.deadline, "layout": layout, "record": asdict(record), "block": block}
    environ = {**os.environ, **rank.environ}
    connection = _connect(rank, record, min(rank.deadline, time.monotonic() + _TOGETHER))
    if connection is None:
        return None
    try:
        connection.settimeout(max(_PAUSE, rank.deadline - time.monotonic()))
        connection.sendall(inputs.encode({"scheduler": orders, **inputs.of_this_rank(environ)}))
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


def _connect(rank: Rank, record: CoordinatorRecord, deadline: float) -> socket.socket | None:
    """Connect to the agent, under whichever of its names; rank 0 may be there before it."""
    node = rank.info.node
    public = agent_socket.socket_name(rank.info.run_id, node, rank.environ)
    if public is None:
        return None
    names = [public, agent_socket.secret_name(record.secret, node)]
    while time.monotonic() < deadline:
        for name in list(names):
            try:
                connection = agent_socket.connect(name)
            except agent_socket.StrangerError:
                names.remove(name)
                continue
            except OSError:
                return None
            if connection is not None:
                return _whole(connection)
        time.sleep(_PAUSE)
    return None


def _whole(connection: _socket.socket) -> socket.socket:
    """Give the socket with what Python adds to those in C."""
    return socket.socket(fileno=connection.detach())
