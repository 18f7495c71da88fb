"""What the processes of a run tell of it, as it comes in: plans, samples, tasks, events, lines of logs."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .log_lines import LogStore
from .tally import Place, Tally, since
from .task_groups import TaskGroups

__all__ = ["TOLD", "Told"]

#: What another process of the run may tell (`Collector.take`).
TOLD = (
    "about", "ready", "ended", "plan", "sample", "traffic", "lost", "tasks", "event", "log", "dropped", "marks"
)  # fmt: skip
_TIMELESS = ("about", "tasks", "dropped", "marks")
# Points of the series of one node, and of all nodes together: what is older is thinned. A report stays below some megabytes.
_POINTS, _ALL_POINTS, _LEAST_POINTS = 720, 72_000, 60
# The newest are kept.
_EVENTS = 1000
# Seconds between two points, at least.
_NEAR = 0.1


class Told:
    """Keeps what is told; see `batchlet.run_report.collector.Collector`.

    Parameters
    ----------
    at : float
        When the first process of the run started.
    """

    def __init__(self, at: float) -> None:
        self._zero = at
        # When the block was ready.
        self._ready: float | None = None
        self._nodes: dict[str, Place] = {}
        self._workers: dict[str, Tally] = {}
        self._groups = TaskGroups()
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=_EVENTS)
        self.logs = LogStore()
        self._timeline: dict[str, Sequence[Sequence[Any]]] = {}

    def _begin(self) -> None:
        """Begin another block: what counts in processes begins at nothing."""
        for tally in self._workers.values():
            tally.begin()
        for node in self._nodes.values():
            node.seen = None
        self._groups.begin()

    def take(self, at: float, told: Iterable[Sequence[Any]], node: str | None = None) -> None:
        """Take in what another process has told.

        Parameters
        ----------
        at : float
            When it came.
        told : iterable of name and keyword arguments
            Name of a method of this class (`TOLD`), and its arguments but `at`.
        node : str, optional
            Whence it came, where that is not among the arguments.
        """
        for name, arguments in told:
            if name not in TOLD:
                continue
            if name in ("event", "log") and node is not None:
                arguments = {"node": node, **arguments}
            if name in _TIMELESS:
                getattr(self, name)(**arguments)
            else:
                getattr(self, name)(**{"at": at, **arguments})

    def plan(self, at: float, node: str, figures: Mapping[str, Any], workers: Iterable[Sequence[Any]]) -> None:
        """Take the plan of a node, or of a part of it: several agents may share one, each with workers of its own.

        Parameters
        ----------
        at : float
            When it was told.
        node : str
            Its name.
        figures : mapping
            Name of a figure to value and source; memory in bytes. Nothing of a node of which only workers are known: they are
            all that it counts for.
        workers : iterable
            Of each name, rank, threads and memory limit in bytes.
        """
        place = self._nodes.setdefault(node, Place(_POINTS))
        place.figures |= {name: {"value": figure[0], "source": str(figure[1])} for name, figure in figures.items()}
        for name, rank, threads, limit in workers:
            known = self._workers.get(str(name))
            if known is None:
                self._workers[str(name)] = Tally(node, rank, threads, limit)
            else:
                known.node, known.rank, known.threads, known.limit = node, rank, threads, limit
            self._workers[str(name)].came = self._workers[str(name)].went = None
            self._workers[str(name)].planned = at
            if str(name) not in place.workers:
                place.workers.append(str(name))
        place.sum_up(self._workers)
        points = max(_LEAST_POINTS, min(_POINTS, _ALL_POINTS // len(self._nodes)))
        for one in self._nodes.values():
            one.series.limit(points)

    def sample(
        self,
        at: float,
        node: str,
        workers: Mapping[str, Sequence[float]],
        gpu: Sequence[float] | None = None,
    ) -> None:
        """Take what an agent has seen of its workers.

        Parameters
        ----------
        at : float
            When.
        node : str
            Where.
        workers : mapping
            Name to CPU seconds since the block began, memory in bytes, the most that it was, and how often the process of the
            worker was started anew.
        gpu : sequence of float, optional
            GPUs busy, as the sum of their fractions, and memory of the GPUs in use.
        """
        for name, (cpu, used, peak, restarts) in workers.items():
            tally = self._workers.get(name)
            if tally is None:
                continue
            if tally.came is None and used:
                tally.came = at
            tally.note("cpu", cpu)
            tally.note("restarts", restarts)
            tally.hold(used, peak)
        place = self._nodes.get(node)
        if place is None:
            return
        tallies = place.of(self._workers)
        cpu = sum(tally.now["cpu"] for tally in tallies)
        if place.seen is not None and at - place.seen[0] < _NEAR:
            return
        # The first look is where counting begins: what the start of the workers took is none of the course.
        then, before = place.seen or (at - _NEAR, cpu)
        place.seen = (at, cpu)
        busy = max(0.0, cpu - before) / (at - then)
        place.series.add(
            at,
            cpu=min(busy, place.cpus) if place.cpus else busy,
            used=sum(tally.used for tally in tallies),
            spilled=sum(tally.spilled for tally in tallies),
            sent=sum(tally.total("sent") for tally in tallies),
            tasks=sum(tally.executing for tally in tallies),
            gpu=gpu,
        )

    def traffic(self, at: float, workers: Mapping[str, Mapping[str, float]]) -> None:
        """Take what the scheduler knows of workers.

        Parameters
        ----------
        at : float
            When.
        workers : mapping
            Name to any of: `sent`, `received`, `written` (to disk), `tasks`, `busy` (seconds), each since the block began;
            `spilled` (bytes that are on disk) and `executing` (tasks) at this moment.
        """
        for name, figures in workers.items():
            tally = self._workers.get(name)
            if tally is None:
                continue
            if tally.came is None:
                tally.came = at
            tally.went = None
            for figure in ("sent", "received", "written", "tasks", "busy"):
                tally.note(figure, float(figures.get(figure, 0.0)))
            tally.spilled = float(figures.get("spilled", 0.0))
            tally.spilled_peak = max(tally.spilled_peak, tally.spilled)
            tally.note("written", tally.spilled)
            tally.executing = float(figures.get("executing", 0.0))

    def lost(self, at: float, workers: Iterable[str]) -> None:
        """Note that workers have gone before the end of the block."""
        for name in workers:
            tally = self._workers.get(name)
            if tally is not None and tally.went is None:
                tally.went = at
                tally.used = tally.spilled = tally.executing = 0.0

    def tasks(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what became of tasks in this block; see `TaskGroups.take`."""
        self._groups.take(groups)

    def event(self, at: float, kind: str, text: str, node: str | None = None) -> None:
        """Note what has happened: deaths, restarts, losses, signals; `kind` is as in the schema."""
        self._events.append({"at": at, "kind": kind, "text": text, "node": node})

    def log(self, at: float, level: str, who: str, rank: int | None, node: str, logger: str, text: str) -> None:
        """Note a line of a log; of each process the newest are kept."""
        self.logs.log(at, level, who, rank, node, logger, text)

    def dropped(self, lines: int) -> None:
        """Note lines that a process had no room for itself."""
        self.logs.dropped += lines

    def marks(self, who: str, marks: Sequence[Sequence[Any]]) -> None:
        """Note what happened when while a process started; see `batchlet.timeline`."""
        self._timeline[who] = marks
        for _, at in marks:
            self._zero = min(self._zero, float(at))

    def _since(self, at: float | None) -> float | None:
        return since(self._zero, at)
