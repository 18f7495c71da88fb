"""Orders for the processes that Batchlet itself starts, and the pipe through which they get them.

Three kinds: the host of a node's workers, the scheduler, and the ranks of a step in an allocation. The orders come through a
pipe or a socket, not on the command line, since everybody on the machine can read command lines. The pipe to the ranks of a
step stays open for as long as the starter lives; when it ends, whatever ended it, the process that reads from it ends too.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from ..environments import Environment, ProcessInfo, select
from ..rendezvous.base import CoordinatorRecord
from ..rendezvous.file import FileRendezvous
from ..settings import Settings
from .wait import AGENT_ENVIRONMENT, LISTENER, read_orders

__all__ = [
    "HostOrders",
    "SchedulerOrders",
    "StepOrders",
    "command",
    "dask_config",
    "pack",
    "quick_orders",
    "receive",
    "send",
    "start_host",
    "unpack",
]

_LENGTH = 8


@dataclass(frozen=True)
class HostOrders:
    """Orders for the host of a node's workers.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    sys_path : tuple of str
        Where the user's modules are.
    patience : float
        Seconds left until all workers must have joined.
    info : ProcessInfo
        The rank that starts the host.
    environment : Environment
        How that rank was started.
    socket : int
        File descriptor of the socket to talk with ranks.
    listen : bool
        Whether that socket is listened on, for all the ranks of the node, or connected with one rank.
    by_file : bool
        Whether rank 0 publishes where it is in a file; otherwise the ranks tell.
    dask_config : mapping, optional
        Configuration of Dask in the rank, which may have set some of it in its script.
    """

    settings: Settings
    sys_path: tuple[str, ...]
    patience: float
    info: ProcessInfo
    environment: Environment
    socket: int
    listen: bool
    by_file: bool
    dask_config: Mapping[str, Any] | None


@dataclass(frozen=True)
class SchedulerOrders:
    """Orders for the scheduler, where the host of rank 0's node starts it.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    environ : mapping of str to str
        Rank 0's environment.
    environment : Environment
        How rank 0 was started.
    sys_path : tuple of str
        Where the user's modules are.
    cpus : tuple of int
        The CPUs that rank 0 is bound to.
    info : ProcessInfo
        Rank 0.
    record : CoordinatorRecord
        Where rank 0's coordinator is.
    host : str
        Address for the scheduler to listen on.
    workers : int
        About how many will come.
    until : float
        When all workers must have joined, in seconds of `time.monotonic`.
    dask_config : mapping, optional
        Configuration of Dask in rank 0, which may have set some of it in its script.
    """

    settings: Settings
    environ: Mapping[str, str]
    environment: Environment
    sys_path: tuple[str, ...]
    cpus: tuple[int, ...]
    info: ProcessInfo
    record: CoordinatorRecord
    host: str
    workers: int
    until: float
    dask_config: Mapping[str, Any] | None


@dataclass(frozen=True)
class StepOrders:
    """Orders for a rank of a step that Batchlet starts in an allocation.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    sys_path : tuple of str
        Where the user's modules are.
    patience : float
        Seconds left until all workers must have joined.
    """

    settings: Settings
    sys_path: tuple[str, ...]
    patience: float


def command() -> list[str]:
    """Command line of a participant."""
    return [sys.executable, "-m", "batchlet.node"]


def dask_config() -> Mapping[str, Any] | None:
    """Give the configuration of Dask in this process, if it has imported Dask: the script may have set some of it."""
    module = sys.modules.get("dask.config")
    return None if module is None else dict(module.config)


def _is_plain(value: object) -> bool:
    """Whether a value means the same to every process, whatever the user's script defines."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (str, int, float, bool))


def pack(content: object) -> bytes:
    """Write orders down; what the user's script defines travels by value."""
    settings = getattr(content, "settings", None)
    given = [settings.worker_class, settings.worker_options, settings.scheduler_options] if settings is not None else ()
    config = getattr(content, "dask_config", None)
    if all(map(_is_plain, given)) and _is_plain(config):
        return pickle.dumps(content)
    # Takes 35 ms to import.
    import cloudpickle

    return bytes(cloudpickle.dumps(content))


def send(pipe: IO[bytes], content: object) -> None:
    """Send something to a participant: its length, then its pickle."""
    data = pack(content)
    pipe.write(len(data).to_bytes(_LENGTH, "big") + data)
    pipe.flush()


def unpack(data: bytes) -> Any:
    """Read what `pack` has written; from a process of this run only."""
    return pickle.loads(data)  # noqa: S301


def receive() -> Any:
    """Read from standard input what `send` has sent.

    Raises
    ------
    EOFError
        If the starter is gone.
    """
    return unpack(_read(int.from_bytes(_read(_LENGTH), "big")))


def quick_orders() -> HostOrders:
    """Read the orders that a rank has left which did not look closely at who it is; that is done here.

    Raises
    ------
    EndError
        If something in the input is wrong. Rank 0 says it.
    """
    found = read_orders()
    sys.path[:] = found["sys_path"]
    if found["program"] is not None:
        # Other ranks have no need of it.
        from ..program import Program

        program = Program(*found["program"])
        program.prepare()
        program.check()
    settings = Settings.resolve(found["options"], os.environ)
    environment, _ = select(settings.mode, os.environ)
    info = environment.process(os.environ)
    FileRendezvous(settings.rendezvous_dir, info.run_id, info.node).check()
    return HostOrders(
        settings,
        tuple(sys.path),
        found["until"] - time.monotonic(),
        info,
        environment,
        LISTENER,
        listen=True,
        by_file=True,
        dask_config=found["dask_config"],
    )


def _read(size: int) -> bytes:
    """Read standard input past Python's buffer, whose lock a waiting thread would keep when the process ends."""
    data = b""
    while len(data) < size:
        part = os.read(sys.stdin.fileno(), size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def start_host(orders: HostOrders) -> subprocess.Popen[bytes]:
    """Start a host of workers, which inherits the socket.

    It is in a session of its own: a Ctrl-C at a terminal is for the client, which still needs the workers to save its work.
    """
    process = subprocess.Popen(
        command(),
        stdin=subprocess.PIPE,
        pass_fds=(orders.socket,),
        env={**AGENT_ENVIRONMENT, **os.environ},
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        send(process.stdin, orders)
        process.stdin.close()
    return process
