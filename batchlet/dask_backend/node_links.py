"""Links inside a node: Unix sockets in the place of TLS between the processes of one run on one host.

TLS over the loopback costs half of what a host's memory can carry, and hides nothing: who can read along there is root or the
user. So each process that listens by TLS listens on a Unix socket too, and who wants to connect looks for that first. It lives
in Linux' abstract namespace, which belongs to the network namespace as the port does: a socket that is found is on this host,
and nothing is left on disk. Anybody can bind or connect to a name there. Therefore:

- both sides ask the kernel whose process the other one is, before they say or hear anything, and hang up on strangers;
- both sides prove by HMAC that they know the run's private key, as in TLS: another run of the same user does not get in.

Whatever is not as it should be, a name that somebody else has taken included, leads back to TLS.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import socket
import sys
from typing import Any

from ..node.agent_socket import user_of_peer
from ..security import Credentials

__all__ = ["NodeLinks"]

_NONCE = 32
_PROOF = hashlib.sha256().digest_size
# Seconds that who has connected may take to prove who they are: of the same user, and perhaps stopped.
_PATIENCE = 30.0


class NodeLinks:
    """The links of one run; see `batchlet.dask_backend.compat.tls_backend.Links`.

    Parameters
    ----------
    credentials : Credentials
        The run's.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._key = hashlib.sha256(b"batchlet node links\n" + credentials.key.encode()).digest()

    def listen(self, host: str, port: int, backlog: int) -> socket.socket | None:
        """Listen for those who would connect to this host and port; `None` where the name is taken, or none can be had."""
        if not sys.platform.startswith("linux"):
            return None
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.setblocking(False)
            listener.bind(self._name(host, port))
            listener.listen(backlog)
        except OSError:
            listener.close()
            return None
        return listener

    def connect(self, host: str, port: int) -> socket.socket | None:
        """Connect to who listens for that host and port; `None` if there is nobody, or no room, or it is a stranger."""
        if not sys.platform.startswith("linux"):
            return None
        connection = socket.socket(socket.AF_UNIX)
        try:
            # Otherwise it would wait without a limit where a queue is full.
            connection.setblocking(False)
            connection.connect(self._name(host, port))
        except OSError:
            connection.close()
            return None
        if not self.may_enter(connection):
            connection.close()
            return None
        return connection

    def may_enter(self, connection: socket.socket) -> bool:
        """Whether who is at the other end is a process of this user, by the kernel's word."""
        return user_of_peer(connection) == os.geteuid()

    async def enter(self, stream: Any) -> bool:
        """Prove to who listens that this process knows the run's key, and see their proof; for as long as Dask lets it take."""
        ours = secrets.token_bytes(_NONCE)
        await stream.write(ours)
        answer = await stream.read_bytes(_NONCE + _PROOF)
        theirs, proof = answer[:_NONCE], answer[_NONCE:]
        if not hmac.compare_digest(proof, self._proof(b"listens", ours, theirs)):
            return False
        await stream.write(self._proof(b"connects", ours, theirs))
        return True

    async def admit(self, stream: Any) -> bool:
        """See to it that who has connected knows the run's key, and prove the same to them."""
        try:
            return await asyncio.wait_for(self._admit(stream), _PATIENCE)
        except (asyncio.TimeoutError, TimeoutError):
            return False

    async def _admit(self, stream: Any) -> bool:
        theirs = await stream.read_bytes(_NONCE)
        ours = secrets.token_bytes(_NONCE)
        await stream.write(ours + self._proof(b"listens", theirs, ours))
        proof = await stream.read_bytes(_PROOF)
        return hmac.compare_digest(proof, self._proof(b"connects", theirs, ours))

    def _name(self, host: str, port: int) -> bytes:
        """Name of the socket beside a port: another one for each run, and nobody can guess it who does not know the key."""
        digest = hmac.new(self._key, f"{os.geteuid()} {host} {port}".encode(), hashlib.sha256).hexdigest()
        return b"\0batchlet-link-" + digest[:32].encode()

    def _proof(self, side: bytes, first: bytes, second: bytes) -> bytes:
        return hmac.new(self._key, side + first + second, hashlib.sha256).digest()
