"""What a run did with what it was granted: takes in what its processes tell, and gives the report; without clock and sockets.

The form of the report is `schema.json`. Whoever tells something says when it was, in seconds since the epoch and by one
clock (the coordinator's): those of several nodes differ.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .log_lines import LogLines
from .tally import Place, Tally
from .task_groups import TaskGroups

__all__ = ["FORMAT", "TOLD", "Collector"]

FORMAT = "batchlet-report/1"
#: What another process of the run may tell (`Collector.take`).
TOLD = ("plan", "sample", "traffic", "tasks", "event", "log", "marks")
# Points of the series of one node, and of all nodes together: what is older is thinned. A report stays below some megabytes.
_POINTS, _ALL_POINTS, _LEAST_POINTS = 720, 72_000, 60
# The newest are kept.
_EVENTS = 1000
_LEVELS = ("warning", "error", "critical")


class Collector:
    """Keeps what is told of a run.

    Parameters
    ----------
    at : float
        When the first process of the run started.
    versions : mapping of str to str
        By package.
    """

    def __init__(self, at: float, versions: Mapping[str, str]) -> None:
        self._zero = at
        self._versions = dict(versions)
        self._run: dict[str, Any] = {"id": "", "mode": "", "job": "", "script": [], "attempt": 1, "ranks": 1}
        self._limit: float | None = None
        self._blocks = 0
        self._first_ready: float | None = None
        # Of the block: when it was ready, and when it ended.
        self._ready: float | None = None
        self._ended: float | None = None
        self._granted_before = 0.0
        self._state = "running"
        self._error: dict[str, str] | None = None
        self._exit_code: int | None = None
        self._nodes: dict[str, Place] = {}
        self._workers: dict[str, Tally] = {}
        self._groups = TaskGroups()
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=_EVENTS)
        self._log = LogLines()
        self._timeline: dict[str, Sequence[Sequence[Any]]] = {}

    # The run and its blocks

    def about(self, *, began: float | None = None, limit: float | None = None, **run: Any) -> None:
        """Say what run it is: `id`, `mode`, `job`, `script`, `attempt`, `ranks`; when it began, and when its time ends."""
        self._run |= run
        if began is not None:
            self._zero = min(self._zero, began)
        if limit is not None:
            self._limit = limit

    @property
    def run_id(self) -> str:
        """Name of the run, once it is known."""
        return str(self._run["id"])

    @property
    def state(self) -> str:
        """See the schema: of the block of this moment, or the last one."""
        return self._state

    @property
    def blocks(self) -> int:
        """How many there were, this one included."""
        return self._blocks

    def began(self, at: float) -> None:  # noqa: ARG002
        """Begin a block: the user's code has entered one."""
        self._granted_before += self._granted(self._ended)
        self._blocks += 1
        self._ready = self._ended = None
        self._state, self._error, self._exit_code = "running", None, None
        for tally in self._workers.values():
            tally.begin()
        for node in self._nodes.values():
            node.seen = None
        self._groups.begin()

    def ready(self, at: float) -> None:
        """Note that all workers have joined."""
        self._ready = at
        if self._first_ready is None:
            self._first_ready = at

    def ended(
        self,
        at: float,
        state: str,
        *,
        kind: str | None = None,
        message: str = "",
        exit_code: int | None = None,
    ) -> None:
        """Note how a block has ended; the first time counts.

        Parameters
        ----------
        at : float
            When.
        state : str
            "done", "ended" or "failed"; see the schema.
        kind, message : str, optional
            Class and text of the exception.
        exit_code : int, optional
            What the process ends with because of it.
        """
        if self._state != "running":
            return
        self._state, self._ended, self._exit_code = state, at, exit_code
        self._error = None if kind is None else {"kind": kind, "message": message}
        if kind is not None:
            about = "failure" if state == "failed" else "signal" if kind == "TerminatedError" else "block"
            self.event(at, about, message or kind)

    # What processes tell

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
            if name in ("plan", "marks", "tasks"):
                getattr(self, name)(**arguments)
            else:
                getattr(self, name)(**{"at": at, **arguments})

    def plan(
        self,
        node: str,
        figures: Mapping[str, Any],
        workers: Iterable[Sequence[Any]],
        cpus: float | None = None,
        memory: float | None = None,
    ) -> None:
        """Take the plan of a node, or of a part of it: several agents may share one, each with workers of its own.

        Parameters
        ----------
        node : str
            Its name.
        figures : mapping
            Name of a figure to value and source; memory in bytes.
        workers : iterable
            Of each name, rank, threads and memory limit in bytes.
        cpus, memory : float, optional
            What all roles there may use; by default what the figures say.
        """
        place = self._nodes.setdefault(node, Place(_POINTS))
        place.figures |= {name: {"value": figure[0], "source": str(figure[1])} for name, figure in figures.items()}
        place.cpus = cpus if cpus is not None else float(place.figures.get("cpus", {}).get("value", 0.0))
        place.memory = memory if memory is not None else float(place.figures.get("memory", {}).get("value", 0.0))
        for name, rank, threads, limit in workers:
            known = self._workers.get(str(name))
            if known is None:
                self._workers[str(name)] = Tally(node, rank, threads, limit)
            else:
                known.node, known.rank, known.threads, known.limit = node, rank, threads, limit
            if str(name) not in place.workers:
                place.workers.append(str(name))
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
            if restarts > tally.now["restarts"]:
                self.event(at, "worker", f"worker {name} was started anew", node)
            tally.note("cpu", cpu)
            tally.note("restarts", restarts)
            tally.hold(used, peak)
        place = self._nodes.get(node)
        if place is None:
            return
        tallies = place.of(self._workers)
        cpu = sum(tally.now["cpu"] for tally in tallies)
        then, before = place.seen or (self._ready or at, 0.0)
        place.seen = (at, cpu)
        # The start of the workers is no use of CPUs by the user's code, and their first moment is none of the series.
        busy = max(0.0, cpu - before) / (at - then) if at > then else 0.0
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
        level = level.lower()
        line = {"at": at, "level": level if level in _LEVELS else "warning", "who": who, "rank": rank, "node": node}
        self._log.add({**line, "logger": logger, "text": text})

    def dropped(self, lines: int) -> None:
        """Note lines that a process had no room for itself."""
        self._log.dropped += lines

    def marks(self, who: str, marks: Sequence[Sequence[Any]]) -> None:
        """Note what happened when while a process started; see `batchlet.timeline`."""
        self._timeline[who] = marks
        for _, at in marks:
            self._zero = min(self._zero, float(at))

    # What it comes to

    def _granted(self, until: float | None) -> float:
        """CPU seconds that were granted from ready to a moment, in this block."""
        if self._ready is None or until is None:
            return 0.0
        return sum(node.cpus for node in self._nodes.values() if node.workers) * max(0.0, until - self._ready)

    def use(self, at: float, *, of_block: bool = False) -> dict[str, Any]:
        """Give the part `use` of the schema, for the run up to now or for the block alone."""
        tallies = self._workers

        def total(name: str) -> float:
            return sum(tally.now[name] if of_block else tally.total(name) for tally in tallies.values())

        granted = self._granted(self._ended or at) + (0.0 if of_block else self._granted_before)
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

    def report(self, at: float) -> dict[str, Any]:
        """Give the report as it is at a moment."""
        return {
            "format": FORMAT,
            "versions": self._versions,
            "run": dict(self._run),
            "outcome": {
                "state": self._state,
                "error": self._error,
                "exit_code": self._exit_code,
                "blocks": self._blocks,
            },
            "time": {
                "began": round(self._zero, 3),
                "ready": self._since(self._first_ready),
                "ended": self._since(self._ended),
                "updated": self._since(at),
                "limit": self._since(self._limit),
            },
            "nodes": {name: self._node(node) for name, node in sorted(self._nodes.items(), key=_naturally)},
            "workers": {name: self._worker(tally) for name, tally in sorted(self._workers.items(), key=_naturally)},
            "use": self.use(at),
            "timeline": {
                who: [[str(what), self._since(float(when))] for what, when in marks]
                for who, marks in self._timeline.items()
            },
            "task_groups": self._task_groups(),
            "events": [{**event, "at": self._since(event["at"])} for event in self._events],
            "logs": [{**line, "at": self._since(line["at"])} for line in self._log.lines()],
            "logs_dropped": self._log.dropped,
            "advice": [],
        }

    def _since(self, at: float | None) -> float | None:
        return None if at is None else round(at - self._zero, 3)

    def _node(self, node: Place) -> dict[str, Any]:
        return {
            "figures": node.figures,
            "workers": list(node.workers),
            "cpus": node.cpus,
            "memory": node.memory,
            **node.series.columns(self._zero),
        }

    def _worker(self, tally: Tally) -> dict[str, Any]:
        return {
            "node": tally.node,
            "rank": tally.rank,
            "threads": tally.threads,
            "memory_limit": tally.limit,
            "cpu_seconds": round(tally.total("cpu"), 2),
            "memory_peak": round(tally.peak),
            "spilled_peak": round(tally.spilled_peak),
            "sent": round(tally.total("sent")),
            "received": round(tally.total("received")),
            "tasks": round(tally.total("tasks")),
            "busy_seconds": round(tally.total("busy"), 3),
            "came": self._since(tally.came) or 0.0,
            "went": self._since(tally.went),
            "restarts": round(tally.total("restarts")),
        }

    def _task_groups(self) -> list[dict[str, Any]]:
        return [
            {
                **group,
                "seconds": round(group["seconds"], 4),
                "transfer_seconds": round(group["transfer_seconds"], 4),
                "first": self._since(group["first"]),
                "last": self._since(group["last"]),
            }
            for group in self._groups.longest()
        ]


def _naturally(entry: tuple[str, object]) -> tuple[Any, ...]:
    """Order names with numbers in them as people do: n2 before n10."""
    return tuple(
        (part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", entry[0]) if part
    )
