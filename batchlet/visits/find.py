"""Which runs there are, as far as the register, the working directory and the user tell; and which of them is meant."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EndError, UsageError
from ..network import LOOPBACK
from ..rendezvous import CoordinatorRecord, FileRendezvous, register
from ..settings import PREFIX, Settings

__all__ = ["Run", "by_path", "forget", "matching", "none_found", "runs", "several"]

# Records that are read at one moment: each takes a network file system some milliseconds.
_AT_ONCE = 16
# Names that a message shows.
_SHOWN = 12
_HINT = f"A run can be found that was started with --attach or --join (attach=True, {PREFIX}ATTACH=true)."


@dataclass(frozen=True)
class Run:
    """A run, as its record tells.

    Parameters
    ----------
    file : Path
        The record.
    entry : Path, optional
        Its entry in the register.
    record : CoordinatorRecord, optional
        What it says; `None` where it cannot be read or believed.
    problem : str
        Why that is so; empty where there is no record.
    """

    file: Path
    entry: Path | None = None
    record: CoordinatorRecord | None = field(default=None, repr=False)
    problem: str = ""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.file.name.removesuffix(".json")

    @property
    def job(self) -> str:
        """The job, such as "slurm job 4242.0"; empty where it is not known."""
        return self.record.job if self.record is not None else ""

    @property
    def began(self) -> float:
        """When it began, in seconds since the epoch; 0 where it is not known."""
        return self.record.began if self.record is not None else 0.0

    @property
    def is_removed(self) -> bool:
        """Whether there is no record any more where others are seen; a whole place may be there on some machines only."""
        return self.record is None and not self.problem and self.file.parent.parent.is_dir()

    @property
    def is_elsewhere(self) -> bool:
        """Whether it can be reached from its own machine alone, which is another one."""
        record = self.record
        return record is not None and record.host == LOOPBACK and record.node != _node()


def _node() -> str:
    return socket.gethostname().split(".")[0]


def runs(directories: Sequence[str] = ()) -> list[Run]:
    """Find the runs of this user that can be attached to, dead ones included.

    Parameters
    ----------
    directories : sequence of str
        Where to look; where there are none, in the register and in the directory in which runs of this directory meet.
    """
    found: dict[Path, Path | None] = {}
    if directories:
        places = [Path(directory).expanduser().absolute() for directory in directories]
        places += [place / Settings().rendezvous_dir for place in places]
    else:
        found |= {file: entry for entry, file in register.entries().items()}
        places = [Path(Settings.resolve({}, os.environ).rendezvous_dir).expanduser().absolute()]
    for place in places:
        with contextlib.suppress(OSError):
            for file in place.glob("*.json"):
                found.setdefault(file, None)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = pool.map(lambda item: _read(*item), found.items())
    # Whatever else there is in a directory that is only looked at, is not ours to speak of.
    known = [run for run in read if run.record is not None or run.entry is not None]
    return sorted(known, key=lambda run: (run.began, run.name))


def _read(file: Path, entry: Path | None) -> Run:
    """Read a record."""
    try:
        record, problem = FileRendezvous(str(file.parent), file.name.removesuffix(".json"), _node()).look()
    except EndError as error:
        record, problem = None, str(error)
    return Run(file, entry, record, problem)


def by_path(path: str) -> Run:
    """Give the run whose record is there."""
    file = Path(path).expanduser().absolute()
    file = file if file.suffix == ".json" else file.with_name(f"{file.name}.json")
    entries = {target: entry for entry, target in register.entries().items()}
    return _read(file, entries.get(file))


def matching(word: str | None, among: Iterable[Run]) -> list[Run]:
    """Say which of these runs a word means: a whole name, the number of a job, or the beginning of a name."""
    among = list(among)
    if word is None:
        return among
    for means in (_is_name, _is_job, _begins):
        if found := [run for run in among if means(run, word)]:
            return found
    return []


def _is_name(run: Run, word: str) -> bool:
    return run.name == word


def _is_job(run: Run, word: str) -> bool:
    number = run.job.rpartition(" ")[2]
    return bool(number) and word in (number, number.partition(".")[0])


def _begins(run: Run, word: str) -> bool:
    return run.name.startswith(word)


def forget(run: Run) -> None:
    """Remove what a dead run has left: its record, and the entry of that in the register."""
    if run.record is not None:
        place = FileRendezvous(str(run.file.parent), run.name, _node())
        with contextlib.suppress(EndError, OSError):
            # Another run of this name may have come in the meantime.
            if place.latest() == run.record:
                place.withdraw(orphaned=True)
        register.leave(run.record)
    if run.entry is not None:
        with contextlib.suppress(OSError):
            run.entry.unlink()


def none_found(word: str | None, others: Sequence[Run]) -> UsageError:
    """Make the error that no run is meant."""
    there = f" There are {_names(others)}." if others else ""
    what = "There is no run of yours" if word is None else f"There is no run {word} of yours"
    return UsageError(f"{what} that can be attached to, or it is over.{there} {_HINT}")


def several(word: str | None, found: Sequence[Run]) -> UsageError:
    """Make the error that more than one run is meant."""
    what = "There are several runs" if word is None else f"{word} may be several runs"
    return UsageError(f"{what}: name one of {_names(found)}.")


def _names(found: Sequence[Run]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(run.name for run in found[:_SHOWN]) + more
