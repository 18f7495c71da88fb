"""A report as one page, ``report.html``: complete in itself, so that it can be read anywhere, and unable to reach out.

What the report has of others, names and error texts and lines of the log, is escaped by the template; beyond that the page's
own policy (its Content-Security-Policy) lets run only the scripts that it came with, known by their hashes, and no request
leave.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from . import plots
from .cleaning import cleaned
from .summary import NodeUse, busy_of, course, node_uses, plans, rate, total
from .tables import Table, event_rows, group_rows, log_rows, node_rows, plan_figures, worker_rows
from .wording import clock, cut, duration, moment, names_of, outcome, percent, size, span_of, use, where

__all__ = ["page"]

_HERE = Path(__file__).parent
# Rows that a table of a plot's figures has.
_POINTS = 24
# Rows of a table above which it is folded away.
_LONG = 24
# Bytes of the page that the lines of the log may take, the events, and the error's text; characters of one line.
_LOGS, _EVENTS, _ERROR, _LINE = 300_000, 100_000, 20_000, 2_000
_WORKERS, _NODES, _PLANS, _PROCESSES = 1_000, 500, 20, 64

Row = TypeVar("Row")


def page(report: Mapping[str, Any]) -> str:
    """Make the page of a report.

    Parameters
    ----------
    report : mapping
        The report, in the form of ``schema.json``.

    Returns
    -------
    str
        HTML. Without Bokeh 3 it has tables and no plots, and says so; it takes less than 3 MB.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    report = cleaned(report)
    uses = node_uses(report)
    drawn = plots.draw(report, uses) if plots.bokeh_version() else {}
    scripts, places = plots.embed(drawn) if drawn else ([], {})
    scripts = [*scripts, (_HERE / "page.js").read_text("utf-8")] if scripts else []
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _code
    return environment.get_template("page.html").render(
        policy=_policy(scripts),
        css=(_HERE / "page.css").read_text("utf-8"),
        scripts=scripts,
        places=places,
        plots=drawn,
        bokeh=plots.bokeh_version() is not None,
        **_content(report, uses),
    )


def _content(report: Mapping[str, Any], uses: Sequence[NodeUse]) -> dict[str, Any]:
    run, time, error = report["run"], report["time"], report["outcome"]["error"]
    events, left_out = _fitting(event_rows(report), _EVENTS)
    logs, older = _fitting(reversed(log_rows(report)), _LOGS)
    workers, nodes = worker_rows(report), node_rows(uses)
    return {
        "state": report["outcome"]["state"],
        "title": f"{run['mode']} {run['job'] or run['id']}".strip(),
        "outcome": outcome(report),
        "error": error and {"kind": error["kind"], "message": _within(error["message"], _ERROR)},
        "where": where(report),
        "use": use(report),
        "advice": report["advice"],
        "facts": _facts(report),
        "tables": _tables_of_plots(report, uses),
        "many_nodes": len(uses) > 6,
        "groups": group_rows(report),
        "events": events,
        "events_left_out": left_out,
        "nodes": replace(nodes, rows=nodes.rows[:_NODES]),
        "nodes_left_out": max(0, len(uses) - _NODES),
        "workers": replace(workers, rows=workers.rows[:_WORKERS]),
        "workers_left_out": max(0, len(workers.rows) - _WORKERS),
        "notable": _notable(report) if len(workers.rows) > _LONG else None,
        "long": _LONG,
        "timeline": _timeline(report),
        "plans": [
            (names_of(names, 12), len(names), plan_figures(figures)) for names, figures in plans(report)[:_PLANS]
        ],
        "plans_left_out": max(0, len(plans(report)) - _PLANS),
        "logs": logs[::-1],
        "logs_left_out": older,
        "logs_dropped": report["logs_dropped"],
        "versions": report["versions"],
        "updated": moment(time["began"], time["updated"]),
    }


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what there is to know of the run as a whole."""
    run, time, found = report["run"], report["time"], report["use"]
    began = time["began"]
    facts = [("Run", run["id"])]
    if run["script"]:
        facts.append(("Script", cut(shlex.join(run["script"]), _LINE)))
    facts.append(("Began", moment(began)))
    if time["ready"] is not None:
        facts.append(("Workers ready", f"after {duration(time['ready'])}"))
    if time["ended"] is None:
        facts.append(("Last known", f"{moment(began, time['updated'])}, after {duration(max(0.0, time['updated']))}"))
    else:
        facts.append(("Ended", f"{moment(began, time['ended'])}, after {duration(span_of(report))}"))
    if time["limit"] is not None:
        facts.append(
            ("Time limit", f"{moment(began, time['limit'])}, {duration(max(0.0, time['limit']))} after the start")
        )
    if report["outcome"]["exit_code"] is not None:
        facts.append(("Exit code", str(report["outcome"]["exit_code"])))
    facts.append(
        ("CPU time", f"{duration(found['cpu_seconds'])} of {duration(found['cpu_granted_seconds'])} that were granted")
    )
    facts.append(("Spilled", f"{size(found['spilled'])} written to disk"))
    facts.append(("Moved", f"{size(found['sent'])} between processes"))
    if run["attempt"] > 1:
        facts.append(("Attempt", str(run["attempt"])))
    if report["outcome"]["blocks"] != 1:
        facts.append(("Blocks", str(report["outcome"]["blocks"])))
    return facts


def _notable(report: Mapping[str, Any]) -> Table:
    """Show of many workers those that stand out: the fullest, the idlest, and those that were started anew."""
    rows = worker_rows(report)
    names = [row[0] for row in rows.rows]
    workers = report["workers"]
    full = sorted(workers, key=lambda name: -workers[name]["memory_peak"] / max(1.0, workers[name]["memory_limit"]))
    idle = sorted(workers, key=lambda name: busy_of(workers[name], report) or 0.0)
    again = [name for name in workers if workers[name]["restarts"]]
    chosen = dict.fromkeys([*full[:5], *idle[:5], *again[:10]])
    return replace(rows, rows=[row for name, row in zip(names, rows.rows, strict=True) if name in chosen])


def _tables_of_plots(report: Mapping[str, Any], uses: Sequence[NodeUse]) -> dict[str, Table]:
    """Give the figures of the plots over time as text, for those who do not see them."""
    nodes = report["nodes"]
    shown = {
        "cpu": (total(nodes, "cpu"), "CPUs busy", "{:.1f}".format),
        "memory": (total(nodes, "used"), "memory of the workers", size),
        "gpu": (total(nodes, "gpu"), "GPUs busy", "{:.1f}".format),
        "traffic": (rate(total(nodes, "sent")), "bytes sent per second", size),
    }
    tables = {}
    for key, (found, what, write) in shown.items():
        few = found.thinned(_POINTS)
        if few:
            rows = [[clock(at), write(value)] for at, value in zip(few.at, few.values, strict=True)]
            tables[key] = Table(["after", what], rows)
    some = list(uses) if len(uses) <= 6 else [*uses[:3], *uses[-3:]]
    for key, name, of in (("node_cpu", "cpu", "cpus"), ("node_memory", "used", "memory")):
        rows = []
        for one in some:
            found, granted = course(nodes[one.name], name), nodes[one.name][of]
            if found and granted > 0:
                rows.append([one.name, percent(found.mean() / granted), percent(found.peak / granted)])
        if rows:
            tables[key] = Table(["node", "on average", "at most"], rows)
    return tables


def _timeline(report: Mapping[str, Any]) -> Table:
    processes = {name: events for name, events in report["timeline"].items() if events}
    ordered = sorted(processes, key=lambda name: -max(at for _, at in processes[name]))[:_PROCESSES]
    rows = [
        [name, ", ".join(f"{event} {at:.2f}" for event, at in sorted(processes[name], key=lambda entry: entry[1]))]
        for name in ordered
    ]
    return Table(["process", "seconds from the start"], rows)


def _within(text: str, size: int) -> str:
    """Shorten a text to so many bytes of the page, of which some signs take several."""
    return text[: len(_fitting(iter(text), size)[0])]


def _fitting(rows: Iterable[Row], room: int) -> tuple[list[Row], int]:
    """Take rows as long as there is room on the page, in bytes; and say how many were left out."""
    from markupsafe import escape

    taken: list[Row] = []
    left_out = 0
    for row in rows:
        cells = row if isinstance(row, (list, tuple)) else [row]
        room -= sum(len(str(escape(cell)).encode()) for cell in cells)
        if room < 0 or left_out:
            left_out += 1
        else:
            taken.append(row)
    return taken, left_out


def _code(text: str) -> Any:
    """Set what stands between backticks, and options, as code."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(parts)
    )


def _policy(scripts: Sequence[str]) -> str:
    """Say what the page may do: run these scripts, look as it looks, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
