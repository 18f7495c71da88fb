"""What an agent leaves to the one that takes its place if it dies: all that has to be known to start that one.

It stands in a file in memory, which has no name. The rank that starts an agent has written the agent's orders there
(`batchlet.node.inputs.for_agent`); the agent adds what it learns and hands the file to each rank that attaches, which holds it
while it waits. When the agent dies its ranks attach again as they did at first, by `batchlet.node.attach`, with the orders from
the file: so one of them starts the next agent, which brings the workers back under their names and addresses.

Each message in the file is one of `batchlet.node.inputs`; later ones replace the words of earlier ones. Like
`batchlet.node.attach` this module imports next to nothing.
"""

from __future__ import annotations

import _socket
import errno
import os
import sys
import time

from . import agent_socket
from .inputs import LENGTH, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["MOST", "Handover", "how_it_ended", "inherit", "is_over", "launch_of", "read_all", "received"]

#: How many agents may follow the first one.
MOST = 3
# Seconds that a new agent has at least to be in touch with rank 0.
_LEAST = 30.0
# Seconds that another agent takes beside the import of Dask, and how many times as long as the last time that may take.
_SOON, _SLOWER = 8.0, 4.0
# Seconds to find out whether rank 0 is still there.
_KNOCK = 2.0
_ACCEPTED = b"accepted\n"
# Bytes of a file descriptor.
_ONE_DESCRIPTOR = 4
# Begins the words that are ports of workers, by name.
_PORT = "port "


class Handover:
    """The agent's end.

    Parameters
    ----------
    orders : mapping
        Its own orders; those of an agent in another one's place have the other one's words in them.
    """

    def __init__(self, orders: Mapping[str, Any]) -> None:
        self._began = time.monotonic()
        self._number = int(orders.get("number", 0))
        #: What those before this one were called.
        self.before: list[str] = list(orders.get("agents", ()))
        self._ports = dict(orders.get("ports", {}))
        self._file: int | None = None
        self._end = 0
        # Where the words of a block begin, and how many blocks there were.
        self._block, self._blocks = 0, 0
        # Where they are in memory, the orders are on standard input, which is not to be closed by anybody.
        if hasattr(os, "memfd_create") and _is_file(0):
            self._file = os.dup(0)
            self._block = self._end = os.fstat(0).st_size

    @property
    def number(self) -> int:
        """How many agents there were before this one."""
        return self._number

    @property
    def seconds(self) -> int:
        """Seconds in which another agent would be in touch with rank 0 if this one died now; 0 if there will be none."""
        if self._file is None or self._number >= MOST:
            return 0
        # Where importing Dask has taken long, it may take longer the next time.
        return int(_SOON + _SLOWER * (time.monotonic() - self._began))

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports of the workers that the agent before this one had, by name."""
        return self._ports

    def keep(self, **words: object) -> None:
        """Add words."""
        if self._file is not None:
            message = encode(words)
            # A killed process may have written half of it: that is no message.
            os.pwrite(self._file, message, self._end)
            self._end += len(message)
            self._block = self._end

    def keep_name(self, name: str) -> None:
        """Add what this agent is called by rank 0, which may hear of it or not."""
        self.keep(agents=[*self.before, name])

    def keep_record(self, record: Any, node: str) -> None:
        """Add where rank 0 is; called when this process is in touch with it."""
        from dataclasses import asdict

        other = agent_socket.secret_name(record.secret, node)
        self.keep(record=asdict(record), other_name=other, within=self.seconds)

    def begin_block(self) -> None:
        """Forget the ports of the block before."""
        self._blocks += 1
        if self._blocks > 1 and self._ports:
            self._ports = {}
            self.keep(ports={})
        if self._file is not None:
            os.ftruncate(self._file, self._block)
            self._end = self._block

    def keep_ports(self, ports: Mapping[str, int]) -> None:
        """Add ports of workers, for this block."""
        block = self._block
        self.keep(**{_PORT + name: port for name, port in ports.items()})
        self._block = block

    def accept(self, connection: int) -> None:
        """Say to a rank that it is accepted, by its connection, and hand it the file."""
        rank = _socket.socket(fileno=os.dup(connection))
        try:
            if self._file is None:
                rank.send(_ACCEPTED)
            else:
                file = self._file.to_bytes(_ONE_DESCRIPTOR, sys.byteorder)
                rank.sendmsg([_ACCEPTED], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, file)])
        finally:
            rank.close()


def received(connection: _socket.socket, size: int) -> tuple[bytes, int | None]:
    """Receive from the agent, and the file if that comes with it."""
    part, more, *_ = connection.recvmsg(
        size, _socket.CMSG_SPACE(_ONE_DESCRIPTOR), getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
    )
    for level, kind, data in more:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS) and len(data) >= _ONE_DESCRIPTOR:
            return part, int.from_bytes(data[:_ONE_DESCRIPTOR], sys.byteorder)
    return part, None


def read_all(file: int) -> dict[str, Any]:
    """Read what stands in the file by now; nothing if there is nothing whole."""
    data = os.pread(file, os.fstat(file).st_size, 0)
    words: dict[str, Any] = {}
    while len(data) >= LENGTH and len(data) >= (end := LENGTH + int.from_bytes(data[:LENGTH], "big")):
        words |= decode(data[LENGTH:end])
        data = data[end:]
    ports = dict(words.pop("ports", {}))
    for name in [name for name in words if name.startswith(_PORT)]:
        ports[name.removeprefix(_PORT)] = words.pop(name)
    return {**words, "ports": ports} if words else {}


def inherit(words: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make the orders of the next agent from what the last one has left; `None` if there may be no more."""
    if not words or words.get("number", 0) >= MOST:
        return None
    now = time.monotonic()
    until = max(words["until"], now + max(_LEAST, words.get("within", 0)))
    # Ranks that know where rank 0 is say so, and nobody looks for it; what the user asks for comes from there too.
    known = {"told": True, "early": True} if words.get("record") else {}
    return {
        **words,
        **known,
        "number": words.get("number", 0) + 1,
        "stranger": None,
        "until": until,
        "patience": until - now,
    }


def launch_of(orders: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """Give what makes an agent's orders from its socket and the like, and ends the process if the run is over."""

    def launch(**ours: object) -> dict[str, Any]:
        if is_over(orders.get("record")):
            sys.exit(0)
        return {**orders, **ours}

    return launch


def is_over(record: Mapping[str, Any] | None) -> bool:
    """Whether nobody is there any more where rank 0 was; it listens for as long as the run lasts."""
    if not record:
        return False
    try:
        for family, kind, protocol, _, address in _socket.getaddrinfo(
            record["host"], record["port"], 0, _socket.SOCK_STREAM
        ):
            knock = _socket.socket(family, kind, protocol)
            try:
                knock.settimeout(_KNOCK)
                knock.connect(address)
            finally:
                knock.close()
            return False
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


def how_it_ended(code: int) -> str:
    """Say how an agent has ended, by the exit status that a shell or Python gives; for people."""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if not number:
        return f"ended with exit code {code}"
    import signal

    try:
        return f"was killed ({signal.Signals(number).name})"
    except ValueError:
        return f"was killed (signal {number})"


def _is_file(number: int) -> bool:
    import stat

    try:
        return stat.S_ISREG(os.fstat(number).st_mode)
    except OSError:
        return False
