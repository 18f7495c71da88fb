"""A report in a terminal: plain text that can be piped, as wide as the terminal; colours only where somebody looks at it."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping
from typing import Any

from .cleaning import cleaned
from .summary import busy_of, node_uses, plans, total
from .tables import Table, event_rows, group_rows, log_rows, node_rows, plan_figures, worker_rows
from .wording import clock, count, cut, moment, names_of, outcome, size, span_of, use, where

__all__ = ["text"]

# The narrowest for which anything is arranged.
_NARROWEST = 40
# Rows of each table; the page has them all.
_NODES, _WORKERS, _GROUPS, _EVENTS, _LOGS, _PROCESSES, _PLANS = 12, 12, 12, 30, 20, 8, 4
# Characters of the error's text, and of an event's or a line of the log.
_ERROR, _LINE = 4000, 500
# Characters beside an indent, at least.
_LEAST = 8
# Stands for the second column; a report that was cleaned has none of it.
_SECOND = "\0"
_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:-=+*%#"
_COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "faint": "2"}
_OF_STATE = {"done": "green", "running": "yellow", "ended": "red", "failed": "red"}


def text(report: Mapping[str, Any], *, width: int = 100, colours: bool = False, signs: bool = True) -> str:
    """Write a report for a terminal.

    Parameters
    ----------
    report : mapping
        The report, in the form of ``schema.json``.
    width : int
        Columns of the terminal.
    colours : bool
        Whether it knows colours.
    signs : bool
        Whether it can show more than ASCII.

    Returns
    -------
    str
        Lines, each no longer than the width (but for words that are), with a line feed at the end of the last one.
    """
    written = _Text(cleaned(report), max(_NARROWEST, width), colours=colours, signs=signs)
    shown = "\n".join(written.lines())
    return (shown if signs else shown.replace("…", "~")) + "\n"


class _Text:
    def __init__(self, report: Mapping[str, Any], width: int, *, colours: bool, signs: bool) -> None:
        self._report = report
        self._width = width
        self._colours = colours
        self._signs = signs

    def lines(self) -> list[str]:
        report = self._report
        lines = self._head()
        if report["advice"]:
            lines += self._title("Advice")
            for piece in report["advice"]:
                lines += self._wrapped(piece["text"], "* ", "  ")
        lines += self._courses()
        uses = node_uses(report)
        if uses:
            rows = node_rows(uses)
            half = _NODES // 2
            few = list(rows.rows) if len(rows.rows) <= _NODES else [*rows.rows[:half], *rows.rows[-half:]]
            lines += self._title(_titled("Nodes", len(few), len(uses), "the busiest and the idlest"))
            lines += self._table(Table(rows.head, few, rows.numbers), "node busy peak CPUs workers memory sent")
        if report["workers"]:
            shown, title = self._workers()
            lines += self._title(title)
            lines += self._table(shown, "worker node in_tasks peak restarts CPU_time tasks memory sent")
        groups = group_rows(report)
        if groups.rows:
            lines += self._title(
                _titled("Tasks", min(_GROUPS, len(groups.rows)), len(groups.rows), "the longest groups")
            )
            longest = Table(groups.head, groups.rows[:_GROUPS], groups.numbers)
            lines += self._table(longest, "task_group time part tasks each fetching failed results")
        lines += self._events() + self._start() + self._plan() + self._logs()
        lines.append("")
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        return [*lines, *self._wrapped(versions)]

    def _head(self) -> list[str]:
        report, time = self._report, self._report["time"]
        lines = self._wrapped(where(report), colour="bold")
        lines += self._wrapped(outcome(report), colour=_OF_STATE[report["outcome"]["state"]])
        if error := report["outcome"]["error"]:
            for line in cut(f"{error['kind']}: {error['message']}", _ERROR).splitlines():
                lines += self._wrapped(line, "  ")
        end = time["updated"] if time["ended"] is None else time["ended"]
        limit = "" if time["limit"] is None else f", time limit {moment(time['began'], time['limit'])}"
        lines += self._wrapped(f"{moment(time['began'])} to {moment(time['began'], end)}{limit}")
        if report["run"]["script"]:
            lines += self._wrapped(cut(" ".join(report["run"]["script"]), 2 * self._width))
        return lines + self._wrapped(use(report), colour="bold") if use(report) else lines

    def _courses(self) -> list[str]:
        """Show CPUs and memory over time as bars, one line each."""
        nodes = self._report["nodes"]
        busy, used = total(nodes, "cpu"), total(nodes, "used")
        if len(busy) < 2:
            return []
        cpus, memory = (sum(node[name] for node in nodes.values()) for name in ("cpus", "memory"))
        rows = [("CPUs busy", busy, cpus, f"of {cpus:g}"), ("memory", used, memory, f"of {size(memory)}")]
        room = self._width - 11 - max(len(after) for *_, after in rows)
        lines = self._title("Over time")
        for name, course, most, after in rows:
            bars = _bars(course, span_of(self._report), most, room, _BARS if self._signs else _PLAIN_BARS)
            lines.append(f"{name:<9} {self._painted(bars, 'green')} {after}".rstrip())
        end = clock(span_of(self._report))
        return [*lines, f"{'':<10}0{end:>{max(1, room - 1)}}"]

    def _workers(self) -> tuple[Table, str]:
        report, workers = self._report, self._report["workers"]
        rows = worker_rows(report)
        if len(workers) <= _WORKERS:
            return rows, _titled("Workers", len(workers), len(workers), "")
        part = _WORKERS // 3
        full = sorted(workers, key=lambda name: -workers[name]["memory_peak"] / max(1.0, workers[name]["memory_limit"]))
        idle = sorted(workers, key=lambda name: busy_of(workers[name], report) or 0.0)
        again = [name for name in workers if workers[name]["restarts"]]
        chosen = dict.fromkeys([*again[:part], *full[:part], *idle[:part]])
        few = [row for row in rows.rows if row[0] in chosen]
        return Table(rows.head, few, rows.numbers), _titled(
            "Workers", len(few), len(workers), "the fullest, the idlest, those started anew"
        )

    def _events(self) -> list[str]:
        events = event_rows(self._report)
        if not events:
            return []
        lines = self._title(_titled("What happened", min(_EVENTS, len(events)), len(events), "the last"))
        for at, _, what, node in events[-_EVENTS:]:
            lines += self._wrapped(
                f"{cut(what, _LINE)}{f' ({node})' if node and node not in what else ''}", f"{at:>8} ", " " * 9
            )
        return lines

    def _start(self) -> list[str]:
        processes = {name: events for name, events in self._report["timeline"].items() if events}
        if not processes:
            return []
        ordered = sorted(processes, key=lambda name: -max(at for _, at in processes[name]))
        shown = min(_PROCESSES, len(ordered))
        lines = self._title(_titled("The start, in seconds", shown, len(ordered), "the slowest"))
        for name in ordered[:_PROCESSES]:
            events = ", ".join(f"{event} {at:.2f}" for event, at in sorted(processes[name], key=lambda entry: entry[1]))
            lines += self._wrapped(f"{name}: {events}", "", "  ")
        return lines

    def _plan(self) -> list[str]:
        lines: list[str] = []
        found = plans(self._report)
        for names, figures in found[:_PLANS]:
            many = "Node" if len(names) == 1 else f"{len(names)} nodes:"
            lines += self._title(f"The plan. {many} {names_of(names, 6)}")
            for name, value, source in plan_figures(figures):
                lines += self._wrapped(source, f"{name:<20} {value:>10}  ", " " * 33)
        if len(found) > _PLANS:
            lines.append(f"({count(len(found) - _PLANS, 'plan')} more)")
        return lines

    def _logs(self) -> list[str]:
        rows, dropped = log_rows(self._report), self._report["logs_dropped"]
        if not rows and not dropped:
            return []
        title = _titled("Warnings and errors in the logs", min(_LOGS, len(rows)), len(rows), "the last")
        lines = self._title(f"{title}, {dropped} not kept" if dropped else title)
        for at, level, of, logger, what in rows[-_LOGS:]:
            lines += self._wrapped(f"{level}, {of}, {logger}", f"{at:>8} ", " " * 9)
            for line in cut(what, _LINE).splitlines():
                lines += self._wrapped(line, " " * 9)
        return lines

    def _title(self, title: str) -> list[str]:
        return ["", *self._wrapped(title, colour="bold")]

    def _wrapped(self, what: str, first: str = "", rest: str | None = None, colour: str | None = None) -> list[str]:
        rest = first if rest is None else rest
        width = max(20, self._width - _extra(what))
        if max(len(first), len(rest)) > width - _LEAST:
            # Where an indent leaves no room, textwrap goes on for ever.
            what, first, rest = f"{first}{what}", "", "  "
        # A space that is double or a tab is of no use here.
        lines = textwrap.wrap(
            what,
            width,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
        ) or [first.rstrip()]
        return [self._painted(line, colour) for line in lines] if colour else lines

    def _painted(self, what: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{what}\x1b[0m" if self._colours else what

    def _table(self, table: Table, order: str) -> list[str]:
        """Set a table in columns, the most important first, and as many as there is room for."""
        heads = list(table.head)
        columns = [heads.index(name.replace("_", " ")) for name in order.split()]
        cells = [[cut(row[column], 32) for column in columns] for row in (heads, *table.rows)]
        widths = [max(_columns(row[place]) for row in cells) for place in range(len(columns))]
        used, shown = 0, 0
        while shown < len(columns) and used + widths[shown] <= self._width:
            used += widths[shown] + 2
            shown += 1
        lines = []
        for number, row in enumerate(cells):
            line = "  ".join(
                _padded(row[place], widths[place], right=columns[place] in table.right)
                for place in range(max(1, shown))
            ).rstrip()
            lines.append(line if number else self._painted(line, "faint"))
        return lines


def _titled(title: str, shown: int, there: int, which: str) -> str:
    return f"{title} ({shown} of {there}: {which})" if shown < there else title


def _bars(course: Any, end: float, most: float, room: int, signs: str) -> str:
    """Draw a course as so many bars, each the mean of its part of the time."""
    if room < 1 or end <= 0 or most <= 0:
        return ""
    sums, weights = [0.0] * room, [0] * room
    for at, value in zip(course.at, course.values, strict=True):
        place = min(room - 1, max(0, int(at / end * room)))
        sums[place] += value
        weights[place] += 1
    bars, last = [], 0.0
    for part, weight in zip(sums, weights, strict=True):
        # A part without a sample of its own is as the one before.
        last = part / weight if weight else last
        level = min(1.0, max(0.0, last / most))
        # A little is not nothing.
        bars.append(signs[max(round(level * (len(signs) - 1)), 1 if level > 0 else 0)])
    return "".join(bars)


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return len(text) + _extra(text)


def _extra(text: str) -> int:
    """Columns that a text takes beyond one for each sign."""
    if text.isascii():
        return 0
    return sum(
        1 if unicodedata.east_asian_width(sign) in "WF" else -1 if unicodedata.combining(sign) else 0 for sign in text
    )


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _columns(text))
    return space + text if right else text + space
