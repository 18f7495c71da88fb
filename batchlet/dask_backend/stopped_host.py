"""A host of workers that was stopped (SIGSTOP) and is not continued: nobody else on its node could tell, or do anything.

The ranks that wait are shells, which hear nothing of it, and the run would never end. The fork server, which has nothing to do
most of the time, looks at its parent now and then. Where the whole step is suspended, it stands still itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

__all__ = ["watch"]

# How many times the parent is seen stopped before it is killed.
_LOOKS = 10


def watch(patience: float) -> None:
    """Kill the parent of this process when it has been stopped for so many seconds; another host then takes its place."""
    parent, seen = os.getppid(), 0

    def look(_number: int, _frame: object) -> None:
        nonlocal seen
        seen = seen + 1 if _is_stopped(parent) else 0
        if seen > _LOOKS and os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)

    def forget() -> None:
        # Workers have no timer, and are to have no handler either; that of a task is its own.
        if signal.getsignal(signal.SIGALRM) is look:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    signal.signal(signal.SIGALRM, look)
    os.register_at_fork(after_in_child=forget)
    signal.setitimer(signal.ITIMER_REAL, patience / _LOOKS, patience / _LOOKS)


def _is_stopped(process: int) -> bool:
    """Whether a process has been stopped by a signal, other than by a debugger; by Linux' own account."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"
    return False
