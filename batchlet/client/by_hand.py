"""Runs that are started and ended by hand, mostly where somebody types the code: a Python prompt, IPython, a notebook."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..errors import EndError

__all__ = ["after_cell", "close", "ends_with_process", "is_interactive"]


def is_interactive() -> bool:
    """Whether somebody types the code of this process; nothing is imported to find out."""
    return hasattr(sys, "ps1") or _ipython() is not None


def _ipython() -> Any:
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get() if callable(get) else None


def after_cell(leave: Callable[[BaseException | None], object]) -> Callable[[EndError], None]:
    """End an IPython session by an error once its cell is over: IPython shows every exception of a cell, and goes on.

    Where no cell runs the error ends it right away, as it does a plain Python prompt.

    Parameters
    ----------
    leave : callable
        Ends the run.

    Returns
    -------
    callable
        To be called with the error, in the main thread, before it is raised there.
    """

    def prepare(error: EndError) -> None:
        shell = _ipython()
        if shell is None:
            return

        def end(*_: object) -> None:
            shell.events.unregister("post_run_cell", end)
            # Before the kernel ends: it kills all child processes then.
            leave(error)
            raise error

        shell.events.register("post_run_cell", end)

    return prepare


def ends_with_process(leave: Callable[[BaseException | None], object], *, typed: bool) -> Callable[[], object]:
    """End a run with the interpreter, whose exit code is settled by then.

    Parameters
    ----------
    leave : callable
        Ends the run; gets what has ended the script, as far as that is known.
    typed : bool
        Whether somebody types the code; the last exception has not ended anything then.

    Returns
    -------
    callable
        Takes it back.
    """
    from ..dask_backend.compat.interpreter_end import before_pools_end

    # Of the process whose end it is: a forked child that ends as a script does is not the run's client.
    processes = [os.getpid()]

    def end() -> None:
        if os.getpid() in processes:
            with contextlib.suppress(EndError):
                leave(None if typed else getattr(sys, "last_value", None))

    before_pools_end(end)
    return processes.clear


def close(session: Any) -> Any:
    """End a run, if it is under way; gives something to ``await`` in asynchronous mode, and in the event loop of a client.

    Parameters
    ----------
    session : Session
        The run.
    """
    over = session.state != "running"
    # `Client.shutdown` closes its cluster in its event loop.
    if session.asynchronous or (threading.current_thread() is not threading.main_thread() and _in_event_loop()):
        return _nothing() if over else session.leave_async(None)
    if not over:
        session.leave(None)
    return None


def _in_event_loop() -> bool:
    # Whoever runs one has imported it.
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


async def _nothing() -> None:
    """Wait for nothing."""
