"""What the scheduler knows of tasks and workers, for the report: counted as it happens, told now and then."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from .compat.figures import done_with, figures_of

__all__ = ["SchedulerFigures"]

_SUMS = ("sent", "received", "written")
# Prefixes that are told of: a program may make thousands, and each is a line of the report.
_MOST = 500
_OTHERS = "(others)"


class SchedulerFigures(SchedulerPlugin):  # type: ignore[misc]
    """Counts tasks, and gives what there is to tell.

    Parameters
    ----------
    scheduler : Scheduler
        Which.
    """

    name = "batchlet-figures"

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        # Tasks and seconds, by the name of the worker.
        self._workers: dict[str, list[float]] = {}
        # By prefix: tasks, failed, seconds, transfer seconds, bytes, first, last.
        self._groups: dict[str, list[Any]] = {}
        # What earlier processes of a worker have sent and received.
        self._before: dict[str, dict[str, float]] = {}
        self._gone: list[str] = []
        # What each worker has told: when a plugin hears that one has gone, the scheduler has forgotten it.
        self._states: dict[str, Any] = dict(scheduler.workers)
        # Whether workers leave because the block is over.
        self.over = False

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Remember what will have told of this worker."""
        self._states[worker] = scheduler.workers[worker]

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take in that a task is done; called for each step of each task, hence short."""
        if start != "processing" or (finish not in ("memory", "erred")):
            return
        scheduler = self._scheduler
        prefix = scheduler.tasks[key].prefix.name
        group = self._groups.get(prefix)
        if group is None:
            if len(self._groups) >= _MOST:
                prefix = _OTHERS
            group = self._groups.setdefault(prefix, [0, 0, 0.0, 0.0, 0, None, None])
        if finish == "erred":
            group[1] += 1
            return
        address, seconds, transfer, first, last, size = done_with(kwargs)
        group[0] += 1
        group[2] += seconds
        group[3] += transfer
        group[4] += size
        if first is not None:
            if group[5] is None or first < group[5]:
                group[5] = first
            if group[6] is None or last > group[6]:
                group[6] = last
        state = scheduler.workers.get(address)
        if state is not None:
            worker = self._workers.get(state.name)
            if worker is None:
                worker = self._workers[state.name] = [0, 0.0]
            worker[0] += 1
            worker[1] += seconds

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Keep what a worker has told before it goes: if it comes back, it counts from nothing."""
        state = self._states.pop(worker, None)
        if state is not None:
            figures, before = figures_of(state), self._before.setdefault(str(state.name), dict.fromkeys(_SUMS, 0.0))
            for name in _SUMS:
                before[name] += figures[name]
            if not self.over:
                self._gone.append(str(state.name))

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Give what is to be told; see `batchlet.run_report.told.Told.take`."""
        workers: dict[str, dict[str, float]] = {}
        for state in list(self._scheduler.workers.values()):
            figures, name = figures_of(state), str(state.name)
            for sum_, value in self._before.get(name, {}).items():
                figures[sum_] += value
            tasks, busy = self._workers.get(state.name, (0, 0.0))
            workers[name] = {**figures, "tasks": tasks, "busy": round(busy, 4)}
        groups = {
            prefix: {
                "tasks": tasks,
                "failed": failed,
                "seconds": round(seconds, 4),
                "transfer_seconds": round(transfer, 4),
                "result_bytes": size,
                "first": first,
                "last": last,
            }
            for prefix, (tasks, failed, seconds, transfer, size, first, last) in self._groups.items()
        }
        gone, self._gone = self._gone, []
        told: list[tuple[str, dict[str, Any]]] = [("lost", {"workers": gone})] if gone else []
        told += [("traffic", {"workers": workers})] if workers else []
        return [*told, ("tasks", {"groups": groups})] if groups else told
