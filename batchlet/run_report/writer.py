"""Writing the files of a report: whole or not at all, for their owner alone, and never to the harm of the run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["REPORT", "place", "read", "write", "write_beside", "write_text"]

#: Name of the file.
REPORT = "report.json"
_ONLY_OURS = 0o700


def place(directory: str, run_id: str) -> Path:
    """Give the directory of a run within that of all reports: each run, and each attempt of a job, has its own name."""
    return Path(directory) / run_id


def write(where: Path, report: Mapping[str, Any]) -> None:
    """Write a report into its directory, and have ``report.json`` beside that directory be the one written last.

    Parameters
    ----------
    where : Path
        As `place` gives it; made if it is not there.
    report : mapping
        See `schema.json`.

    Raises
    ------
    OSError
        If that cannot be.
    """
    if where.parent.exists() and not where.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(where.parent))
    where.parent.mkdir(mode=_ONLY_OURS, parents=True, exist_ok=True)
    where.mkdir(mode=_ONLY_OURS, exist_ok=True)
    write_beside(where, REPORT, json.dumps(report, separators=(",", ":"), allow_nan=False) + "\n")


def write_beside(where: Path, name: str, text: str) -> None:
    """Write a file into a run's directory, which is there, and have a link beside that lead to it.

    Raises
    ------
    OSError
        If that cannot be.
    """
    write_text(where / name, text)
    _point_to(where, name)


def _point_to(where: Path, name: str) -> None:
    """Have a link beside a run's directory lead to its file; a file of that name that is no link is not ours, and stays."""
    link = where.parent / name
    target = os.path.join(where.name, name)  # noqa: PTH118
    # Where a file system has no links, the directory of the run has it all.
    with contextlib.suppress(OSError):
        if link.is_symlink() and os.readlink(link) == target:  # noqa: PTH115
            return
        if link.exists() and not link.is_symlink():
            return
        beside = where.parent / f".{name}.{os.getpid()}"
        beside.symlink_to(target)
        beside.replace(link)


def write_text(path: Path, text: str, mode: int | None = 0o600) -> None:
    """Write a file so that readers see the old one or the new one, whole.

    Parameters
    ----------
    path : Path
        Which; its directory is there.
    text : str
        What it is to hold.
    mode : int, optional
        Its permissions; `None` for those of the old file or, where there is none, those that its owner gives to new files.

    Raises
    ------
    OSError
        If that cannot be; the old file is as it was then, and nothing else is left.
    """
    # Named so that nobody takes it for such a file; a process that was killed leaves it, and the next one takes it over.
    beside = path.parent / f".{path.name}.{os.uname().nodename}.{os.getpid()}~"
    if mode is None and path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
    try:
        descriptor = os.open(
            beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666 if mode is None else mode
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def read(where: Path) -> dict[str, Any] | None:
    """Give the report that is in a run's directory; `None` if there is none."""
    try:
        found = json.loads((where / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
