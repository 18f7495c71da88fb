"""How a process of a run and the coordinator on rank 0 get to know each other, over TLS.

By TLS a rank knows the coordinator; the coordinator knows a rank by its words alone, since a rank does not have the run's
private key before the coordinator tells it. A connection begins with both sides proving, by HMAC over the other's random
challenge, that they know the run's secret, which never crosses the network; a rank that has proved it is told the key.

TCP's own keep-alive finds a peer whose node or network has gone without a word: the kernel answers it, so that user code
which holds Python's interpreter for minutes does not look dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import ssl
from typing import Any

from .messages import Hello, Message, decode, decode_object, encode

__all__ = [
    "LIMIT",
    "PEER_TIMEOUT",
    "UNPROVED_TIMEOUT",
    "ProtocolError",
    "accept",
    "connect",
    "receive",
    "run_loop",
    "time_limit",
]

# Bytes of one message; the largest is a plan of some thousand workers.
LIMIT = 1 << 22
# Bytes of the first one, a hello, for which anybody who connects can have the coordinator wait.
_FIRST_LIMIT = 1 << 16
# Seconds after which a peer that the network no longer reaches counts as lost.
PEER_TIMEOUT = 15.0
# Seconds that somebody who has connected has to prove that it is of this run; a rank that is too slow comes again.
UNPROVED_TIMEOUT = 5.0
# Seconds that a rank gives the coordinator, which may have many to let in.
_HANDSHAKE_TIMEOUT = 10.0


class ProtocolError(Exception):
    """The other side is not of this run."""


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
    line = await _receive_line(reader)
    return decode(line) if line is not None else None


async def _receive_line(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readline()
    except (OSError, ValueError):
        return None


async def _receive_object(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    line = await _receive_line(reader)
    return decode_object(line) if line is not None else None


async def _receive_first(reader: asyncio.StreamReader) -> bytes | None:
    """Read the first line of somebody who may be a stranger, and keep no more of it in memory than a hello needs."""
    line = b""
    try:
        while not line.endswith(b"\n") and (part := await reader.read(_FIRST_LIMIT - len(line))):
            line += part
    except OSError:
        return None
    return line


def _line(**content: str) -> bytes:
    """Write what only the handshake says."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _proof(secret: str, side: str, challenge: str) -> str:
    return hmac.new(bytes.fromhex(secret), f"{side}:{challenge}".encode(), hashlib.sha256).hexdigest()


def _same(given: object, needed: str) -> bool:
    return hmac.compare_digest(str(given).encode(errors="replace"), needed.encode())


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
    writer.write(_line(op="challenge", challenge=challenge))
    line = await _receive_first(reader)
    words = decode_object(line) if line is not None else None
    if line is None or words is None or not _same(words.get("proof"), _proof(secret, "rank", challenge)):
        raise ProtocolError
    hello = decode(line)
    if not isinstance(hello, Hello):
        raise ProtocolError
    proof = _proof(secret, "coordinator", str(words.get("challenge")))
    writer.write(_line(op="accepted", proof=proof, key=key))
    _keep_alive(writer)
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
    challenge = secrets.token_hex(16)
    async with time_limit(_HANDSHAKE_TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port, limit=LIMIT, ssl=context)
        try:
            first = await _receive_object(reader)
            if first is None:
                raise ProtocolError
            proof = _proof(secret, "rank", str(first.get("challenge")))
            writer.write(encode(hello, proof=proof, challenge=challenge))
            answer = await _receive_object(reader)
            if answer is None or not _same(answer.get("proof"), _proof(secret, "coordinator", challenge)):
                raise ProtocolError
        except BaseException:
            writer.close()
            raise
    _keep_alive(writer)
    return reader, writer, str(answer.get("key") or "")


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


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 5),
        ("TCP_USER_TIMEOUT", int(PEER_TIMEOUT * 1000)),
    ):
        if hasattr(socket, option):  # Linux has all of them, macOS some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
