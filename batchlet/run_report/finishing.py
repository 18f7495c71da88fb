"""The last version of a report: with advice, and a page beside it for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import writer
from .advice import advise
from .page import page

__all__ = ["PAGE", "finish"]

#: Name of the page.
PAGE = "report.html"


def finish(where: Path, report: dict[str, Any]) -> None:
    """Write a report whose run is over, and its page; the report itself is there whatever becomes of the page.

    Parameters
    ----------
    where : Path
        The run's directory; see `batchlet.run_report.writer.place`.
    report : dict
        See `schema.json`; gets its advice.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    writer.write(where, report)
    report["advice"] = advise(report)
    writer.write(where, report)
    writer.write_beside(where, PAGE, page(report))
