"""The account of a block: what the client says of its end, and what the block came to."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from .. import report, timeline
from ..environments.allocation_end import find_allocation_end
from ..node.rank import Rank
from ..run_report.wording import used
from ..walltime import end_of_run
from .backend import Backend, Outcome, StartInfo
from .telling import ending

__all__ = ["Account", "used_in"]

# Seconds of a block from which on it is worth a word how much was used: starting and ending are no part any more.
_LONG = 10.0
# Bytes on disk that are worth a word.
_MUCH = 1 << 20


class Account:
    """The account of one block.

    Attributes
    ----------
    advice : str
        What would have saved time at the start.
    """

    def __init__(self) -> None:
        self._ready = time.monotonic()
        self._marks: timeline.Marks = ()
        self._stack = contextlib.ExitStack()
        self.advice = ""

    def begin(self, backend: Backend, start: StartInfo) -> None:
        """Begin: the cluster is ready."""
        rank = backend.rank
        self._ready, self._marks = time.monotonic(), timeline.marks()
        if rank.settings.report is not None:
            # The batch system may take seconds to answer, and nobody waits for that.
            threading.Thread(target=_tell_limit, args=[backend], name="batchlet-limit", daemon=True).start()
        path = rank.settings.path("performance_report")
        if path is not None:
            from .performance import Place, performance_report

            place = Place(start.address, start.security)
            self._stack.enter_context(performance_report(place, path, rank.settings.stop_timeout))

    def end(self, backend: Backend, error: BaseException | None) -> None:
        """End: the user's code has left the block, and the cluster is still there."""
        marks = [("marks", {"who": "the client", "marks": self._marks})] if self._marks else []
        backend.for_report([*marks, *ending(error)])
        self._stack.close()

    def show_timeline(self, rank: Rank, outcome: Outcome | None) -> None:
        """Print what took how long at the start, if the user wants that."""
        if rank.settings.timeline and outcome is not None:
            for line in timeline.lines({"the client": self._marks, **outcome.timelines}):
                report.note(line)

    def line(self, outcome: Outcome | None) -> str:
        """Say how much of what was granted was used, for the line at the end."""
        return used_in(outcome.use, time.monotonic() - self._ready) if outcome is not None else ""


def used_in(use: Mapping[str, Any], seconds: float) -> str:
    """Say how much of what was granted a block has used; nothing of short ones but what they have put on disk.

    Parameters
    ----------
    use : mapping
        `use` in the schema of reports.
    seconds : float
        From ready to the end of the block.
    """
    if seconds < _LONG:
        use = {name: use[name] for name in ("spilled",) if name in use}
    return ", ".join(used(use, _MUCH))


def _tell_limit(backend: Backend) -> None:
    """Tell when the allocation ends."""
    rank = backend.rank
    began = time.time() - (time.monotonic() - rank.began)
    end = end_of_run(find_allocation_end(os.environ), rank.settings.time_limit, began)
    if end is not None:
        backend.for_report([("about", {"limit": end.at})])
