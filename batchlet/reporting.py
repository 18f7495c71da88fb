"""``python -m batchlet report FILE``: what a run did with what it was granted, in the terminal or as a page."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .command_line import Parser
from .environments import first_process
from .errors import UsageError
from .run_report.advice import advise
from .run_report.reading import read

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Show a report.

    Parameters
    ----------
    arguments : sequence of str
        What follows on the command line: the report, and how to show it.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        If the command line cannot be understood (2), or asks for help (0).
    EndError
        If there is no such report, or its page cannot be written.
    """
    first = first_process(os.environ)
    parser = Parser(
        prog="python -m batchlet report",
        description="Show the report of a run: what it did with what it was granted.",
        epilog="A run writes its report with --report DIR, report=DIR or BATCHLET_DASK_CLUSTER__REPORT=DIR.",
        allow_abbrev=False,
    )
    parser.speaks = first
    parser.add_argument("file", metavar="FILE", help="the run's report.json, or the directory that has it")
    parser.add_argument(
        "--html", metavar="PAGE", help="write it as a page that needs no network to this file; - is stdout"
    )
    given = parser.parse_args(list(arguments))
    if not first:
        # The tasks of a step would all say the same.
        return 0
    found = read(Path(given.file).expanduser())
    # A run that was killed had no time for it; and what can be said of a run may have become more.
    found["advice"] = advise(found)
    if given.html is None:
        _write(_as_text(found))
    else:
        _write_page(found, given.html)
    return 0


def _as_text(found: dict[str, object]) -> str:
    from .run_report.text import text

    seen = sys.stdout.isatty()
    # As wide as what is read in a pager or a mail, where there is no terminal to ask.
    width = min(shutil.get_terminal_size((100, 40)).columns, 160)
    try:
        "▁█…".encode(sys.stdout.encoding or "ascii")
        signs = True
    except (UnicodeEncodeError, LookupError):
        signs = False
    colours = seen and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
    return text(found, width=width, colours=colours, signs=signs)


def _write(text: str) -> None:
    """Write to standard output, whatever it is able to show, for a reader who may leave."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # As `head` does. What is left in the buffer must not be tried again at the end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_page(found: dict[str, object], place: str) -> None:
    """Write the page, for the owner alone like the report that it is made from, and whole or not at all.

    Raises
    ------
    UsageError
        If it cannot be written.
    """
    from .run_report.page import page

    try:
        written = page(found)
    except ModuleNotFoundError as error:
        raise UsageError(f"The page cannot be made without {error.name}: pip install {error.name}.") from None
    if place == "-":
        _write(written)
        return
    file = Path(place).expanduser()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:  # noqa: PTH123
            opened.write(written)
        beside.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UsageError(f"The page {file} cannot be written: {error.strerror or error}.") from None
