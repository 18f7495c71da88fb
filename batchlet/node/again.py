"""A rank that waited as a shell when its agent died: it attaches again, as at first, with what the agent has left.

The shell has become Python again for that (`wait.sh`), in the same process; it is a shell again as soon as it can be. As at the
start hundreds of ranks come here at the same moment: this module imports next to nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from . import handover
from .attach import AgentConnection
from .inputs import of_this_rank

__all__ = ["main"]


def main(status: str) -> int:
    """Attach again; the agent's orders, and what it has added to them, are on standard input.

    Parameters
    ----------
    status : str
        The exit status of the agent, where this rank has seen it.

    Returns
    -------
    int
        The exit code. Whatever goes wrong, rank 0 misses the workers and says so.
    """
    orders = handover.inherit(handover.read_all(0))
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    if orders is None:
        return 0
    environ = dict(os.environ)
    connection = AgentConnection(None, environ, lambda: of_this_rank(environ, layout=orders["layout"]), dict, 0.0)
    connection.take_over(orders, handover.how_it_ended(int(status)) if status else "")
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, connection.on_signal)
    return connection.hold()
