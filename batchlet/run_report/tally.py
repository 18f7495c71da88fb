"""What workers and nodes have used: one tally for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .series import Series

__all__ = ["Place", "Tally"]


class Tally:
    """What one worker has used, in all blocks.

    Its figures come as what they are since its block began.
    """

    # What adds up from block to block, and over the processes of a worker.
    _SUMS = ("cpu", "sent", "received", "tasks", "busy", "written", "restarts")

    def __init__(self, node: str, rank: int | None, threads: int, limit: float) -> None:
        self.node = node
        self.rank = rank
        self.threads = threads
        self.limit = limit
        self.now = dict.fromkeys(self._SUMS, 0.0)
        self._before = dict.fromkeys(self._SUMS, 0.0)
        self.used = self.spilled = self.executing = 0.0
        self.peak = self.spilled_peak = 0.0
        self.peak_of_block = 0.0
        self.came: float | None = None
        self.went: float | None = None

    def begin(self) -> None:
        """Begin another block: what counts in its process begins at nothing."""
        for name in self._SUMS:
            self._before[name] += self.now[name]
            self.now[name] = 0.0
        self.used = self.spilled = self.executing = self.peak_of_block = 0.0

    def total(self, name: str) -> float:
        """Give what has come together in all blocks."""
        return self._before[name] + self.now[name]

    def note(self, name: str, value: float) -> None:
        """Take a figure that only grows."""
        self.now[name] = max(self.now[name], value)

    def hold(self, used: float, peak: float) -> None:
        """Take the memory in use, and the most that it was."""
        self.used = used
        self.peak_of_block = max(self.peak_of_block, used, peak)
        self.peak = max(self.peak, self.peak_of_block)


class Place:
    """A node: its plan, and the course of its figures."""

    def __init__(self, points: int) -> None:
        self.figures: dict[str, Any] = {}
        self.workers: list[str] = []
        self.cpus = self.memory = 0.0
        self.series = Series(points)
        # When its workers were last looked at, and their CPU seconds in this block by then.
        self.seen: tuple[float, float] | None = None

    def of(self, tallies: Mapping[str, Tally]) -> list[Tally]:
        """Give what its workers have used."""
        return [tallies[name] for name in self.workers if name in tallies]
