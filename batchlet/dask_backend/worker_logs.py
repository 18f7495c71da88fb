"""What the workers of a node say at level "warning" and above, on its way to rank 0.

A worker writes each line, at that moment, to a Unix socket of its host, which only the run's owner can open: what it has said
last is there however it dies, and a worker that says nothing has nothing to do with it. Who hosts the workers hands the lines
on, with what its Nannies say of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing.util
import select
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Nanny

from ..run_report.log_lines import NODE, RANK, Limits, LogLine, Ways
from .compat.dask_internals import child_processes, living
from .log_tap import LogTap

__all__ = ["VARIABLE", "NodeLogs", "all_in_one", "speak", "stop_speaking", "told"]

#: Tells a worker where its host listens, and who it is.
VARIABLE = "BATCHLET_WORKER_LOGS"
_HOST = "host of the workers"
# What may leave a worker, and a node.
_WORKER = Limits(50, 10.0, 20)
_NODE = Limits(500, 10.0, 50)
# Datagrams that are taken at once, before others have their turn, and the bytes of one: a line's characters take six at most.
_AT_ONCE, _LARGEST = 100, 1 << 16
# Seconds after which lines that had to wait are looked at again.
_TICK = 1.0
# Seconds that a line is worth.
_MOMENT = 0.02


def told(path: str, name: object, rank: int | None) -> str:
    """Give what `VARIABLE` is to tell a worker of this name."""
    return json.dumps([path, f"worker {name}", rank])


# In the worker


class _Speaker:
    """A worker's end."""

    def __init__(self, path: str, who: str, rank: int | None) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._lost = 0
        self._patient = True
        self.ways = Ways(self._send, _WORKER)
        self.tap = LogTap(self.ways.put, "", lambda _: (who, rank), refuses=self.ways.refuses)

    def _send(self, lines: list[LogLine], dropped: int) -> None:
        self._lost += dropped
        for line in lines:
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._socket.setblocking(False)
                    self._socket.connect(self._path)
                datagram = json.dumps([self._lost, *line]).encode()
                try:
                    self._socket.send(datagram)
                except BlockingIOError:
                    self._wait(self._socket)
                    self._socket.send(datagram)
                self._lost, self._patient = 0, True
            except OSError:
                # The host is busy, or gone.
                self._lost += 1

    def _wait(self, ours: socket.socket) -> None:
        """Wait a moment, since some systems let ten lines lie there and no more; not again for a host that does not work."""
        if self._patient:
            self._patient = bool(select.select([], [ours], [], _MOMENT)[1])


_speaker: _Speaker | None = None


def speak(words: str) -> None:
    """Have what this worker says from now on kept; `words` is what `told` has given."""
    global _speaker
    stop_speaking()
    _speaker = _Speaker(*json.loads(words))


def stop_speaking() -> None:
    """Say what still waits to be said, and no more."""
    global _speaker
    if _speaker is not None:
        _speaker.tap.close()
        _speaker.ways.drain()
        _speaker = None


# In its host


def all_in_one(logger: str) -> tuple[str, int | None] | None:
    """Say who speaks by a logger of Dask's in a process that is scheduler, client and host at once; see `LogTap`."""
    room, _, part = logger.partition(".")
    if room not in ("distributed", "tornado"):
        # The user's own.
        return None
    who = {"nanny": _HOST, "client": "client"}.get(part.partition(".")[0], "scheduler")
    return who, None


class NodeLogs:
    """The host's end: takes what its workers say, and what it says itself, and hands it on.

    Parameters
    ----------
    send : callable
        Gets lines, and how many were left out before them. May be called in any thread.
    node : str
        Name of this node.
    ranks : bool
        Whether the workers are those of this run's ranks.
    who : callable, optional
        Of this process itself; see `LogTap`.
    warn : bool
        Whether Python's warnings in this process are kept too.

    Attributes
    ----------
    path : str
        Of the socket; empty where there can be none.
    """

    def __init__(
        self,
        send: Callable[[list[LogLine], int], object],
        node: str,
        *,
        ranks: bool = True,
        who: Callable[[str], tuple[str, int | None] | None] = lambda _: (_HOST, None),
        warn: bool = True,
    ) -> None:
        self._node = node
        self._ranks = ranks
        self._ways = Ways(send, _NODE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        # As multiprocessing's own sockets; only its owner can reach it, and it goes with the run's scratch.
        self.path = tempfile.mktemp(prefix="logs-", dir=multiprocessing.util.get_temp_dir())  # noqa: S306
        try:
            self._socket.bind(self.path)
            Path(self.path).chmod(0o600)
        except OSError:
            self._socket.close()
            self._socket, self.path = None, ""
        self._tap = LogTap(
            self._ways.put,
            node,
            who,
            owner_of=self._owner_of,
            refuses=self._ways.refuses,
            warn=warn,
        )

    def listen(self) -> None:
        """Take from now on what workers say; in the event loop that is to do it."""
        self._loop = asyncio.get_running_loop()
        if self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._take)
        self._tick()

    def drain(self) -> None:
        """Hand on all that was said so far."""
        while self._take():
            pass
        self._ways.drain()

    def close(self) -> None:
        """Hand on all that was said, and take no more; in any thread, twice does no harm."""
        self._tap.close()
        self.drain()
        ours, self._socket = self._socket, None
        if ours is None:
            return
        with contextlib.suppress(OSError):
            Path(self.path).unlink()

        def end(loop: asyncio.AbstractEventLoop) -> None:
            if self._timer is not None:
                self._timer.cancel()
            loop.remove_reader(ours.fileno())
            ours.close()

        loop = self._loop
        if loop is not None and loop.is_running():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(end, loop)
                return
        if loop is not None and not loop.is_closed():
            end(loop)
        ours.close()

    def _take(self) -> bool:
        """Take what workers have said; whether there may be more."""
        ours = self._socket
        if ours is None:
            return False
        for _ in range(_AT_ONCE):
            try:
                lost, *line = json.loads(ours.recv(_LARGEST))
                line[RANK] = line[RANK] if self._ranks else None
                line[NODE] = self._node
                if lost:
                    self._ways.lose(int(lost))
                self._ways.put(line)
            except OSError:
                return False
            except (ValueError, TypeError, IndexError):
                continue
        return True

    def _tick(self) -> None:
        self._ways.tick()
        if self._loop is not None and self._socket is not None:
            self._timer = self._loop.call_later(_TICK, self._tick)

    def _owner_of(self, pid: int) -> tuple[str, int | None] | None:
        """Say which worker a process of one of our Nannies is, or was until a moment ago."""
        for nanny in living(Nanny):
            if any(process.pid == pid for process in child_processes(nanny)):
                return _named(nanny, ranks=self._ranks)
        return None


def _named(nanny: Any, *, ranks: bool) -> tuple[str, int | None]:
    """Say what its worker is called, as that was told itself."""
    with contextlib.suppress(AttributeError, ValueError, TypeError, KeyError):
        _, who, rank = json.loads(nanny.env[VARIABLE])
        return str(who), rank if ranks else None
    return f"worker {nanny.name}", None
