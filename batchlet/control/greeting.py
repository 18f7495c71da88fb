"""What both ends of a connection say at first, and how each notices the other's end; without asyncio.

A connection begins with both sides proving, by HMAC over the other's random challenge, that they know the run's secret, which
never crosses the network; a rank that has proved it is told the run's private key.

TCP's own keep-alive finds a peer whose node or network has gone without a word: the kernel answers it, so that user code
which holds Python's interpreter for minutes does not look dead.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket

from .messages import Hello
from .wire import decode_object, encode

__all__ = ["PEER_TIMEOUT", "Introduction", "ProtocolError", "keep_alive", "line", "proof", "same"]

# Seconds after which a peer that the network no longer reaches counts as lost.
PEER_TIMEOUT = 15.0


class ProtocolError(Exception):
    """The other side is not of this run."""


class Introduction:
    """What a rank says that connects to the coordinator, and what it expects to hear.

    Parameters
    ----------
    secret : str
        The run's.
    hello : Hello
        Who connects.
    """

    def __init__(self, secret: str, hello: Hello) -> None:
        self._secret = secret
        self._hello = hello
        self._challenge = secrets.token_hex(16)

    def answer(self, said: bytes | None) -> bytes:
        """Answer the coordinator's first line.

        Raises
        ------
        ProtocolError
            If it is none.
        """
        first = decode_object(said) if said is not None else None
        if first is None:
            raise ProtocolError
        proved = proof(self._secret, "rank", str(first.get("challenge")))
        return encode(self._hello, proof=proved, challenge=self._challenge)

    def key(self, said: bytes | None) -> str:
        """Give the run's private key, empty where there is no TLS, out of the coordinator's second line.

        Raises
        ------
        ProtocolError
            If the other side does not know the run's secret.
        """
        answer = decode_object(said) if said is not None else None
        if answer is None or not same(answer.get("proof"), proof(self._secret, "coordinator", self._challenge)):
            raise ProtocolError
        return str(answer.get("key") or "")


def line(**content: str) -> bytes:
    """Write what only the handshake says."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def proof(secret: str, side: str, challenge: str) -> str:
    """Prove to know the secret."""
    return hmac.new(bytes.fromhex(secret), f"{side}:{challenge}".encode(), hashlib.sha256).hexdigest()


def same(given: object, needed: str) -> bool:
    """Compare what somebody has said with what was needed, without telling by the time that it takes."""
    return hmac.compare_digest(str(given).encode(errors="replace"), needed.encode())


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice when the other side is gone without a word."""
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
