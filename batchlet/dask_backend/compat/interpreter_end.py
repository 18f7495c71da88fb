"""Corners of CPython's end: what comes before the thread pools. Seen with Python 3.10 to 3.13."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

__all__ = ["before_pools_end"]


def before_pools_end(function: Callable[[], object]) -> None:
    """Call a function when the interpreter ends, while its thread pools still work.

    ``atexit`` is too late for that: a LocalCluster that is closed then says "cannot schedule new futures after shutdown". The
    pools themselves use ``threading._register_atexit``, whose functions are called in reverse order. Without it, ``atexit``.
    Python 3.12 starts no new thread by then; those that are there take work.

    Parameters
    ----------
    function : callable
        Is called once, in the main thread. It cannot be taken back.
    """
    # A pool that is imported later would end before.
    import concurrent.futures.thread  # noqa: F401

    register = getattr(threading, "_register_atexit", atexit.register)
    register(function)
