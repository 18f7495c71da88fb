"""How a process of a run and the coordinator on rank 0 get to know each other, over TLS.

By TLS a rank knows the coordinator; the coordinator knows a rank by its words alone (`batchlet.control.greeting`), since a rank
does not have the run's private key before the coordinator tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import ssl
from typing import Any

from .greeting import Introduction, ProtocolError, keep_alive, line, proof, same
from .messages import Hello, Message
from .wire import decode, decode_object

__all__ = [
    "LIMIT",
    "UNPROVED_TIMEOUT",
    "accept",
    "connect",
    "is_cut_off",
    "receive",
    "run_loop",
    "time_limit",
]

# Bytes of one message; the largest is a plan of some thousand workers.
LIMIT = 1 << 22
# Bytes of the first one, a hello, for which anybody who connects can have the coordinator wait.
_FIRST_LIMIT = 1 << 16
# Seconds that somebody who has connected has to prove that it is of this run; a rank that is too slow comes again.
UNPROVED_TIMEOUT = 5.0
# Seconds that a rank gives the coordinator, which may have many to let in.
_HANDSHAKE_TIMEOUT = 10.0

_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)


def run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run an event loop in this thread until it is stopped, then end its tasks and close it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    finally:
        loop.close()


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """Read a message; `None` when the connection has ended, in whatever way."""
    said = await _receive_line(reader)
    return decode(said) if said is not None else None


def is_cut_off(reader: asyncio.StreamReader) -> bool:
    """Whether a connection has ended because the network does not reach the other side any more: its kernel says nothing."""
    error = reader.exception()
    return isinstance(error, OSError) and error.errno in _UNREACHABLE


async def _receive_line(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readline()
    except (OSError, ValueError):
        return None


async def _receive_first(reader: asyncio.StreamReader) -> bytes | None:
    """Read the first line of somebody who may be a stranger, and keep no more of it in memory than a hello needs."""
    said = b""
    try:
        while not said.endswith(b"\n") and (part := await reader.read(_FIRST_LIMIT - len(said))):
            said += part
    except OSError:
        return None
    return said


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str, key: str) -> Hello:
    """Let a rank in that knows the secret, and tell it the run's private key; who calls this sets the time limit.

    Returns
    -------
    Hello
        Who it is.

    Raises
    ------
    ProtocolError
        If the other side does not know the secret.
    """
    challenge = secrets.token_hex(16)
    writer.write(line(op="challenge", challenge=challenge))
    said = await _receive_first(reader)
    words = decode_object(said) if said is not None else None
    if said is None or words is None or not same(words.get("proof"), proof(secret, "rank", challenge)):
        raise ProtocolError
    hello = decode(said)
    if not isinstance(hello, Hello):
        raise ProtocolError
    ours = proof(secret, "coordinator", str(words.get("challenge")))
    writer.write(line(op="accepted", proof=ours, key=key))
    keep_alive(writer.get_extra_info("socket"))
    return hello


async def connect(
    host: str, port: int, secret: str, hello: Hello, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """Connect to the coordinator of the run.

    Returns
    -------
    reader, writer, key : StreamReader, StreamWriter, str
        The connection, and the run's private key; empty where there is no TLS.

    Raises
    ------
    ProtocolError
        If what listens there is not the coordinator of this run.
    OSError
        If nothing listens there.
    """
    introduction = Introduction(secret, hello)
    async with time_limit(_HANDSHAKE_TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port, limit=LIMIT, ssl=context)
        try:
            writer.write(introduction.answer(await _receive_line(reader)))
            key = introduction.key(await _receive_line(reader))
        except BaseException:
            writer.close()
            raise
    keep_alive(writer.get_extra_info("socket"))
    return reader, writer, key


@contextlib.asynccontextmanager
async def time_limit(seconds: float) -> Any:
    """`asyncio.timeout` for Python 3.10 too; its end is a `ProtocolError`."""
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    handle = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if expired:
            raise ProtocolError("it said nothing in time") from None
        raise
    finally:
        handle.cancel()
