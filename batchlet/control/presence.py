"""That the client is there, for rank 0 to know while the script has not come to its first block: a connection, and no more.

It has neither a thread nor an event loop: the kernel closes it with the process, however that ends. What rank 0 says there
meanwhile waits to be read.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable

from ..errors import ClusterLostError, EndError, error_named
from ..rendezvous.base import CoordinatorRecord
from ..security import pinned
from .greeting import Introduction, ProtocolError, keep_alive
from .messages import Closed, Failed, Hello
from .wire import decode, encode

__all__ = ["Presence"]

# Seconds that the coordinator, which may have many to let in, has for each of its answers.
_ANSWER = 10.0
_RETRY = 0.2
_PART = 1 << 16


class Presence:
    """The connection.

    Parameters
    ----------
    record : CoordinatorRecord
        Where rank 0 is.
    hello : Hello
        Who this process is.
    deadline : float
        Until when connecting may take, in seconds of `time.monotonic`.
    latest : callable
        Looks for a newer record when nobody listens where this one says.

    Attributes
    ----------
    record : CoordinatorRecord
        The one that has led there.
    told : bool
        Whether rank 0 has said why the run has failed; once `failure` has been asked.

    Raises
    ------
    OSError, ProtocolError
        If rank 0 could not be reached by the deadline.
    """

    def __init__(
        self, record: CoordinatorRecord, hello: Hello, deadline: float, latest: Callable[[], CoordinatorRecord | None]
    ) -> None:
        self.told = False
        self._said = b""
        while True:
            self.record = record
            try:
                self._socket = _connect(record, hello)
                return
            except (OSError, ProtocolError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY)
            record = latest() or record

    def failure(self) -> EndError | None:
        """Say what has ended the run, if rank 0 has said so, or is gone."""
        gone = False
        try:
            self._socket.settimeout(0.0)
            while part := self._socket.recv(_PART):
                self._said += part
            gone = True
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            gone = True
        for line in self._said.splitlines(keepends=True):
            message = decode(line)
            if isinstance(message, Failed):
                self.told = True
                return error_named(message.kind, message.message)
        lost = (
            f"Rank 0 on node {self.record.node}, the coordinator, was lost before the script had started its cluster."
        )
        return ClusterLostError(lost) if gone else None

    def close(self, *, farewell: bool) -> None:
        """End the connection; with a `farewell` if this process leaves the run."""
        with contextlib.suppress(OSError):
            if farewell:
                self._socket.settimeout(_ANSWER)
                self._socket.sendall(encode(Closed()))
        self._socket.close()


def _connect(record: CoordinatorRecord, hello: Hello) -> socket.socket:
    connection = socket.create_connection((record.host, record.port), timeout=_ANSWER)
    try:
        if record.certificate:
            connection = pinned(record.certificate).wrap_socket(connection)
        introduction = Introduction(record.secret, hello)
        # No more than one line comes before the next answer of ours.
        connection.sendall(introduction.answer(_line(connection)))
        introduction.key(_line(connection))
        keep_alive(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _line(connection: socket.socket) -> bytes:
    """Read a line, byte by byte: what comes after it is for later."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1)
        if not part:
            raise ProtocolError
        line += part
    return line
