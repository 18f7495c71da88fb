"""A worker rank while it waits: not Python any more, but a shell of some hundred kilobytes that runs ``wait.sh``.

It may be the parent of the agent of its node, and then sees that end: Slurm looks for what is left of a step. Like
`batchlet.node.attach` this module imports next to nothing; hundreds of ranks come here at the same moment.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping

__all__ = ["AGAIN", "AGENT", "AGENT_ENVIRONMENT", "AGENT_SOCKET", "START", "become_shell", "may_become_shell"]

# What Dask's Nanny gives its workers before they start, for the process from which all workers of a node are forked: some of
# it counts only when a process starts. The same seed on all nodes, so that they agree on the hash of a text.
#
# The C library's allocator is to give memory back to the system, as Dask's 64 KiB for MALLOC_TRIM_THRESHOLD_ have it do. But
# that fixes the size from which on each allocation is a mapping of its own at 128 KiB, so that each column of a frame costs its
# page faults again. With 8 MiB for both a shuffle takes a quarter less time (benchmarks/allocator.py), and no thread keeps more
# than that.
AGENT_ENVIRONMENT = {
    "PYTHONHASHSEED": "6640",
    "MALLOC_TRIM_THRESHOLD_": "8388608",
    "MALLOC_MMAP_THRESHOLD_": "8388608",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# What Python runs in a process that Batchlet starts: it reads its orders and takes over the path of the process that has
# started it before it imports anything from there. What kind of process it is to be stands on its command line, for people.
START = """\
import marshal, sys
stream = open(0, "rb", closefd=False)
try:
    orders = marshal.loads(stream.read(int.from_bytes(stream.read(4), "big")))
except (EOFError, ValueError):
    sys.exit(0)
sys.path[:] = orders["sys_path"]
if sys.argv[1] == "batchlet.node.again":
    from batchlet.node.again import main
    sys.exit(main(sys.argv[2]))
from batchlet.node.bootstrap import main
sys.exit(main(sys.argv[1], orders, stream))
"""
#: Name on the command line of a rank whose agent has died (`batchlet.node.again`).
AGAIN = "batchlet.node.again"
#: Name on the command line of the agent of a node.
AGENT = "batchlet.node.agent"
# Variables of the shell alone: what runs as the agent, what that has beside the variables of the rank, whether the shell is to
# start one, and whether one has accepted this rank already.
_PYTHON, _CODE = "BATCHLET_AGENT_PYTHON", "BATCHLET_AGENT_CODE"
_ADDED, _STARTS = "BATCHLET_AGENT_ADDED", "BATCHLET_AGENT_STARTS"
_ACCEPTED = "BATCHLET_ACCEPTED"
_SCRIPT = os.path.join(os.path.dirname(__file__), "wait.sh")  # noqa: PTH118, PTH120
# File descriptors of the shell: the connection to the agent, the agent's end of the socket, the agent's orders with what it
# leaves to the next one (`batchlet.node.handover`).
_CONNECTION, AGENT_SOCKET, _ORDERS = 3, 4, 5
# Above all that is given to the shell.
_ABOVE = 10


def may_become_shell() -> bool:
    """Whether this process may become a shell: MPI would miss it, once it is initialized."""
    mpi = sys.modules.get("mpi4py.MPI")
    return (
        (mpi is None or not mpi.Is_initialized())
        and os.access("/bin/sh", os.X_OK)
        and os.path.exists(_SCRIPT)  # noqa: PTH110
        and hasattr(os, "memfd_create")
    )


def become_shell(
    connection: _socket.socket,
    environ: Mapping[str, str],
    agents_end: _socket.socket | None = None,
    orders: bytes | None = None,
    *,
    handover: int | None = None,
) -> None:
    """Wait for the rest as a shell; returns if that is not possible after all.

    Parameters
    ----------
    connection : socket
        To the agent.
    environ : mapping of str to str
        Of this rank.
    agents_end : socket, optional
        Of an agent that the shell starts first.
    orders : bytes, optional
        The orders of that agent.
    handover : int, optional
        What an agent that others have started has handed over, see `batchlet.node.handover`: a file descriptor.
    """
    environ = {**environ, _PYTHON: sys.executable, _CODE: START}
    given = [(connection.fileno(), _CONNECTION)]
    if agents_end is not None and orders is not None:
        given += [(agents_end.fileno(), AGENT_SOCKET), (memory_file(orders), _ORDERS)]
        added = [name for name in AGENT_ENVIRONMENT if name not in environ]
        environ = {**AGENT_ENVIRONMENT, **environ, _STARTS: "1", _ADDED: " ".join(added)}
    else:
        # A rank that starts no agent comes here when one has accepted it.
        environ[_ACCEPTED] = "1"
        given += [(handover, _ORDERS)] if handover is not None else []
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    # Out of each other's way first.
    moved = [(_out_of_the_way(number), wanted) for number, wanted in given]
    os.set_blocking(connection.fileno(), True)
    for number, wanted in moved:
        os.dup2(number, wanted)
    try:
        os.execve("/bin/sh", ["sh", _SCRIPT], environ)  # noqa: S606
    except OSError:
        return


def memory_file(content: bytes) -> int:
    """Make a file in memory, to be read from its beginning; gives its descriptor."""
    number = os.memfd_create("batchlet")
    written = 0
    while written < len(content):
        written += os.write(number, content[written:])
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _out_of_the_way(number: int) -> int:
    """Duplicate a file descriptor above all that is given to the shell; this, and what it took, ends with Python.

    The module that has a function for it would be one more to load, for each rank.
    """
    while number < _ABOVE:
        number = os.dup(number)
    return number
