"""What a run did with what it was granted: takes in what its processes tell, and gives the report; without clock and sockets.

The form of the report is `schema.json`. Whoever tells something says when it was, in seconds since the epoch and by one
clock (the coordinator's): those of several nodes differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tally import naturally, use_of
from .told import Told

__all__ = ["FORMAT", "Collector"]

FORMAT = "batchlet-report/1"


class Collector(Told):
    """Keeps what is told of a run, and of the course of its blocks.

    Parameters
    ----------
    at : float
        When the first process of the run started.
    versions : mapping of str to str
        By package.
    """

    def __init__(self, at: float, versions: Mapping[str, str]) -> None:
        super().__init__(at)
        self._versions = dict(versions)
        self._run: dict[str, Any] = {"id": "", "mode": "", "job": "", "script": [], "attempt": 1, "ranks": 1}
        self._limit: float | None = None
        self._blocks = 0
        self._first_ready: float | None = None
        self._ended: float | None = None
        self._granted_before = 0.0
        self._state = "running"
        self._error: dict[str, str] | None = None
        self._exit_code: int | None = None

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
        self._begin()

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

    # What it comes to

    def _granted(self, until: float | None) -> float:
        """CPU seconds that were granted from ready to a moment, in this block."""
        if self._ready is None or until is None:
            return 0.0
        return sum(node.granted(self._workers, self._ready, until) for node in self._nodes.values())

    def use(self, at: float, *, of_block: bool = False) -> dict[str, Any]:
        """Give the part `use` of the schema, for the run up to now or for the block alone."""
        granted = self._granted(self._ended or at) + (0.0 if of_block else self._granted_before)
        return use_of(self._workers, granted, of_block=of_block)

    def report(self, at: float, *, series: bool = True) -> dict[str, Any]:
        """Give the report as it is at a moment; its nodes only with their series."""
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
            "nodes": {name: node.row(self._zero) for name, node in naturally(self._nodes)} if series else {},
            "workers": {name: tally.row(self._zero) for name, tally in naturally(self._workers)},
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
