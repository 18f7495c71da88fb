"""The tables of a report, as text: the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..planned import shown
from .summary import NodeUse, busy_of
from .wording import clock, cut, duration, percent, size

__all__ = ["Table", "event_rows", "group_rows", "log_rows", "node_rows", "plan_figures", "worker_rows"]

# Groups of tasks that are shown, and characters of a name and of a line.
_GROUPS, _NAME, _LINE = 60, 80, 2000


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Parameters
    ----------
    head : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        The cells.
    numbers : frozenset of int
        Columns of figures, which are set to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = field(default=frozenset())

    @property
    def right(self) -> frozenset[int]:
        """Columns that are set to the right: those asked for, or all whose cells are figures."""
        if self.numbers or not self.rows:
            return self.numbers
        return frozenset(
            column
            for column in range(len(self.head))
            if all(row[column][:1].isdigit() or row[column] in ("", "?") for row in self.rows)
        )


def node_rows(uses: Sequence[NodeUse]) -> Table:
    """Show what each node did."""
    rows = [
        [
            cut(one.name, _NAME), str(one.workers), f"{one.cpus:g}", percent(one.busy), size(one.memory),
            percent(one.peak / one.memory) if one.peak is not None and one.memory > 0 else "?",
            size(one.spilled), size(one.sent),
        ]
        for one in uses
    ]  # fmt: skip
    head = ["node", "workers", "CPUs", "busy", "memory", "peak", "on disk", "sent"]
    return Table(head, rows, frozenset(range(1, 8)))


def worker_rows(report: Mapping[str, Any]) -> Table:
    """Show what each worker did, in the order of the report."""
    rows = []
    for name, worker in report["workers"].items():
        limit, busy = worker["memory_limit"], busy_of(worker, report)
        rows.append(
            [
                name, worker["node"], str(worker["threads"]), percent(busy), duration(worker["cpu_seconds"]),
                f"{worker['tasks']:,}", size(limit), percent(worker["memory_peak"] / limit) if limit > 0 else "?",
                size(worker["spilled_peak"]), size(worker["sent"]), size(worker["received"]), str(worker["restarts"]),
            ]
        )  # fmt: skip
    head = [
        "worker", "node", "threads", "in tasks", "CPU time", "tasks", "memory", "peak", "on disk", "sent", "received",
        "restarts",
    ]  # fmt: skip
    return Table(head, rows, frozenset(range(2, 12)))


def group_rows(report: Mapping[str, Any]) -> Table:
    """Show the groups of tasks, the longest first, and the rest as one."""
    groups = report["task_groups"]
    whole = sum(group["seconds"] for group in groups)
    rest = groups[_GROUPS:]
    shown = groups[:_GROUPS]
    if rest:
        names = ("tasks", "failed", "seconds", "transfer_seconds", "result_bytes")
        summed = {name: sum(group[name] for group in rest) for name in names}
        shown = [*shown, {"name": f"({len(rest)} more)", "first": None, "last": None, **summed}]
    rows = [
        [
            cut(group["name"], _NAME), f"{group['tasks']:,}", f"{group['failed']:,}", duration(group["seconds"]),
            percent(group["seconds"] / whole) if whole > 0 else "?", _each(group), duration(group["transfer_seconds"]),
            size(group["result_bytes"]),
            "" if group["first"] is None or group["last"] is None else f"{clock(group['first'])} to {clock(group['last'])}",
        ]
        for group in shown
    ]  # fmt: skip
    head = ["task group", "tasks", "failed", "time", "part", "each", "fetching", "results", "when"]
    return Table(head, rows, frozenset(range(1, 9)))


def _each(group: Mapping[str, Any]) -> str:
    if not group["tasks"]:
        return ""
    seconds = group["seconds"] / group["tasks"]
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else duration(seconds)


def event_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """List what happened: when, to whom, what, and where."""
    return [
        (clock(event["at"]), event["kind"], cut(event["text"], _LINE), event["node"] or "")
        for event in report["events"]
    ]


def log_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """List the lines of the log: when, how grave, of which process with its rank and node, by which logger, and the line."""
    rows = []
    for line in report["logs"]:
        rank = "" if line["rank"] is None or line["who"].endswith(f" {line['rank']}") else f", rank {line['rank']}"
        of = f"{line['who']}{rank} on {line['node']}" if line["node"] else f"{line['who']}{rank}"
        rows.append((clock(line["at"]), line["level"], of, line["logger"], cut(line["text"], _LINE)))
    return rows


def plan_figures(figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """List the figures of a plan, as ``python -m batchlet --plan`` shows them: name, value, source."""
    return [(name, shown(name, figure["value"]), figure["source"]) for name, figure in figures.items()]
