"""What is said in this process at level "warning" and above, by any logger or as a warning of Python's, as lines to be kept.

What is printed stays as it is.
"""

from __future__ import annotations

import functools
import logging
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from ..run_report.log_lines import LogLine, cut, level_of
from .compat.log_messages import greedy_worker
from .compat.logging_internals import hear_records
from .logs import Strangers, hear_deaths

__all__ = ["FILTERS", "LogTap"]

#: What these drop is not kept either; each tap of a process has the same.
FILTERS: list[logging.Filter] = [Strangers()]
_WARNINGS, _NANNY = "py.warnings", "distributed.nanny"


class LogTap:
    """Has the lines of this process kept, until it is closed.

    Parameters
    ----------
    put : callable
        Gets each line; in the thread that has said it.
    node : str
        Name of this node.
    who : callable
        From the name of a logger to the process that speaks, as people call it, and its rank; `None` for a logger whose words
        are not kept.
    owner_of : callable
        From the number of a worker's process to that worker and its rank, where it is a child of this process.
    refuses : callable
        Whether so much is said at a level that a line need not be made.
    warn : bool
        Whether warnings of Python's are kept too, which every user's code may give.
    """

    def __init__(
        self,
        put: Callable[[LogLine], object],
        node: str,
        who: Callable[[str], tuple[str, int | None] | None],
        *,
        owner_of: Callable[[int], tuple[str, int | None] | None] = lambda _: None,
        refuses: Callable[[str], bool] = lambda _: False,
        warn: bool = True,
    ) -> None:
        self._put = put
        self._node = node
        self._who = who
        self._owner_of = owner_of
        self._refuses = refuses
        self._end_records = hear_records(self._hear)
        self._end_deaths = hear_deaths(self._hear_death)
        self._before: Any = None
        self._warner: Any = None
        if warn:
            self._before = warnings.showwarning
            self._warner = self._show(warnings.showwarning)
            warnings.showwarning = self._warner

    def close(self) -> None:
        """Keep no more."""
        self._end_records()
        self._end_deaths()
        # Who has put something over it meanwhile keeps it.
        if self._before is not None and warnings.showwarning is self._warner:
            warnings.showwarning = self._before
        self._put = lambda _: None

    def _hear(self, record: logging.LogRecord) -> None:
        known = self._who(record.name)
        level = level_of(record.levelno)
        if known is None or self._refuses(level) or not all(one.filter(record) for one in FILTERS):
            return
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{record.exc_text or ''.join(traceback.format_exception(*record.exc_info)).rstrip()}"
        pid = greedy_worker(text)
        who = (pid is not None and self._owner_of(pid)) or known
        self._put((record.created, level, *who, self._node, record.name, cut(text)))

    def _hear_death(self, pid: int, text: str) -> None:
        who = self._owner_of(pid) or self._who(_NANNY)
        if who is not None:
            self._put((time.time(), "error", *who, self._node, _NANNY, cut(text)))

    def _show(self, before: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(before)
        def show(
            message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
        ) -> None:
            before(message, category, filename, lineno, file, line)
            # One that is shown elsewhere, to a file or in a test of the user's, is nobody else's business.
            known = self._who(_WARNINGS)
            if file is None and known is not None and not self._refuses("warning"):
                text = cut(f"{category.__name__}: {message} ({filename}:{lineno})")
                self._put((time.time(), "warning", *known, self._node, _WARNINGS, text))

        return show
