"""The ranks of one node share one host for their workers; this is how they find it, and what they do meanwhile: nothing.

The first rank that comes binds a Unix socket named after the run and the node, and starts the host, which listens on it. Every
rank, the first one included, then takes a *seat*: it connects, says who it is, and waits for the end. While it waits it is a
few megabytes of Python that use no CPU; the connection tells the host at once when it dies, and it when the host dies.

The socket has a name in Linux' abstract namespace: no file that a killed run leaves behind. Anybody could bind that name, so
both sides ask the kernel whose process the other one is. Where the name is taken by somebody else, and on systems without such
sockets, every rank starts a host of its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import ClusterLostError, StartTimeoutError
from .orders import HostOrders, start

__all__ = ["Seat", "facts", "peer_is_ours", "socket_name"]

_PAUSE = 0.005
_BACKLOG = 4096
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
# How often a rank looks for a host again whose predecessor has died before it had answered.
_TRIES = 2


def socket_name(run_id: str, node: str) -> bytes | None:
    """Name of the socket of a node's host; `None` where the system has no such sockets."""
    if not sys.platform.startswith("linux"):
        return None
    text = f"{os.geteuid()}\n{run_id}\n{node}"
    return b"\0batchlet-" + hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def peer_is_ours(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is this user's."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())


def facts() -> dict[str, Any]:
    """What of this process decides where its workers may live: its interpreter, its cgroups, its CPUs."""
    try:
        cgroups = Path("/proc/self/cgroup").read_text()
    except OSError:
        cgroups = ""
    return {
        "python": [sys.executable, sys.prefix, sys.version],
        # Slurm's innermost level is for accounting, one for each task.
        "cgroups": re.sub(r"/task_\d+$", "", cgroups, flags=re.MULTILINE),
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
    }


class Seat:
    """A rank's place at the host of its node.

    Parameters
    ----------
    name : bytes, optional
        The host's socket; `None` for a host of this rank's own.
    hello : callable
        Gives what this rank says of itself, as soon as it can.
    orders : callable
        Makes the orders of a host, from the number of the file descriptor and whether that is listened on.
    deadline : float
        Until when the host must have answered, in seconds of `time.monotonic`.
    stop_timeout : float
        Seconds that the host has to end, once it has said that the run is over.
    """

    def __init__(
        self,
        name: bytes | None,
        hello: Callable[[], Mapping[str, Any]],
        orders: Callable[[int, bool], HostOrders],
        deadline: float,
        stop_timeout: float,
    ) -> None:
        self._name = name
        self._hello = hello
        self._orders = orders
        self._deadline = deadline
        self._stop_timeout = stop_timeout
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent: list[int] = []

    def hold(self) -> int:
        """Take the seat and keep it until the run is over.

        Returns
        -------
        int
            The exit code for this rank.

        Raises
        ------
        StartTimeoutError
            If the host does not answer by the deadline.
        ClusterLostError
            If the host ends before it has answered.
        """
        for _ in range(_TRIES):
            self._take()
            try:
                message = self._converse()
                if message is not None and message["op"] == "own":
                    self._let_go()
                    self._name = None
                    self._take()
                    message = self._converse()
                if message is not None:
                    return int(message.get("code", 0))
            finally:
                self._let_go()
        raise ClusterLostError("The host of this node's workers ended while it started; its output says why.")

    def signalled(self, number: int) -> None:
        """Tell of a signal that this rank got and that is meant for the client."""
        try:
            assert self._socket is not None
            self._send({"op": "signalled", "number": number})
        except (AssertionError, OSError):
            self._unsent.append(number)

    def _take(self) -> None:
        """Connect to the host, and start it if there is none."""
        self._socket, listener = self._meet() if self._name is not None else (None, None)
        if self._socket is None:
            self._socket, theirs = socket.socketpair()
        elif listener is None:
            return
        else:
            theirs = listener
        with theirs:
            self._process = start(self._orders(theirs.fileno(), listener is not None), theirs.fileno())

    def _meet(self) -> tuple[socket.socket | None, socket.socket | None]:
        """Connect to the node's socket; who binds it first gets it as well."""
        assert self._name is not None
        while True:
            listener: socket.socket | None = socket.socket(socket.AF_UNIX)
            assert listener is not None
            try:
                listener.bind(self._name)
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                listener = None
                if error.errno != errno.EADDRINUSE:
                    return None, None
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._name)
            except ConnectionRefusedError:
                # Between another rank's bind and its listen, or after the end of a host.
                connection.close()
                if time.monotonic() > self._deadline:
                    return None, None
                time.sleep(_PAUSE)
                continue
            if peer_is_ours(connection):
                return connection, listener
            connection.close()
            return None, None

    def _converse(self) -> Mapping[str, Any] | None:
        """Talk with the host until it has a last word; `None` if it ends before it has answered at all."""
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._send({"op": "hello", **self._hello()})
            for number in self._unsent:
                self._send({"op": "signalled", "number": number})
        lines = _Lines(self._socket)
        answer: Mapping[str, Any] | None = None
        while True:
            try:
                self._socket.settimeout(max(_PAUSE, self._deadline - time.monotonic()) if answer is None else None)
                message = lines.receive()
            except TimeoutError:
                raise StartTimeoutError(
                    "The host of this node's workers said nothing in time (start_timeout)."
                ) from None
            if message is None:
                # The host died after all had begun: rank 0 says so, and whether the run goes on.
                return {"op": "end", "code": 0} if answer is not None else None
            if message["op"] in ("own", "end"):
                return message
            answer = message

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._socket is not None
        self._socket.settimeout(None)
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _let_go(self) -> None:
        """Give the seat up, and see the host end if this rank has started it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(self._stop_timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class _Lines:
    """Reads a socket line by line, without a file object, whose lock a signal handler could meet."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def receive(self) -> Mapping[str, Any] | None:
        """Read a message; `None` when the connection has ended."""
        while b"\n" not in self._buffer:
            try:
                part = self._connection.recv(65536)
            except ConnectionError:
                return None
            if not part:
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Mapping[str, Any] = json.loads(line)
        return message
