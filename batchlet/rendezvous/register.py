"""The register of a user's runs: a link to the record of each that can be attached to, in the home that all nodes share.

``$XDG_STATE_HOME/batchlet/runs`` (by default ``~/.local/state/batchlet/runs``) holds nothing secret: names of files that the
user alone can read. Whoever publishes a record enters it and takes the entry back; what is left of a run that was killed is
recognised by whoever looks (`batchlet.visits.find`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from .base import CoordinatorRecord

__all__ = ["directory", "enter", "entries", "entry_of", "leave"]

_USUAL = "~/.local/state"


def directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Say where the register is; `None` where the user has no home."""
    try:
        home = Path(environ.get("XDG_STATE_HOME") or _USUAL).expanduser()
    except RuntimeError:
        return None
    # As the XDG base directory specification has it, a relative path counts as none.
    return (home if home.is_absolute() else Path(_USUAL).expanduser()) / "batchlet" / "runs"


def enter(record: CoordinatorRecord, file: Path) -> str:
    """Enter a run.

    Parameters
    ----------
    record : CoordinatorRecord
        The run's.
    file : Path
        Where the record is.

    Returns
    -------
    str
        Why that was not possible; empty if it was.
    """
    entry = entry_of(record)
    if entry is None:
        return "there is no home directory"
    place = entry.parent
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if problem := _problem(place):
            return problem
        with contextlib.suppress(FileExistsError):
            entry.symlink_to(file)
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    return ""


def entry_of(record: CoordinatorRecord) -> Path | None:
    """Say where the entry of a run is, or would be; `None` where there is no register."""
    place = directory()
    # Two runs in different directories may have one name.
    return place / f"{record.run_id}.{record.nonce[:16]}" if place is not None else None


def leave(record: CoordinatorRecord) -> None:
    """Take the entry of a run back; does nothing if there is none."""
    with contextlib.suppress(OSError):
        if (entry := entry_of(record)) is not None:
            entry.unlink()


def entries() -> dict[Path, Path]:
    """Give the entries of the register, and the record that each of them names.

    Nothing where somebody else may have written there.
    """
    place, found = directory(), {}
    with contextlib.suppress(OSError):
        if place is not None and not _problem(place):
            for entry in sorted(place.iterdir()):
                with contextlib.suppress(OSError):
                    found[entry] = entry.readlink()
    return {entry: file for entry, file in found.items() if file.is_absolute() and file.suffix == ".json"}


def _problem(place: Path) -> str:
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{place} is not a directory"
    if status.st_uid != os.geteuid():
        return f"{place} belongs to user {status.st_uid}"
    if status.st_mode & 0o022:
        return f"others may write to {place} (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
