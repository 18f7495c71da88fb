"""How a rank attaches to the agent of its node, which hosts the workers of all ranks there, and waits for the end.

The first rank that comes binds a Unix socket named after the run and the node, and starts the agent, which listens on it.
Every rank, the first one included, connects, says what it is (`batchlet.node.inputs`) and waits. The connection tells the agent
at once when a rank dies, and the ranks when the agent dies. While they wait they are shells of some hundred kilobytes
(`wait.sh`); whatever the user's script had imported above the ``with`` no longer takes memory.

Where somebody else has the socket's name, or nobody answers there (`batchlet.node.agent_socket.StrangerError`), the ranks of
the node meet under a name made from the run's secret, once rank 0 has published that. On systems without such sockets, and for
ranks that share nothing with others, every rank starts an agent of its own, over a pair of sockets without a name.

There is one way for all ranks. What differs is when: a process that is plainly a worker rank of a Slurm step attaches before
anything else of Batchlet is imported (`attach_early`), since hundreds of them begin at the same moment, on the CPUs that the
workers need to start. This module imports next to nothing (of the interpreter's own modules the ones in C, whose Python faces
take 10 ms).

What a rank and the agent say to each other after the rank's first message:

==================  ====================================================================================
from the rank       ``signalled 15``: this rank got a signal that is meant for the client
from the agent      ``accepted``, with a file descriptor (`batchlet.node.handover`); or ``own``: this rank needs an agent of
                    its own; ``own gpus``: because it sees other GPUs
from the agent      ``end 0``: end with that exit code; ``last 0``: the same, once the agent has ended; ``ending 0``: the run
                    is over, and the same holds if the agent should die before it says so
==================  ====================================================================================

If the agent dies without such a word, its ranks do the same once more, with what it has left them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import sys
import time

from ..launch_variables import SLURM_PROCID, slurm_worker_rank
from .agent_socket import StrangerError, meet, socket_name
from .handover import MOST, how_it_ended, inherit, launch_of, read_all, received
from .inputs import encode, for_agent, of_this_rank

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = [
    "PATIENCE",
    "AgentConnection",
    "attach_early",
    "may_attach_early",
    "worker_ranks_attach_early",
]

_PREFIX = "BATCHLET_DASK_CLUSTER__"
_PAUSE = 0.005
# Seconds for the shell that removes the scratch of an agent that was killed.
_JANITOR = 2.0
# How many agents a rank attaches to that die before they have answered.
_TRIES = 1 + MOST
# Seconds by which a rank waits longer for the agent than rank 0 and the agent wait, who can say more.
PATIENCE = 10.0
# Seconds; the default of `batchlet.settings.Settings.start_timeout`, on which a test insists.
_START_TIMEOUT = 120.0
# What decides whether and how a rank attaches at all. All else is the business of the agent.
_DECISIVE = ("mode", "share_node", "rendezvous", "start_timeout")
# Flags of `python -m batchlet` that start nothing.
_ASKING = ("-h", "--help", "--plan", "--version")
# Bytes that a Unix socket takes before anybody reads them; it is twice as much at least.
_ROOM = 100_000

# What `attach_early` has found out for those that look closer.
_stranger: StrangerError | None = None


def may_attach_early(environ: Mapping[str, str], options: Mapping[str, object] | Sequence[str]) -> bool:
    """Whether it is plain that this process is a worker rank which may share an agent.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    options : mapping or sequence of str
        What the user asked for: keywords, or a command line.
    """
    return (
        slurm_worker_rank(environ) is not None
        and sys.platform.startswith("linux")
        and not any(_PREFIX + name.upper() in environ or _asked(options, name) for name in _DECISIVE)
        and _stranger is None
    )


def worker_ranks_attach_early(environ: Mapping[str, str]) -> bool:
    """Whether the worker ranks of this launch do so, with no options but those of the environment; on any of its ranks."""
    return may_attach_early({**environ, SLURM_PROCID: "2"}, {})


def _asked(options: Mapping[str, object] | Sequence[str], name: str) -> bool:
    if isinstance(options, (list, tuple)):
        flag = "--" + name.replace("_", "-")
        return any(word == flag or word in _ASKING or word.startswith(flag + "=") for word in options)
    return name in options


def attach_early(
    environ: Mapping[str, str], options: Mapping[str, object] | Sequence[str], *, early: bool = False
) -> None:
    """Be a worker rank until the run is over, and end this process; returns where it must look closer at who it is.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    options : mapping or sequence of str
        What the user asked for: keywords, or a command line.
    early : bool
        Whether the options are still to come.
    """
    global _stranger
    deadline = time.monotonic() + _START_TIMEOUT
    connection = AgentConnection(
        socket_name("", "", environ),
        environ,
        lambda: of_this_rank(environ),
        lambda **ours: for_agent(options, deadline, early=early, **ours),
        deadline + PATIENCE,
    )
    before = {number: _signal.signal(number, connection.on_signal) for number in (_signal.SIGTERM, _signal.SIGINT)}
    try:
        code = connection.hold()
    except StrangerError as stranger:
        _stranger = stranger
        for number, handler in before.items():
            _signal.signal(number, handler)
        return
    sys.exit(code)


class AgentConnection:
    """A rank's connection to the agent of its node, which it starts if there is none.

    Parameters
    ----------
    name : bytes, optional
        Of the agent's socket; `None` for an agent of this rank's own.
    environ : mapping of str to str
        The rank's environment, which is the agent's too if this rank starts it.
    of_rank : callable
        Gives what this rank says of itself, as soon as it can; see `batchlet.node.inputs.of_this_rank`.
    of_launch : callable
        Gives the orders of an agent, from keyword arguments that belong to them; see `batchlet.node.inputs.for_agent`.
    deadline : float
        Until when the agent must have answered, in seconds of `time.monotonic`.
    other_name : callable, optional
        Gives the name to meet under where the first one is another user's; see `secret_name`.
    stop_timeout : float
        Seconds that an agent which this process has started has to end, once it has said that the run is over.
    becomes_shell : bool
        Whether this process may become a shell while it waits; not so if it is more than a rank with workers.
    """

    def __init__(
        self,
        name: bytes | None,
        environ: Mapping[str, str],
        of_rank: Callable[[], Mapping[str, Any]],
        of_launch: Callable[..., Mapping[str, Any]],
        deadline: float,
        *,
        other_name: Callable[[], bytes] | None = None,
        stop_timeout: float = 15.0,
        becomes_shell: bool = True,
    ) -> None:
        self._name = name
        self._environ = environ
        self._other_name = other_name
        self._of_rank = of_rank
        self._of_launch = of_launch
        self._deadline = deadline
        self._stop_timeout = stop_timeout
        self._becomes_shell = becomes_shell
        self._socket: _socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._accepted = False
        # Why this rank has an agent of its own.
        self._own = ""
        self._stranger: list[int | None] | None = None
        # What the agent has handed over, the exit code if it dies now and the run is over, and whether it has died once before.
        self._handover: int | None = None
        self._over: int | None = None
        self._once_more = False

    def hold(self) -> int:
        """Find the agent, start it if there is none, and stay connected until the run is over.

        Returns
        -------
        int
            The exit code for this rank.

        Raises
        ------
        StrangerError
            If the agent's name is another user's, and there is no other one.
        StartTimeoutError
            If the agent does not answer by the deadline.
        ClusterLostError
            If the agent ends before it has answered.
        """
        if _stranger is not None and self._name is not None:
            self._evade(_stranger)
        words = dict(self._of_rank())
        tries = _TRIES
        while tries:
            try:
                answer, _, code = self._converse(words).partition(" ")
            except StrangerError as stranger:
                if self._once_more and self._other_name is None:
                    return 0
                self._evade(stranger)
                continue
            finally:
                ended = self._let_go()
            if answer == "own":
                self._name, self._own = None, code
            elif not answer and self._take_over_if_left(ended):
                words, tries = dict(self._of_rank()), _TRIES
            elif answer in ("end", "last") or self._accepted:
                if ended is not None and ended < 0:
                    # Killed: see `wait.sh`.
                    time.sleep(_JANITOR)
                return int(code or self._over or 0)
            elif ended == 2:
                # Something in the input is wrong, which rank 0 says.
                return ended
            else:
                tries -= 1
                if ended is not None and ended < 0:
                    words["saw"] = how_it_ended(ended)
        if self._once_more:
            # Rank 0 misses the workers, and says so.
            return 0
        from ..errors import ClusterLostError

        raise ClusterLostError("The host of this node's workers ended while it started; its output says why.")

    def take_over(self, orders: Mapping[str, Any], how: str) -> None:
        """Attach once more, after the death of an agent.

        Parameters
        ----------
        orders : mapping
            Of the next one; see `batchlet.node.handover.inherit`.
        how : str
            How the last one has ended, if this rank has seen it.
        """
        before, record, other = self._of_rank, orders.get("record"), orders.get("other_name")
        self._of_rank = lambda: {**before(), **({"record": record} if record else {}), "saw": how}
        self._of_launch = launch_of(orders)
        self._name, self._own = orders["name"], orders.get("own", "")
        self._other_name = (lambda: other) if other else None
        self._deadline = time.monotonic() + orders["patience"] + PATIENCE
        self._accepted, self._once_more = False, record is not None

    def _take_over_if_left(self, ended: int | None) -> bool:
        """Take over what the agent has left, if it has accepted this rank and the run is not over."""
        file, self._handover = self._handover, None
        if file is None or not self._accepted:
            return False
        orders = inherit(read_all(file))
        os.close(file)
        if orders is None or self._over is not None:
            return False
        self.take_over(orders, "" if ended is None else how_it_ended(ended))
        return True

    def _evade(self, stranger: StrangerError) -> None:
        """Meet under the other name."""
        if self._other_name is None:
            raise stranger
        self._name, self._other_name, self._stranger = self._other_name(), None, [stranger.user]

    def on_signal(self, number: int, _frame: object) -> None:
        """Tell of a signal that this rank got and that is meant for the client; without an agent it can only end."""
        if not self._accepted or self._socket is None:
            os._exit(128 + number)
        try:
            self._socket.sendall(b"signalled %d\n" % number)
        except OSError:
            return  # the agent is gone, and this rank ends in a moment

    def leave(self) -> None:
        """Tell the agent that this rank needs its workers no more; from another thread than the one that waits."""
        self._over = 0
        try:
            if self._socket is not None:
                self._socket.shutdown(_socket.SHUT_WR)
        except OSError:
            pass

    def _converse(self, words: Mapping[str, Any]) -> str:
        """Talk with the agent until it has a last word; nothing if it ends before it has answered at all."""
        agents_end: _socket.socket | None
        if self._name is None:
            self._socket, agents_end = _socket.socketpair()
        else:
            self._socket, agents_end = meet(self._name)
        message = encode(words)
        if agents_end is not None:
            self._start(agents_end, message, words["record"])
        try:
            self._socket.settimeout(max(_PAUSE, self._deadline - time.monotonic()))
            self._socket.sendall(message)
        except OSError:
            return ""
        rest = b""
        while True:
            try:
                line, rest = self._receive(rest)
            except TimeoutError:
                if self._once_more:
                    return "end 0"
                from ..errors import StartTimeoutError

                raise StartTimeoutError(
                    "The host of this node's workers said nothing in time (start_timeout)."
                ) from None
            if line.startswith("ending"):
                self._over = int(line.split()[1])
                continue
            if line != "accepted":
                return line
            self._accepted = True
            self._socket.settimeout(None)
            # Who has started the agent sees it end, and gone from the process table: Slurm looks for what is left of a step.
            if self._becomes_shell and self._process is None and not rest:
                from .wait import become_shell, may_become_shell

                if may_become_shell():
                    become_shell(self._socket, self._environ, handover=self._handover)

    def _start(self, agents_end: _socket.socket, message: bytes, record: object) -> None:
        """Start the agent; in the shell that this process becomes, if it may."""
        from .wait import AGENT_SOCKET, become_shell, may_become_shell

        assert self._socket is not None
        ours = {"name": self._name, "listens": self._name is not None, "stranger": self._stranger, "record": record}
        ours["own"] = self._own
        if self._becomes_shell and len(message) < _ROOM and may_become_shell():
            orders = encode(self._of_launch(socket=AGENT_SOCKET, **ours))
            self._socket.sendall(message)
            become_shell(self._socket, self._environ, agents_end, orders)
            sys.exit("batchlet: error: /bin/sh cannot be run.")
        from .start import start_agent

        self._process = start_agent(self._of_launch(socket=agents_end.fileno(), **ours), self._environ)
        agents_end.close()

    def _let_go(self) -> int | None:
        """Give the connection up, and see the agent end if this rank has started it; gives its exit code."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is None:
            return None
        import subprocess

        try:
            return process.wait(self._stop_timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _receive(self, rest: bytes) -> tuple[str, bytes]:
        """Read a line, an empty one when the connection has ended, and what came after it."""
        assert self._socket is not None
        while b"\n" not in rest:
            try:
                part, file = received(self._socket, 4096)
            except ConnectionError:
                return "", b""
            self._handover = file if file is not None else self._handover
            if not part:
                return "", b""
            rest += part
        line, _, rest = rest.partition(b"\n")
        return line.decode(), rest
