"""The account of a block: what the client says of its end, and what the block came to."""

from __future__ import annotations

import contextlib
import time

from ..node.rank import Rank
from .announce import used
from .backend import Backend, Outcome, StartInfo
from .telling import ending

__all__ = ["Account"]


class Account:
    """The account of one block."""

    def __init__(self) -> None:
        self._ready = time.monotonic()
        self._stack = contextlib.ExitStack()

    def begin(self, rank: Rank, start: StartInfo) -> None:
        """Begin: the cluster is ready."""
        self._ready = time.monotonic()
        path = rank.settings.path("performance_report")
        if path is not None:
            from .performance import performance_report

            self._stack.enter_context(performance_report(start, path, rank.settings.stop_timeout))

    def end(self, backend: Backend, error: BaseException | None) -> None:
        """End: the user's code has left the block, and the cluster is still there."""
        backend.for_report(ending(error))
        self._stack.close()

    def line(self, outcome: Outcome | None) -> str:
        """Say how much of what was granted was used, for the line at the end."""
        return used(outcome.use, time.monotonic() - self._ready) if outcome is not None else ""
