"""The course of a node's figures: a bounded number of points, of which the older ones stand for more and more time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Series"]


def _mean(first: float, second: float, weight: float) -> float:
    """Mean of two points, of which the second one stands for this part of the time."""
    return first * (1 - weight) + second * weight


class Series:
    """Points in time; where there are too many, each two become one.

    CPUs and tasks become their mean, so that what was used in all stays; memory and what is on disk become the larger one, so
    that peaks stay.

    Parameters
    ----------
    points : int
        The most that are kept.
    """

    def __init__(self, points: int) -> None:
        self._most = points
        # at, cpu, used, spilled, sent, tasks, gpu, gpu_memory
        self._points: list[tuple[float, ...]] = []
        self._gpus = False
        # From when on the first point counts.
        self._start = 0.0

    def __len__(self) -> int:
        return len(self._points)

    def limit(self, points: int) -> None:
        """Keep at most so many from now on."""
        self._most = points
        while len(self._points) > self._most:
            self._thin()

    def add(
        self,
        at: float,
        *,
        cpu: float,
        used: float,
        spilled: float,
        sent: float,
        tasks: float,
        gpu: Sequence[float] | None = None,
    ) -> None:
        """Add a point; see the schema."""
        if self._points and at < self._points[-1][0]:
            return
        if not self._points:
            self._start = at
        self._gpus = self._gpus or gpu is not None
        busy, memory = gpu or (0.0, 0.0)
        self._points.append((at, cpu, used, spilled, sent, tasks, busy, memory))
        self.limit(self._most)

    def _thin(self) -> None:
        """Make one point of each two, from the oldest on; the newest may stay as it is."""
        points, thinned = self._points, []
        start = self._start
        for first, second in zip(points[::2], points[1::2], strict=False):
            length = second[0] - start
            weight = (second[0] - first[0]) / length if length > 0 else 0.5
            thinned.append(
                (
                    second[0],
                    _mean(first[1], second[1], weight),
                    max(first[2], second[2]),
                    max(first[3], second[3]),
                    max(first[4], second[4]),
                    _mean(first[5], second[5], weight),
                    _mean(first[6], second[6], weight),
                    max(first[7], second[7]),
                )
            )
            start = second[0]
        self._points = thinned + (points[-1:] if len(points) % 2 else [])

    def columns(self, zero: float) -> dict[str, list[Any]]:
        """Give the series as the schema has them; moments are seconds since `zero`."""
        at, cpu, used, spilled, sent, tasks, gpu, memory = (
            list(column) for column in (zip(*self._points, strict=True) if self._points else [()] * 8)
        )
        return {
            "at": [round(moment - zero, 2) for moment in at],
            "cpu": [round(value, 3) for value in cpu],
            "used": [round(value) for value in used],
            "spilled": [round(value) for value in spilled],
            "sent": [round(value) for value in sent],
            "tasks": [round(value, 2) for value in tasks],
            "gpu": [round(value, 3) for value in gpu] if self._gpus else [],
            "gpu_memory": [round(value) for value in memory] if self._gpus else [],
        }
