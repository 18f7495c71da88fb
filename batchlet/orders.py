"""Orders for the processes that Batchlet itself starts, and the pipe through which they get them.

Two kinds: the host of workers beside a head rank, and the ranks of a step in an allocation. The orders come through a pipe,
not on the command line, since everybody on the machine can read command lines. The pipe stays open for as long as the starter
lives; when it ends, whatever ended it, the process that reads from it ends too.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from .environments import Environment, ProcessInfo
from .rendezvous.base import Meeting
from .settings import Settings

__all__ = ["Orders", "command", "receive", "send", "start_host"]

_LENGTH = 8


@dataclass(frozen=True)
class Orders:
    """What a member is to do.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    environ : mapping of str to str
        Launcher's variables to go by, beside those of the member's own environment.
    sys_path : tuple of str
        Where the user's modules are.
    patience : float
        Seconds left until all workers must have joined.
    info, environment, meeting : optional
        For a host beside a head rank: who that rank is, and where rank 0 is.
    client_node : str, optional
        For a rank of a step: the node of the client; `None` where that is not in the allocation.
    """

    settings: Settings
    environ: Mapping[str, str]
    sys_path: tuple[str, ...]
    patience: float
    info: ProcessInfo | None = None
    environment: Environment | None = None
    meeting: Meeting | None = None
    client_node: str | None = None


def command() -> list[str]:
    """Command line of a member."""
    return [sys.executable, "-m", "batchlet.member"]


def send(pipe: IO[bytes], content: object) -> None:
    """Send something to a member: its length, then its pickle. Classes of the user's script travel by value."""
    import cloudpickle

    data = cloudpickle.dumps(content)
    pipe.write(len(data).to_bytes(_LENGTH, "big") + data)
    pipe.flush()


def receive() -> Any:
    """Read from standard input what `send` has sent.

    Raises
    ------
    EOFError
        If the starter is gone.
    """
    return pickle.loads(_read(int.from_bytes(_read(_LENGTH), "big")))  # noqa: S301 - from our own parent


def _read(size: int) -> bytes:
    """Read standard input past Python's buffer, whose lock a waiting thread would keep when the process ends."""
    data = b""
    while len(data) < size:
        part = os.read(sys.stdin.fileno(), size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@contextlib.contextmanager
def start_host(orders: Orders) -> Iterator[None]:
    """Start a process that hosts the workers of a head rank, and see it end."""
    process = subprocess.Popen(command(), stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            send(process.stdin, orders)
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(orders.settings.stop_timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
