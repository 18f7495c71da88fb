"""How figures of a report are written for people."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..report import count, duration
from ..values import describe_bytes

__all__ = [
    "asked_time", "clock", "count", "cut", "duration", "moment", "names_of", "outcome", "percent", "size", "span_of", "use",
    "used", "where",
]  # fmt: skip


def percent(fraction: float | None) -> str:
    """Write a fraction: "81 %"; "?" where it is not known."""
    return "?" if fraction is None else f"{100 * fraction:.0f} %"


def size(number: float) -> str:
    """Write a number of bytes: "1.50 GiB"."""
    return describe_bytes(number) if number >= 1 else "0 B"


def cut(text: str, most: int) -> str:
    """Shorten a text to this many characters, with a mark."""
    return text if len(text) <= most else f"{text[: max(0, most - 1)]}…"


def moment(began: float, at: float | None = 0.0) -> str:
    """Write a moment of the run as date and time of this machine's time zone: "2026-11-28 14:03:20"."""
    if at is None:
        return "?"
    try:
        # In two steps, as the first second of a run may be any.
        return f"{datetime.datetime.fromtimestamp(began + at).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{began + at:.0f} s after 1970"


def clock(seconds: float) -> str:
    """Write a moment of a run as the time since its start: "0:03:20"."""
    if not abs(seconds) < 1e9:
        return f"{seconds:.3g} s"
    sign, whole = ("-" if seconds <= -0.5 else ""), round(abs(seconds))
    return f"{sign}{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def asked_time(seconds: float) -> str:
    """Write a time as a batch system takes it: "02:30:00", in days where there are several: "2-06:00:00"."""
    whole = math.ceil(seconds)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def span_of(report: Mapping[str, Any]) -> float:
    """Seconds from the start of a run to its end, or to the last that is known of it."""
    ended = report["time"]["ended"]
    return max(0.0, float(report["time"]["updated"] if ended is None else ended))


def outcome(report: Mapping[str, Any]) -> str:
    """Say in one line how a run went: "done after 3.1 s, exit code 0"."""
    found, lasted = report["outcome"], duration(span_of(report))
    kind = found["error"]["kind"] if found["error"] else None
    code = "" if found["exit_code"] is None else f", exit code {found['exit_code']}"
    if found["state"] == "running":
        return f"the end was not seen: this is what was known {lasted} after the start{code}"
    if found["state"] == "failed":
        return f"failed after {lasted}{f': {kind}' if kind else ''}{code}"
    if found["state"] == "ended":
        return f"ended{f' by {kind}' if kind else ''} after {lasted}{code}"
    return f"done after {lasted}{code}"


def where(report: Mapping[str, Any]) -> str:
    """Say in one line what ran where: "slurm job 4242.0: 12 ranks on 2 nodes, 10 workers x 1 thread x 512 MiB"."""
    run, workers, nodes = report["run"], report["workers"], report["nodes"]
    text = f"{run['mode']} {run['job']}".strip()
    parts = []
    if run["ranks"] > 1:
        # Nodes of other jobs, which have joined, have no plan.
        own = sum(bool(node["figures"]) for node in nodes.values()) or len(nodes)
        parts.append(f"{count(run['ranks'], 'rank')} on {count(max(1, own), 'node')}")
        if len(nodes) > own:
            parts.append(f"{count(len(nodes) - own, 'node')} that joined")
    parts.append(count(len(workers), "worker"))
    shown = parts[-1]
    if workers:
        threads = [worker["threads"] for worker in workers.values()]
        limits = [size(worker["memory_limit"]) for worker in sorted(workers.values(), key=lambda w: w["memory_limit"])]
        shown += f" x {_range(min(threads), max(threads))} thread{'' if max(threads) == 1 else 's'}"
        shown += f" x {_range(limits[0], limits[-1], ' to ')}"
    parts[-1] = shown
    attempt = f", attempt {run['attempt']}" if run["attempt"] > 1 else ""
    return f"{text}: {', '.join(parts)}{attempt}"


def _range(low: Any, high: Any, between: str = "-") -> str:
    return f"{low}" if low == high else f"{low}{between}{high}"


def use(report: Mapping[str, Any]) -> str:
    """Say in one line what was used: "CPUs 81 % busy, memory peak 71 % (worker 17), 3.00 GiB spilled, 12.0 GiB moved"."""
    parts = used(report["use"])
    if report["use"]["sent"] >= 1:
        parts.append(f"{size(report['use']['sent'])} moved between processes")
    return ", ".join(parts)


def used(found: Mapping[str, Any], least: int = 1) -> list[str]:
    """Say how much of what was granted was used, as far as that is known, and what was spilled: at least so many bytes.

    Parameters
    ----------
    found : mapping
        `use` in the schema of reports.
    least : int
        Bytes on disk that are worth a word.
    """
    parts: list[str] = []
    if found.get("cpu_fraction") is not None:
        parts.append(f"CPUs {percent(found['cpu_fraction'])} busy")
    if found.get("memory_peak_fraction") is not None:
        name = found["memory_peak_worker"]
        parts.append(f"memory peak {percent(found['memory_peak_fraction'])}{f' (worker {name})' if name else ''}")
    if found.get("spilled", 0) >= least:
        parts.append(f"{size(found['spilled'])} spilled")
    return parts


def names_of(names: Sequence[str], most: int = 5) -> str:
    """Write a list of names, the first few of many: "n1, n2, n3 and 45 more"."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
