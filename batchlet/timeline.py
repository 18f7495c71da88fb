"""When did what happen while the run started: a few marks in every process, which rank 0 collects."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Marks", "age", "forget", "lines", "mark", "marks"]

# Event and time (seconds since the epoch: the marks of several nodes are compared, as well as their clocks agree).
Marks = Sequence[tuple[str, float]]

_marks: list[tuple[str, float]] = []
# Nodes that are shown; the slowest ones come first.
_SHOWN = 8


def mark(event: str) -> None:
    """Note that something has happened, the last time if several."""
    _marks[:] = [known for known in _marks if known[0] != event]
    _marks.append((event, time.time()))


def forget() -> None:
    """Drop the marks of the process that this one was forked from."""
    _marks.clear()


def marks() -> Marks:
    """Give the marks of this process, the first of them its start."""
    return [("process started", _process_start()), *_marks]


def age() -> float:
    """Seconds since the start of this process."""
    return time.time() - _process_start()


def _process_start() -> float:
    """When this process was started, in seconds since the epoch; to a hundredth, by Linux' own account."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:  # noqa: PTH123
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return _marks[0][1] if _marks else time.time()


def lines(processes: Mapping[str, Sequence[Sequence[Any]]]) -> list[str]:
    """Show the marks, seconds from the first of all; the processes that were ready last come first.

    Parameters
    ----------
    processes : mapping of str to marks
        The marks of each process, by its name.
    """
    if not processes:
        return []
    zero = min(at for events in processes.values() for _, at in events)
    ordered = sorted(processes, key=lambda name: -max(at for _, at in processes[name]))
    shown = [f"timeline, seconds from the start of the first process{_left_out(len(ordered))}:"]
    for name in ordered[:_SHOWN]:
        events = ", ".join(
            f"{event} {at - zero:.2f}" for event, at in sorted(processes[name], key=lambda entry: entry[1])
        )
        shown.append(f"  {name}: {events}")
    return shown


def _left_out(number: int) -> str:
    return f" (the slowest {_SHOWN} of {number} processes)" if number > _SHOWN else ""
