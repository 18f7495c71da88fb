"""The coordinator's port: lets in who belongs to the run, and is not held up by anybody else.

Whoever can reach the port can connect to it, and say nothing, or rubbish. Those who have not proved yet that they know the
run's secret have a few seconds, and there are never more of them than the ranks of the run could need: the oldest goes when
another one comes. Of those who have proved it nobody is ever sent away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable

from .. import open_files
from ..security import Credentials
from .greeting import ProtocolError
from .handshake import LIMIT, UNPROVED_TIMEOUT, accept, time_limit
from .messages import Hello

__all__ = ["Admit", "Door"]

# Connections that may wait to be accepted: all ranks come at the same moment.
_BACKLOG = 4096
# Connections that are accepted before anybody is listened to again.
_AT_ONCE = 8
# Seconds that even the oldest of too many connections has had at least: a rank needs a hundredth where nothing is slow.
_LEAST = 0.05
# How a TLS connection begins: a record of the handshake, of any version; and seconds to wait for the rest of that record.
_TLS = b"\x16\x03"
_PEEK = 0.01
# Seconds to wait for a file to become free.
_PAUSE = 0.05
# What `accept` says when there are no more files, or no memory for one.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Admit = Callable[[Hello, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Door:
    """A port on which the ranks of a run come in.

    Parameters
    ----------
    host : str
        Address to listen on, of IPv4 or IPv6; the port is chosen by the system.
    secret : str
        The run's secret.
    credentials : Credentials, optional
        For TLS.
    ranks : int
        How many may come at one moment.
    admit : callable
        A coroutine function that gets the hello of one who has proved to be of this run, and its connection for as long as
        it runs.
    """

    def __init__(self, host: str, secret: str, credentials: Credentials | None, ranks: int, admit: Admit) -> None:
        self._secret = secret
        self._context = credentials.coordinator_context() if credentials is not None else None
        self._key = credentials.key if credentials is not None else ""
        self._ranks = ranks
        self._admit = admit
        # Those who have not proved who they are, the oldest first, and since when they have been here.
        self._unproved: dict[asyncio.Task[None], float] = {}
        # All of them, and the socket of one that has not begun yet, which nobody else would close.
        self._tasks: dict[asyncio.Task[None], socket.socket | None] = {}
        self._fewer = asyncio.Event()
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        self._socket.bind(address)
        self._socket.listen(_BACKLOG)
        self.port = int(self._socket.getsockname()[1])

    async def run(self) -> None:
        """Let in who comes, until this is cancelled."""
        loop = asyncio.get_running_loop()
        accepted = 0
        while True:
            await self._make_room()
            try:
                connection = await self._accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._send_away_oldest()
                    await asyncio.sleep(_PAUSE)
                continue
            task = loop.create_task(self._greet(connection))
            self._unproved[task] = loop.time()
            self._tasks[task] = connection
            task.add_done_callback(self._forget)
            accepted += 1
            if accepted % _AT_ONCE == 0:
                # Where many wait to be accepted, `_accept` does not wait, and nothing else would be done.
                await asyncio.sleep(0)

    def close(self) -> None:
        """Listen no more, and send away who has not proved anything; `run` must have ended."""
        self._socket.close()
        for task in self._unproved:
            task.cancel()

    async def _accept(self) -> socket.socket:
        """Wait for somebody to connect. With `loop.sock_accept` a connection could be lost when this is cancelled."""
        while True:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                return connection
            await _readable(self._socket)

    async def _make_room(self) -> None:
        """Wait until one more may come in, for a moment at most."""
        loop = asyncio.get_running_loop()
        while len(self._unproved) >= open_files.for_strangers(self._ranks):
            rest = next(iter(self._unproved.values())) + _LEAST - loop.time()
            if rest <= 0:
                self._send_away_oldest()
                return
            self._fewer.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._fewer.wait(), rest)

    def _send_away_oldest(self) -> None:
        for task in self._unproved:
            task.cancel()
            self._proved(task)
            break

    def _proved(self, task: asyncio.Task[None]) -> None:
        """Count one less of those who have proved nothing."""
        self._unproved.pop(task, None)
        self._fewer.set()

    def _forget(self, task: asyncio.Task[None]) -> None:
        connection = self._tasks.pop(task)
        if connection is not None:
            connection.close()
        self._proved(task)

    async def _greet(self, connection: socket.socket) -> None:
        """Find out who has connected; in a task of its own, which goes on for as long as a rank of the run is there."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        reader = asyncio.StreamReader(limit=LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        begun, transport = False, None
        try:
            async with time_limit(UNPROVED_TIMEOUT):
                if self._context is not None:
                    await _begins_tls(connection)
                begun = True
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=UNPROVED_TIMEOUT if self._context is not None else None,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                hello = await accept(reader, writer, self._secret, self._key)
        except (OSError, ProtocolError, asyncio.CancelledError):
            # Not raised on: asyncio would print the end of a task that we end ourselves.
            if transport is not None:
                # Not closed in good order: over TLS that would wait for the other side.
                transport.abort()
            elif not begun:
                connection.close()
            return
        self._proved(task)
        try:
            await self._admit(hello, reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()


async def _begins_tls(connection: socket.socket) -> None:
    """Wait until the other side, which speaks first with TLS, has said all that it has to say before an answer.

    Most strangers do not come as far, and are not worth the quarter of a MiB that asyncio has ready for its answer.
    """
    await _readable(connection)
    pause = _PEEK
    while True:
        head = connection.recv(len(_TLS) + 3, socket.MSG_PEEK)
        if not head or not head.startswith(_TLS[: len(head)]):
            raise ProtocolError
        # Type, version, and the length of the rest.
        needed = len(_TLS) + 3 + int.from_bytes(head[-2:], "big")
        if len(head) == len(_TLS) + 3 and len(connection.recv(needed, socket.MSG_PEEK)) == needed:
            return
        # What has come stays there to be read, so that there is no news to wait for.
        await asyncio.sleep(pause)
        pause *= 2


async def _readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or to accept."""
    loop = asyncio.get_running_loop()
    something = loop.create_future()
    number = connection.fileno()
    # Only while this waits: there is no end of news where nobody reads.
    loop.add_reader(number, _set, something)
    try:
        await something
    finally:
        loop.remove_reader(number)


def _set(something: asyncio.Future[None]) -> None:
    if not something.done():
        something.set_result(None)
