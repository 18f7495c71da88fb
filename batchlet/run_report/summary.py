"""What a report says in all: courses of figures over time, added up over the nodes, and who was busy, idle or full."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .wording import span_of

__all__ = ["Course", "NodeUse", "busy_of", "course", "lasted", "node_uses", "plans", "rate", "total"]

# Points of a course that is added up; more are not seen in a plot.
_POINTS = 720
# Steps of a rate.
_STEPS = 180


@dataclass(frozen=True)
class Course:
    """A figure over time.

    Parameters
    ----------
    at : sequence of float
        Moments, in seconds from the start of the run; they ascend.
    values : sequence of float
        The figure at each of them.
    """

    at: Sequence[float]
    values: Sequence[float]

    def __len__(self) -> int:
        return len(self.at)

    @property
    def peak(self) -> float:
        """The largest value; 0 where there is none."""
        return max(self.values, default=0.0)

    def mean(self) -> float:
        """Give the mean over time; 0 where there is none."""
        pieces = list(self.pieces())
        length = sum(seconds for seconds, _ in pieces)
        return sum(seconds * value for seconds, value in pieces) / length if length else 0.0

    def pieces(self) -> Sequence[tuple[float, float]]:
        """Give the seconds since the moment before, and the value, for each moment but the first."""
        return [(self.at[i] - self.at[i - 1], self.values[i]) for i in range(1, len(self.at))]

    def between(self, place: int, at: float) -> float:
        """Give the value at a moment between the sample of this place and the next one."""
        if place + 1 >= len(self.at) or self.at[place + 1] <= self.at[place]:
            return self.values[place]
        part = (at - self.at[place]) / (self.at[place + 1] - self.at[place])
        return self.values[place] + part * (self.values[place + 1] - self.values[place])

    def thinned(self, most: int) -> Course:
        """Leave at most so many points, evenly, with the last one."""
        if len(self.at) <= most:
            return self
        chosen = [round(i * (len(self.at) - 1) / (most - 1)) for i in range(most)]
        return Course([self.at[i] for i in chosen], [self.values[i] for i in chosen])


def course(node: Mapping[str, Any], name: str) -> Course:
    """Give a figure of one node over time: "cpu", "used", "spilled", "sent", "tasks", "gpu" or "gpu_memory"."""
    pairs = sorted(zip(node["at"], node[name], strict=False))
    return Course([at for at, _ in pairs], [value for _, value in pairs])


def total(nodes: Mapping[str, Mapping[str, Any]], name: str) -> Course:
    """Add a figure up over nodes, whose samples were taken at moments of their own.

    A node counts from its first sample to its last. What is an average since the sample before ("cpu", "gpu") counts for
    that time, what only grows ("sent") grows evenly between samples, any other figure counts until the next sample.
    """
    courses = [found for node in nodes.values() if len(found := course(node, name))]
    if not courses:
        return Course([], [])
    if len(courses) == 1:
        return courses[0].thinned(_POINTS)
    first, last = min(one.at[0] for one in courses), max(one.at[-1] for one in courses)
    points = min(_POINTS, max(len(one) for one in courses))
    step = (last - first) / max(1, points - 1)
    grid = [first + i * step for i in range(points - 1)] + [last]
    average, values = name in ("cpu", "gpu"), [0.0] * len(grid)
    for one in courses:
        for i in range(bisect_left(grid, one.at[0]), bisect_right(grid, one.at[-1])):
            place = bisect_left(one.at, grid[i]) if average else bisect_right(one.at, grid[i]) - 1
            values[i] += one.between(place, grid[i]) if name == "sent" else one.values[place]
    return Course(grid, values)


def rate(counted: Course) -> Course:
    """Give what a figure that only grows gained per second, in steps that are long enough to be compared."""
    counted = counted.thinned(_STEPS)
    pairs = [
        (counted.at[i], max(0.0, (counted.values[i] - counted.values[i - 1]) / (counted.at[i] - counted.at[i - 1])))
        for i in range(1, len(counted))
        if counted.at[i] > counted.at[i - 1]
    ]
    return Course([at for at, _ in pairs], [value for _, value in pairs])


def lasted(report: Mapping[str, Any]) -> float:
    """Seconds in which the workers were there."""
    ready = report["time"]["ready"]
    return 0.0 if ready is None else max(0.0, span_of(report) - ready)


def busy_of(worker: Mapping[str, Any], report: Mapping[str, Any]) -> float | None:
    """Part of the time of a worker's threads that went into tasks; `None` where it was there for no time."""
    end = span_of(report) if worker["went"] is None else worker["went"]
    time = worker["threads"] * (end - max(worker["came"], report["time"]["ready"] or 0.0))
    return worker["busy_seconds"] / time if time > 0 else None


@dataclass(frozen=True)
class NodeUse:
    """What a node did.

    Parameters
    ----------
    name : str
        Its name.
    workers : int
        How many it had.
    cpus : float
        CPUs that it had.
    busy : float or None
        Part of them that was busy, on average.
    memory : float
        Memory that it had, in bytes.
    peak : float or None
        The most that its workers had at one sample, in bytes; `None` without samples.
    spilled : float
        The most that was on disk at one sample, in bytes.
    sent : float
        Bytes that its workers sent.
    """

    name: str
    workers: int
    cpus: float
    busy: float | None
    memory: float
    peak: float | None
    spilled: float
    sent: float


def node_uses(report: Mapping[str, Any]) -> list[NodeUse]:
    """Say of each node what it did, the busiest first."""
    time = lasted(report)
    seconds: dict[str, float] = {}
    sent: dict[str, float] = {}
    for worker in report["workers"].values():
        seconds[worker["node"]] = seconds.get(worker["node"], 0.0) + worker["cpu_seconds"]
        sent[worker["node"]] = sent.get(worker["node"], 0.0) + worker["sent"]
    uses = []
    for name, node in report["nodes"].items():
        granted = node["cpus"] * time
        uses.append(
            NodeUse(
                name,
                len(node["workers"]),
                node["cpus"],
                seconds.get(name, 0.0) / granted if granted > 0 else None,
                node["memory"],
                course(node, "used").peak if node["used"] else None,
                course(node, "spilled").peak,
                max(sent.get(name, 0.0), course(node, "sent").peak),
            )
        )
    return sorted(uses, key=lambda one: (-(one.busy or 0.0), one.name))


def plans(report: Mapping[str, Any]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Give the plans that there are, each with the nodes that have it, the most common first; nodes of other jobs have none."""
    found: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for name, node in report["nodes"].items():
        if not node["figures"]:
            continue
        key = repr(sorted((figure, sorted(entry.items())) for figure, entry in node["figures"].items()))
        found.setdefault(key, ([], node["figures"]))[0].append(name)
    return sorted(found.values(), key=lambda entry: -len(entry[0]))
