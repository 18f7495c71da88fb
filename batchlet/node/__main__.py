"""A process that Batchlet itself has started: it reads its orders from standard input and follows them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from ..environments import select
from ..errors import EndError
from ..plan import SCHEDULER
from ..rendezvous.base import CoordinatorRecord
from ..rendezvous.pipe import PipeRendezvous
from .bootstrap import HostOrders, StepOrders, quick_orders, receive
from .rank import Rank
from .wait import QUICK

__all__ = ["main"]

# Seconds that a participant has to end in good order once its starter is gone.
_GRACE = 10.0


class _Inbox:
    """Standard input, read in a thread: the record, and at last the end of the starter."""

    def __init__(self) -> None:
        self.record: CoordinatorRecord | None = None
        threading.Thread(target=self._read, name="batchlet-orders", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.record = receive()
        time.sleep(_GRACE)
        os._exit(1)


def main() -> int:
    """Do as ordered.

    Returns
    -------
    int
        The exit code.
    """
    began = time.monotonic()
    try:
        orders: HostOrders | StepOrders = _started_by_shell() if sys.argv[1:] == [QUICK] else receive()
    except EOFError:
        return 0
    except EndError as error:
        return error.exit_code
    sys.path[:] = orders.sys_path
    began += orders.patience - orders.settings.start_timeout
    try:
        if isinstance(orders, HostOrders):
            from .agent import host

            code = host(orders, began)
            sys.stdout.flush()
            sys.stderr.flush()
            # Taking the interpreter apart, with all that Dask has imported, takes a tenth of a second.
            os._exit(code)
        return _take_part(orders, began)
    except EndError as error:
        # Rank 0 has printed it, or the starter will miss us.
        return error.exit_code


def _started_by_shell() -> HostOrders:
    """Be what a process is that Python starts: a shell has its background processes ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.setsid()
    return quick_orders()


def _take_part(orders: StepOrders, began: float) -> int:
    """Be a rank of a step."""
    inbox = _Inbox()
    environ = dict(os.environ)
    environment, _ = select(orders.settings.mode, environ)
    rank = Rank(orders.settings, environment, environment.process(environ), environ, began)
    for name in environ.keys() - environment.task_environ(environ).keys():
        # No process of the user's code is to think that it is such a rank.
        del os.environ[name]
    rendezvous = PipeRendezvous(lambda: inbox.record)
    if rank.role == SCHEDULER:
        return rank.run_scheduler(rendezvous)
    return rank.work(rendezvous)


if __name__ == "__main__":
    sys.exit(main())
