"""The socket of a node's agent: its names, and connecting to it without ever waiting for a stranger.

It lives in Linux' abstract namespace: no file that a killed run leaves behind. Anybody can bind a name there, so both sides ask
the kernel whose process the other one is. Like `batchlet.node.attach` this module imports next to nothing.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys
import time

from ..launch_variables import SLURM_STEP_ID, SLURM_STEP_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StrangerError", "connect", "meet", "secret_name", "socket_name", "user_of_peer"]

_PAUSE = 0.005
_BACKLOG = 4096
# Seconds within which a name that somebody has bound is listened on, and a connection finds room in the queue.
_STRANGER = 1.5
# The longest name that Linux takes, less the zero byte at the beginning.
_LONGEST_NAME = 107


class StrangerError(Exception):
    """The name of the agent's socket is another user's.

    Parameters
    ----------
    user : int, optional
        Number of that user, where somebody has answered.
    """

    def __init__(self, user: int | None = None) -> None:
        super().__init__(user)
        self.user = user


def socket_name(run_id: str, node: str, environ: Mapping[str, str]) -> bytes | None:
    """Name of the socket of a node's agent; `None` where the system has no such sockets."""
    if not sys.platform.startswith("linux"):
        return None
    # Known before anything of Slurm's variables has been understood.
    parts = [environ.get(name, "") for name in SLURM_STEP_NAMES] if SLURM_STEP_ID in environ else [run_id, node]
    name = "-".join(["batchlet", str(os.geteuid()), *parts])
    if len(name) > _LONGEST_NAME:
        import hashlib

        name = "batchlet-" + hashlib.sha256(name.encode()).hexdigest()
    return b"\0" + name.encode()


def secret_name(secret: str, node: str) -> bytes:
    """Name of the socket where `socket_name` is taken: nobody can guess it who does not know the run's secret."""
    import hashlib
    import hmac

    return (
        b"\0batchlet-" + hmac.new(bytes.fromhex(secret), f"agent:{node}".encode(), hashlib.sha256).hexdigest().encode()
    )


def user_of_peer(connection: _socket.socket) -> int:
    """Number of the user whose process is at the other end of a Unix socket, by the kernel's word."""
    if not hasattr(_socket, "SO_PEERCRED"):
        return os.geteuid()
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # pid, uid, gid: three ints
    return int.from_bytes(credentials[4:8], sys.byteorder)


def connect(name: bytes) -> _socket.socket | None:
    """Connect to a socket; `None` if nobody listens there, or its queue is full.

    Raises
    ------
    StrangerError
        If it is another user's.
    """
    connection = _socket.socket(_socket.AF_UNIX)
    # Connecting to a socket whose queue is full would wait without a limit.
    connection.setblocking(False)
    try:
        connection.connect(name)
    except OSError as error:
        connection.close()
        if error.errno in (errno.ECONNREFUSED, errno.EAGAIN):
            return None
        raise
    if (user := user_of_peer(connection)) != os.geteuid():
        connection.close()
        raise StrangerError(user)
    connection.setblocking(True)
    return connection


def meet(name: bytes) -> tuple[_socket.socket, _socket.socket | None]:
    """Connect to the socket of a name, and bind it first if nobody has.

    Returns
    -------
    connection, listener : socket
        The connection, and the socket itself for the rank that has bound it.

    Raises
    ------
    StrangerError
        If the name is another user's: that shows when somebody answers, and nobody of ours does not answer for so long.
    """
    until = time.monotonic() + _STRANGER
    while True:
        listener: _socket.socket | None = _socket.socket(_socket.AF_UNIX)
        assert listener is not None
        try:
            listener.bind(name)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            listener = None
            if error.errno != errno.EADDRINUSE:
                raise
        # Refused between another rank's bind and its listen, or after the end of an agent.
        connection = connect(name)
        if connection is not None:
            return connection, listener
        if time.monotonic() > until:
            raise StrangerError
        time.sleep(_PAUSE)
