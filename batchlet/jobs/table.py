"""How the jobs of a cluster are shown in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from .record import JobRecord

__all__ = ["table"]

_MOST = 50


def table(jobs: Iterable[JobRecord]) -> str:
    """Show jobs as a table of HTML, those that are over only as far as there is room."""
    every = sorted(jobs, key=lambda job: job.is_over)
    rows = "".join(
        _row(job.job_id or "-", job.state, ", ".join(sorted(job.hosts)), job.reason) for job in every[:_MOST]
    )
    more = f"<div>and {len(every) - _MOST} more</div>" if len(every) > _MOST else ""
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in ("job", "state", "nodes", "reason"))
    return (
        f"<details><summary>Jobs: {len(every)}</summary><table><tr>{head}</tr>{rows}</table>{more}</details>"
        if every
        else ""
    )


def _row(*values: str) -> str:
    return "<tr>" + "".join(f'<td style="text-align: left">{escape(value)}</td>' for value in values) + "</tr>"
