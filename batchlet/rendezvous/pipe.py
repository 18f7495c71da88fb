"""The processes of a step that Batchlet has started itself meet through the pipe to their starter.

Rank 0 prints the record as one line, which srun carries to the starter; the starter sends it to all of them. Nothing is
written to a file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ..errors import StartTimeoutError
from .base import CoordinatorRecord, Rendezvous

__all__ = ["MARK", "PipeRendezvous"]

# Begins the line with the record; a control character that no ordinary line begins with.
MARK = "\x01batchlet "
_PAUSE = 0.01


class PipeRendezvous(Rendezvous):
    """Meet through the standard streams.

    Parameters
    ----------
    received : callable
        Gives the record once the starter has sent it, `None` before.
    """

    def __init__(self, received: Callable[[], CoordinatorRecord | None]) -> None:
        self._received = received

    def check(self) -> None:
        """Nothing can be wrong with a pipe that has brought the orders."""

    def publish(self, record: CoordinatorRecord) -> None:
        """See the base class."""
        sys.stdout.write(f"{MARK}{record.to_json()}\n")
        sys.stdout.flush()

    def wait(self, deadline: float) -> CoordinatorRecord:
        """See the base class."""
        while time.monotonic() < deadline:
            record = self._received()
            if record is not None:
                return record
            time.sleep(_PAUSE)
        raise StartTimeoutError("No word from rank 0 (start_timeout); its output says why.")

    def withdraw(self, *, orphaned: bool = False) -> None:
        """Nothing is left behind."""
