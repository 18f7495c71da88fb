"""A worker rank while it waits: not Python any more, but a shell of some hundred kilobytes that runs ``wait.sh``.

It may be the parent of the host of its node's workers, and then sees that end: Slurm looks for what is left of a step. Like
`batchlet.node.attach` this module imports next to nothing; hundreds of ranks come here at the same moment.
"""

from __future__ import annotations

import marshal
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping
    from typing import Any

__all__ = ["AGENT_ENVIRONMENT", "LISTENER", "QUICK", "may_park", "orders_of", "park", "read_orders"]

# What Dask's Nanny gives its workers before they start, for the process from which all workers of a node are forked: some of
# it counts only when a process starts. The same seed on all nodes, so that they agree on the hash of a text.
AGENT_ENVIRONMENT = {
    "PYTHONHASHSEED": "6640",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# How a host is told, on its command line, that its orders are those of `orders_of`.
QUICK = "quick"
# Tells the shell which Python is to run the host.
_PYTHON = "BATCHLET_HOST_PYTHON"
_SEATED = "BATCHLET_SEATED"
_SCRIPT = os.path.join(os.path.dirname(__file__), "wait.sh")  # noqa: PTH118, PTH120
# File descriptors of the shell: the connection to the host, the socket that the host listens on, the host's orders.
_CONNECTION, LISTENER, _ORDERS = 3, 4, 5
# Above all that is given to the shell.
_ABOVE = 10


def orders_of(options: Mapping[str, object], program: tuple[str, str] | None, patience: float) -> bytes | None:
    """Write down what a host has to know that is not in its environment; `None` if that is more than plain data.

    Parameters
    ----------
    options : mapping of str to object
        What the user asked for.
    program : tuple of str, optional
        Kind and target of what `python -m batchlet` is to run.
    patience : float
        Seconds left until all workers must have joined.
    """
    dask = sys.modules.get("dask.config")
    try:
        return marshal.dumps(
            {
                "options": dict(options),
                "program": program,
                "sys_path": list(sys.path),
                "until": time.monotonic() + patience,
                "dask_config": dict(dask.config) if dask is not None else None,
            }
        )
    except ValueError:
        return None


def read_orders() -> dict[str, Any]:
    """Read what `orders_of` has written, from standard input."""
    with open(0, "rb", closefd=False) as orders:
        return dict(marshal.loads(orders.read()))  # noqa: S302 - from the rank that has started us


def may_park() -> bool:
    """Whether this process may become a shell: MPI would miss it, once it is initialized."""
    mpi = sys.modules.get("mpi4py.MPI")
    return (
        (mpi is None or not mpi.Is_initialized())
        and os.access("/bin/sh", os.X_OK)
        and os.path.exists(_SCRIPT)  # noqa: PTH110
        and hasattr(os, "memfd_create")
    )


def park(connection: _socket.socket, listener: _socket.socket | None = None, orders: bytes | None = None) -> None:
    """Wait for the rest as a shell; returns if that is not possible after all.

    Parameters
    ----------
    connection : socket
        To the host.
    listener : socket, optional
        On which a host is to listen that the shell starts first.
    orders : bytes, optional
        The orders of that host.
    """
    # A rank that has started no host comes here when it has its seat.
    environ = {**os.environ, **({} if listener is not None else {_SEATED: "1"})}
    given = [(connection.fileno(), _CONNECTION)]
    if listener is not None and orders is not None:
        file = os.memfd_create("batchlet")
        os.write(file, orders)
        os.lseek(file, 0, os.SEEK_SET)
        given += [(listener.fileno(), LISTENER), (file, _ORDERS)]
        environ = {**AGENT_ENVIRONMENT, **environ, _PYTHON: sys.executable}
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


def _out_of_the_way(number: int) -> int:
    """Duplicate a file descriptor above all that is given to the shell; this, and what it took, ends with Python.

    The module that has a function for it would be one more to load, for each rank.
    """
    while number < _ABOVE:
        number = os.dup(number)
    return number
