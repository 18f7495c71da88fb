"""What workers and nodes have used: one tally for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from .series import Series

__all__ = ["Place", "Tally", "naturally", "since", "use_of"]

T = TypeVar("T")


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
        self.planned = 0.0
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

    def row(self, zero: float) -> dict[str, Any]:
        """Give an entry of `workers` in the schema; moments are seconds since `zero`."""
        return {
            "node": self.node,
            "rank": self.rank,
            "threads": self.threads,
            "memory_limit": self.limit,
            "cpu_seconds": round(self.total("cpu"), 2),
            "memory_peak": round(self.peak),
            "spilled_peak": round(self.spilled_peak),
            "sent": round(self.total("sent")),
            "received": round(self.total("received")),
            "tasks": round(self.total("tasks")),
            "busy_seconds": round(self.total("busy"), 3),
            "came": since(zero, self.came) or 0.0,
            "went": since(zero, self.went),
            "restarts": round(self.total("restarts")),
        }


class Place:
    """A node: its plan, and the course of its figures."""

    def __init__(self, points: int) -> None:
        self.figures: dict[str, Any] = {}
        self.workers: list[str] = []
        self.cpus = self.memory = 0.0
        self.series = Series(points)
        # When its workers were last looked at, and their CPU seconds in this block by then.
        self.seen: tuple[float, float] | None = None

    def sum_up(self, tallies: Mapping[str, Tally]) -> None:
        """Settle what its roles may use: what the plan says, and what workers may that are not in it."""
        for name, theirs in (("cpus", "threads"), ("memory", "limit")):
            figure = self.figures.get(name)
            brought = sum(getattr(one, theirs) for one in self.of(tallies) if not figure or one.rank is None)
            setattr(self, name, float(brought + (figure["value"] if figure else 0.0)))

    def granted(self, tallies: Mapping[str, Tally], start: float, end: float) -> float:
        """CPU seconds that were granted from one moment to another, while it had workers."""
        plan = self.figures.get("cpus")
        of_plan = of_others = 0.0
        for one in self.of(tallies):
            seconds = max(0.0, min(end, end if one.went is None else one.went) - max(start, one.planned))
            if plan and one.rank is not None:
                of_plan = max(of_plan, plan["value"] * seconds)
            else:
                # With a job of its own, which may share a node with the run.
                of_others += one.threads * seconds
        return of_plan + of_others

    def of(self, tallies: Mapping[str, Tally]) -> list[Tally]:
        """Give what its workers have used."""
        return [tallies[name] for name in self.workers if name in tallies]

    def row(self, zero: float) -> dict[str, Any]:
        """Give an entry of `nodes` in the schema; moments are seconds since `zero`."""
        return {
            "figures": self.figures,
            "workers": list(self.workers),
            "cpus": self.cpus,
            "memory": self.memory,
            **self.series.columns(zero),
        }


def use_of(tallies: Mapping[str, Tally], granted: float, *, of_block: bool) -> dict[str, Any]:
    """Give the part `use` of the schema.

    Parameters
    ----------
    tallies : mapping
        What the workers have used, by their names.
    granted : float
        CPU seconds that they could have used.
    of_block : bool
        Whether it is about the block alone, and not about those before it too.
    """

    def total(name: str) -> float:
        return sum(tally.now[name] if of_block else tally.total(name) for tally in tallies.values())

    cpu = total("cpu")
    peaks = [
        ((tally.peak_of_block if of_block else tally.peak) / tally.limit, name)
        for name, tally in tallies.items()
        if tally.limit
    ]
    most, worker = max(peaks, default=(0.0, None))
    return {
        "cpu_seconds": round(cpu, 2),
        "cpu_granted_seconds": round(granted, 2),
        "cpu_fraction": round(cpu / granted, 4) if granted else None,
        "memory_peak_fraction": round(most, 4) if most else None,
        "memory_peak_worker": worker if most else None,
        "spilled": round(total("written")),
        "sent": round(total("sent")),
    }


def since(zero: float, at: float | None) -> float | None:
    """Seconds from one moment to another."""
    return None if at is None else round(at - zero, 3)


def naturally(named: Mapping[str, T]) -> list[tuple[str, T]]:
    """Order what has names as people do: n2 before n10."""

    def parts(entry: tuple[str, T]) -> list[tuple[bool, int, str]]:
        texts = re.split(r"([0-9]+)", entry[0])
        return [(bool(number % 2), int(text) if number % 2 else 0, text) for number, text in enumerate(texts)]

    return sorted(named.items(), key=parts)
