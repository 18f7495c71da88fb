"""What processes that host workers for somebody else's run, from a job of their own, have in common.

They are guests (`batchlet.node.guest`) and the agents of submitted jobs (`batchlet.node.job_agent`): one connection each, to
whoever has the scheduler, and no ranks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from .. import open_files
from ..control.connection import Connection
from ..control.messages import Hello
from ..control.signals import handled
from ..dask_import import quicker_import
from ..environments import Environment
from ..errors import EndError
from ..rendezvous import CoordinatorRecord
from ..settings import Settings
from ..versions import versions

__all__ = ["Host", "connect", "end_in", "hosting", "signals_to"]

# Seconds by which the hard end of a process comes after the end that was meant.
_LATE = 5.0


class Host(Protocol):
    """A process at work."""

    def signalled(self, number: int) -> None:
        """Do what a signal asks for."""


@contextlib.contextmanager
def signals_to(hosts: Sequence[Host]) -> Iterator[None]:
    """Pass signals on to the process's `Host`; where there is none yet, one ends the process.

    Parameters
    ----------
    hosts : sequence of Host
        Has it, once it is there.
    """

    def signalled(number: int, _: object) -> None:
        if not hosts:
            # Nothing has begun, and what there is of files is removed on the way.
            sys.exit(128 + number)
        hosts[0].signalled(number)

    with handled(signalled):
        yield


@contextlib.contextmanager
def hosting(environment: Environment, settings: Settings, name: str, workers: int, total: int) -> Iterator[str]:
    """Import Dask, have workers forked from a process that has it too, and give a directory for what they spill.

    Parameters
    ----------
    environment : Environment
        Of this process.
    settings : Settings
        Where scratch is to be.
    name : str
        Of the run or job, for the directory.
    workers, total : int
        About how many there will be, here and in all.
    """
    with contextlib.ExitStack() as stack:
        # Before anything is forked, which inherits it.
        open_files.make_room(total, total)
        with quicker_import():
            from ..dask_backend import fork_server, processes, scratch
            from ..dask_backend import workers as dask_workers
            from ..dask_backend.compat.tls_connections import defer_authorities
        usual = environment.scratch_directories(os.environ)
        directory = stack.enter_context(scratch.scratch(settings, usual, name, quiet=True))
        stack.enter_context(processes.hidden_main())
        stack.enter_context(dask_workers.configured(workers, total))
        defer_authorities()
        fork_server.start(directory, workers)
        yield directory


def connect(
    record: CoordinatorRecord, name: str, role: str, node: str, within: float, patience: float
) -> Connection | EndError:
    """Connect to whoever has the scheduler, or give the reason if that is not possible; not in an event loop.

    Parameters
    ----------
    record : CoordinatorRecord
        Where that is.
    name, role, node : str
        Who this is; see `batchlet.control.messages.Hello`.
    within : float
        Seconds that it may take.
    patience : float
        Seconds without a word after which the other side counts as lost.
    """
    try:
        return Connection(record, Hello(name, role, node, versions=versions()), time.monotonic() + within, patience)
    except EndError as error:
        # An event loop would end by it, wherever it is raised.
        return error


def end_in(seconds: float, code: int) -> None:
    """See that this process ends a little after that time, whatever holds it up."""
    limit = threading.Timer(seconds + _LATE, os._exit, [code])
    limit.daemon = True
    limit.start()
