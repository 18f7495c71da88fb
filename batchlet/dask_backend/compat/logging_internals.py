"""Corners of CPython's logging: hearing what all loggers say. Seen with Python 3.10 to 3.13."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable

__all__ = ["hear_records"]

Take = Callable[[logging.LogRecord], object]

# Who hears, and in which process: a child that was forked is another one.
_takers: list[tuple[int, int, Take]] = []
_patched = False
_busy = threading.local()


def hear_records(take: Take, level: int = logging.WARNING) -> Callable[[], None]:
    """Have a function get what any logger of this process says at this level or above, once it has been printed.

    A handler of the root logger would not hear loggers that do not pass on what they say, as Dask's do not; and where there is
    one, ``logging.basicConfig`` does nothing, and what has no handler is not printed any more. So this puts a function in the
    place of ``Logger.callHandlers``, as error trackers do, which comes after the levels and filters of loggers. Without that
    method nothing is heard.

    Parameters
    ----------
    take : callable
        Gets each record. What it raises is suppressed, and what it logs itself is not heard.
    level : int
        The least.

    Returns
    -------
    callable
        Ends this.
    """
    global _patched
    original = getattr(logging.Logger, "callHandlers", None)
    if callable(original) and not _patched:

        @functools.wraps(original)
        def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
            original(self, record)
            if record.levelno >= logging.WARNING and _takers:
                _pass_on(record)

        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
        _patched = True
    entry = (os.getpid(), level, take)
    _takers.append(entry)

    def end() -> None:
        with contextlib.suppress(ValueError):
            _takers.remove(entry)

    return end


def _pass_on(record: logging.LogRecord) -> None:
    if getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        # Quick, for a million records.
        this = os.getpid()
        for pid, level, take in _takers:
            if pid == this and record.levelno >= level:
                take(record)
    except Exception:  # noqa: BLE001, S110 - what is only kept must never harm what is said
        pass
    finally:
        _busy.now = False
