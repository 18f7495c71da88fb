"""The ranks of one node share one host for their workers; this is how they find it, and what they do meanwhile: nothing.

The first rank that comes binds a Unix socket named after the run and the node, and starts the host, which listens on it. Every
rank, the first one included, then takes a *seat*: it connects, says who it is, and waits for the end. The connection tells the
host at once when a rank dies, and the ranks when the host dies. While they wait they are shells of some hundred kilobytes
(`wait.sh`); whatever the user's script had imported above the ``with`` no longer takes memory.

The socket has a name in Linux' abstract namespace: no file that a killed run leaves behind. Anybody could bind that name, so
both sides ask the kernel whose process the other one is. Where the name is taken by somebody else, and on systems without such
sockets, every rank starts a host of its own.

Hundreds of ranks begin here at the same moment, on the CPUs that the workers need to start: this module imports next to
nothing (of the interpreter's own modules the ones in C, whose Python faces take 10 ms), and `sit_quickly` finds a rank's seat
before anything else of Batchlet is imported.

What a rank and the host say to each other:

==================  =========  ===============================================================================
from the rank       hello      one `marshal`-ed dict, after its length in 4 bytes
from the rank       line       ``signalled 15``: this rank got a signal that is meant for the client
from the host       line       ``seated``; or ``own``: this rank needs a host of its own
from rank 0         dict       ``scheduler``: orders of the scheduler to start; see `batchlet.node.scheduler_request`
from the scheduler  line       ``started 4711``, its number; or ``own`` from the host: rank 0 is to run it itself
from the host       line       ``end 0``: end with that exit code; ``last 0``: the same, once the host has ended
==================  =========  ===============================================================================
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import marshal
import os
import sys
import time

from ..launch_variables import SLURM_STEP_ID, SLURM_STEP_NAMES, slurm_worker_rank

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = [
    "Seat",
    "facts",
    "hello",
    "may_sit_quickly",
    "message",
    "peer_is_ours",
    "read_simply",
    "sit_quickly",
    "socket_name",
]

_PREFIX = "BATCHLET_DASK_CLUSTER__"
_PAUSE = 0.005
_BACKLOG = 4096
# How often a rank looks for a host again whose predecessor has died before it had answered.
_TRIES = 2
# Seconds by which a rank waits longer for the host than rank 0 and the host wait, who can say more.
PATIENCE = 10.0
# What decides whether and how a rank takes a seat at all. All else is the business of the rank that starts the host.
_DECISIVE = ("mode", "share_node", "rendezvous", "start_timeout")
# The longest that Linux takes, less the zero byte at the beginning.
_LONGEST_NAME = 107
# Bytes that a Unix socket takes before anybody reads them; it is twice as much at least.
_ROOM = 100_000

# What `sit_quickly` has found out for the seat that is made later.
_taken: tuple[_socket.socket, _socket.socket | None] | None = None
_alone = False


def socket_name(run_id: str, node: str, environ: Mapping[str, str]) -> bytes | None:
    """Name of the socket of a node's host; `None` where the system has no such sockets."""
    if not sys.platform.startswith("linux"):
        return None
    # Known before anything of Slurm's variables has been understood.
    parts = [environ.get(name, "") for name in SLURM_STEP_NAMES] if SLURM_STEP_ID in environ else [run_id, node]
    name = "-".join(["batchlet", str(os.geteuid()), *parts])
    if len(name) > _LONGEST_NAME:
        import hashlib

        name = "batchlet-" + hashlib.sha256(name.encode()).hexdigest()
    return b"\0" + name.encode()


def peer_is_ours(connection: _socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket is this user's."""
    if not hasattr(_socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # pid, uid, gid: three ints
    return int.from_bytes(credentials[4:8], sys.byteorder) == os.geteuid()


def facts() -> dict[str, Any]:
    """What of this process decides where its workers may live: its interpreter, its cgroups, its CPUs."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:  # noqa: PTH123
            cgroups = file.read().split("\n")
    except OSError:
        cgroups = []
    return {
        "python": [sys.executable, sys.prefix, sys.version],
        # Slurm's innermost level is for accounting, one for each task.
        "cgroups": [line.rpartition("/task_")[0] or line for line in cgroups],
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
    }


def hello(rank: int, participant: str, environ: Mapping[str, str], record: object = None) -> dict[str, Any]:
    """What a rank says of itself."""
    return {"rank": rank, "participant": participant, "environ": dict(environ), **facts(), "record": record}


def may_sit_quickly(environ: Mapping[str, str], options: Mapping[str, object] | Sequence[str]) -> bool:
    """Whether it is plain that this process is a worker rank which may share a host.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    options : mapping or sequence of str
        What the user asked for: keywords, or a command line.
    """
    return (
        slurm_worker_rank(environ) is not None
        and not any(_PREFIX + name.upper() in environ or _asked(options, name) for name in _DECISIVE)
        and _taken is None
    )


def read_simply(arguments: Sequence[str]) -> tuple[dict[str, str] | None, tuple[str, str] | None]:
    """Read a command line that is plain to who knows none of our options: ``--name=value ... script.py ...``.

    Returns
    -------
    options, program : dict and tuple of str
        What is asked for, and kind and target of a `batchlet.program.Program`; `None` twice if it is not plain.
    """
    options: dict[str, str] = {}
    for position, word in enumerate(arguments):
        if not word.startswith("-"):
            return options, ("script", word)
        if word in ("-m", "-c") and position + 1 < len(arguments):
            return options, ("module" if word == "-m" else "code", arguments[position + 1])
        name, given, value = word.partition("=")
        if not given or not name.startswith("--"):
            break
        options[name[2:].replace("-", "_")] = value
    return None, None


def sit_quickly(
    environ: Mapping[str, str], options: Mapping[str, object] | None, program: tuple[str, str] | None = None
) -> None:
    """Take a seat at the host that is there, or start one, and never return.

    Returns where this process must look closer at who it is.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    options : mapping, optional
        What the user asked for; `None` if that is not known yet, so that this process must not start a host.
    program : tuple of str, optional
        Kind and target of what `python -m batchlet` is to run.
    """
    global _taken, _alone
    rank = slurm_worker_rank(environ)
    if rank is None:
        return
    name = socket_name("", "", environ)
    deadline = time.monotonic() + 120 + PATIENCE
    pair = meet(name, deadline) if name is not None else None
    if pair is None:
        return
    connection, listener = pair
    if listener is not None:
        if options is not None:
            words = hello(rank, str(rank), environ)
            _start_quickly(connection, listener, words, options, program, deadline - PATIENCE)
        _taken = connection, listener
        return
    seat = Seat(None, lambda: hello(rank, str(rank), environ), None, deadline, 0.0)
    # Until it has a seat, this rank can only end; rank 0 says why.
    before = {number: _signal.signal(number, _end) for number in (_signal.SIGTERM, _signal.SIGINT)}
    code = seat.sit(connection)
    if code is not None:
        sys.exit(code)
    for number, handler in before.items():
        _signal.signal(number, handler)
    _alone = seat.alone


def _start_quickly(
    connection: _socket.socket,
    listener: _socket.socket,
    words: Mapping[str, Any],
    options: Mapping[str, object],
    program: tuple[str, str] | None,
    deadline: float,
) -> None:
    """Leave the host and all that is to know about this launch to a shell; returns if that is not possible."""
    from .wait import may_park, orders_of, park

    orders, hello = orders_of(options, program, deadline - time.monotonic()), message(words)
    if orders is not None and len(hello) < _ROOM and may_park():
        connection.sendall(hello)
        park(connection, listener, orders)
        sys.exit("batchlet: error: /bin/sh cannot be run.")


def message(words: Mapping[str, Any]) -> bytes:
    """Write the first message of a connection: its length, then the words."""
    data = marshal.dumps(dict(words))
    return len(data).to_bytes(4, "big") + data


def _end(number: int, _frame: object) -> None:
    os._exit(128 + number)


def _asked(options: Mapping[str, object] | Sequence[str], name: str) -> bool:
    if isinstance(options, (list, tuple)):
        flag = "--" + name.replace("_", "-")
        return any(word in ("-h", "--help", "--plan", flag) or word.startswith(flag + "=") for word in options)
    return name in options


def meet(name: bytes, deadline: float) -> tuple[_socket.socket, _socket.socket | None] | None:
    """Connect to a node's socket.

    Returns
    -------
    connection, listener : socket
        The connection, and the socket itself for the rank that has bound it; `None` instead of both if it belongs to
        somebody else, or nobody listens there until the deadline.
    """
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
                return None
        connection = _socket.socket(_socket.AF_UNIX)
        try:
            connection.connect(name)
        except ConnectionRefusedError:
            # Between another rank's bind and its listen, or after the end of a host.
            connection.close()
            if time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE)
            continue
        if peer_is_ours(connection):
            return connection, listener
        connection.close()
        return None


class Seat:
    """A rank's place at the host of its node.

    Parameters
    ----------
    name : bytes, optional
        The host's socket; `None` for a host of this rank's own.
    hello : callable
        Gives what this rank says of itself, as soon as it can.
    start : callable, optional
        Starts a host, from the number of a file descriptor and whether that is listened on.
    deadline : float
        Until when the host must have answered, in seconds of `time.monotonic`.
    stop_timeout : float
        Seconds that the host has to end, once it has said that the run is over.
    park : bool
        Whether this process may become a shell while it waits; not so if it is more than a rank with workers.

    Attributes
    ----------
    alone : bool
        Whether the host has refused this rank, which needs one of its own.
    """

    def __init__(
        self,
        name: bytes | None,
        hello: Callable[[], Mapping[str, Any]],
        start: Callable[[int, bool], subprocess.Popen[bytes]] | None,
        deadline: float,
        stop_timeout: float,
        *,
        park: bool = True,
    ) -> None:
        self.alone = _alone
        self._name = name
        self._hello = hello
        self._start = start
        self._deadline = deadline
        self._stop_timeout = stop_timeout
        self._park = park
        self._socket: _socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent: list[int] = []

    def hold(self) -> int:
        """Find the host, start it if there is none, and keep the seat until the run is over.

        Returns
        -------
        int
            The exit code for this rank.

        Raises
        ------
        StartTimeoutError
            If the host does not answer by the deadline.
        ClusterLostError
            If the host ends before it has answered.
        """
        for _ in range(_TRIES):
            code = self.sit(self._find())
            if code is None and self.alone:
                code = self.sit(self._find())
            if code is not None:
                return code
        from ..errors import ClusterLostError

        raise ClusterLostError("The host of this node's workers ended while it started; its output says why.")

    def sit(self, connection: _socket.socket) -> int | None:
        """Keep the seat; `None` if there is no host, or it wants no others (`alone`)."""
        self._socket = connection
        try:
            word, _, code = self._converse().partition(" ")
        finally:
            self._let_go()
        if word == "own":
            self.alone = True
        return int(code) if word in ("end", "last") else None

    def signalled(self, number: int) -> None:
        """Tell of a signal that this rank got and that is meant for the client."""
        try:
            assert self._socket is not None
            self._send(b"signalled %d\n" % number)
        except (AssertionError, OSError):
            self._unsent.append(number)

    def leave(self) -> None:
        """Tell the host that this rank needs its workers no more; from another thread than the one that holds the seat."""
        try:
            if self._socket is not None:
                self._socket.shutdown(_socket.SHUT_WR)
        except OSError:
            pass

    def _find(self) -> _socket.socket:
        """Connect to the host, and start it if there is none."""
        global _taken
        assert self._start is not None
        pair = None
        if self._name is not None and not self.alone:
            pair, _taken = _taken or meet(self._name, self._deadline), None
        connection, theirs = pair or _socket.socketpair()
        if theirs is not None:
            self._process = self._start(theirs.fileno(), pair is not None)
            theirs.close()
        return connection

    def _converse(self) -> str:
        """Talk with the host until it has a last word; nothing if it ends before it has answered at all."""
        assert self._socket is not None
        try:
            self._send(message(self._hello()))
            for number in self._unsent:
                self._send(b"signalled %d\n" % number)
        except OSError:
            return ""
        answered, rest = False, b""
        while True:
            try:
                self._socket.settimeout(None if answered else max(_PAUSE, self._deadline - time.monotonic()))
                line, rest = _receive(self._socket, rest)
            except TimeoutError:
                from ..errors import StartTimeoutError

                raise StartTimeoutError(
                    "The host of this node's workers said nothing in time (start_timeout)."
                ) from None
            if not line:
                # The host died after all had begun: rank 0 says so, and whether the run goes on.
                return "end 0" if answered else ""
            if line != "seated":
                return line
            answered = True
            # Who has started the host sees it end, and gone from the process table: Slurm looks for what is left of a step.
            if self._park and self._process is None and not rest:
                from .wait import may_park, park

                if may_park():
                    park(self._socket)

    def _send(self, words: bytes) -> None:
        assert self._socket is not None
        self._socket.settimeout(None)
        self._socket.sendall(words)

    def _let_go(self) -> None:
        """Give the seat up, and see the host end if this rank has started it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            import subprocess

            try:
                self._process.wait(self._stop_timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _receive(connection: _socket.socket, rest: bytes) -> tuple[str, bytes]:
    """Read a line, an empty one when the connection has ended, and what came after it."""
    while b"\n" not in rest:
        try:
            part = connection.recv(4096)
        except ConnectionError:
            return "", b""
        if not part:
            return "", b""
        rest += part
    line, _, rest = rest.partition(b"\n")
    return line.decode(), rest
