"""The processes that Batchlet itself starts: the agent of a node, and the ranks of a step in an allocation.

Each reads its orders from standard input (`batchlet.node.wait.START` does that, before anything of ours is imported), not from
the command line, since everybody on the machine can read command lines. What the orders mean is found out here: settings,
identity.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from ..errors import EndError
from ..rendezvous.base import CoordinatorRecord
from ..rendezvous.pipe import PipeRendezvous
from . import inputs
from .agent import run_agent
from .rank import Rank
from .resolve import resolve
from .wait import AGENT

__all__ = ["main"]

# Seconds that a rank of a step has to end in good order once its starter is gone.
_GRACE = 10.0


def main(kind: str, orders: Mapping[str, Any], stream: BinaryIO) -> int:
    """Do as ordered.

    Parameters
    ----------
    kind : str
        What kind of process this is.
    orders : mapping
        As `batchlet.node.inputs.for_agent` has made them.
    stream : file
        Where they came from; a rank of a step reads on there.

    Returns
    -------
    int
        The exit code.
    """
    sys.argv[:] = orders["argv"]
    try:
        return _be_the_agent(orders) if kind == AGENT else _be_a_rank(orders, stream)
    except EndError as error:
        # Rank 0 has printed it, or the starter will miss us.
        return error.exit_code


def _be_the_agent(orders: Mapping[str, Any]) -> int:
    # A shell has its background processes ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.setsid()
    rank = resolve(orders, dict(os.environ))
    _forget_what_is_ours(rank)
    code = run_agent(rank, orders)
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking the interpreter apart, with all that Dask has imported, takes a tenth of a second.
    os._exit(code)


def _be_a_rank(orders: Mapping[str, Any], stream: BinaryIO) -> int:
    """Be a rank of a step, for as long as its starter lives: the pipe from there ends with it, whatever ends it."""
    # Not at the top: an agent has no use for all of that.
    from .rank_roles import take_part

    inbox = _Inbox(stream)
    rank = resolve(orders, dict(os.environ), from_elsewhere=True)
    _forget_what_is_ours(rank)
    options, _ = inputs.unpack_options(orders)
    return take_part(rank, options, PipeRendezvous(lambda: inbox.record))


def _forget_what_is_ours(rank: Rank) -> None:
    """Take away the variables that were meant for Batchlet: no process of the user's code is to think that it is a rank."""
    for name in rank.environ.keys() - rank.task_environ.keys():
        del os.environ[name]


class _Inbox:
    """Standard input, read in a thread: the coordinator's record, and at last the end of the starter."""

    def __init__(self, stream: BinaryIO) -> None:
        self.record: CoordinatorRecord | None = None
        self._stream = stream
        threading.Thread(target=self._read, name="batchlet-inbox", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.record = CoordinatorRecord(**inputs.read(self._stream)["record"])
        time.sleep(_GRACE)
        os._exit(1)
