"""What a person reads: one line at the start, one at the end, one block on a failure; all on stderr, from one rank."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time

from .errors import EndError, InputError
from .protocols import security_off
from .settings import LOG_LEVELS, describe_bytes

__all__ = ["count", "duration", "ended", "failure", "log_level", "note", "others_may_read", "started"]


def log_level() -> str:
    """Level of the log, ``BATCHLET_LOG_LEVEL``; "warning" where it is not set or not a level."""
    level = os.environ.get("BATCHLET_LOG_LEVEL", "warning").lower()
    return level if level in LOG_LEVELS else "warning"


def note(text: str) -> None:
    """Say one line."""
    # Where it cannot be said, as on a full disk, what is to be done is done all the same.
    with contextlib.suppress(OSError):
        # One write, so that lines of several processes do not mix.
        sys.stderr.write(f"batchlet: {text}\n")
        sys.stderr.flush()


def others_may_read(*, shared: bool) -> bool:
    """Whether other users may be able to read what is said here.

    Parameters
    ----------
    shared : bool
        Whether a pipe may end where others can read; see `batchlet.environments.Environment.output_is_shared`.
    """
    try:
        status = os.fstat(2)
    except OSError:
        return False
    if stat.S_ISREG(status.st_mode):
        return bool(status.st_mode & (stat.S_IRGRP | stat.S_IROTH))
    return shared and not os.isatty(2)


def failure(error: EndError, seconds: float | None = None) -> None:
    """Say what went wrong; the message itself names what was found, what was needed and what to type.

    Parameters
    ----------
    error : EndError
        The root cause.
    seconds : float, optional
        Time from the start of the run to the failure, where something had been started.
    """
    note(f"error: {error}")
    if seconds is not None and not isinstance(error, InputError):
        note(f"at {time.strftime('%H:%M:%S')}, {duration(seconds)} after the start; exit code {error.exit_code}")


def started(
    *,
    where: str,
    ranks: int,
    nodes: int,
    workers: int,
    threads: tuple[int, int],
    memory: tuple[int, int],
    dashboard: str | None,
    tunnel: str | None,
    secure: bool,
    instead: str | None = None,
    protocol: str | None = None,
) -> None:
    """Say what is running.

    Parameters
    ----------
    where : str
        The launcher and the job.
    ranks, nodes, workers : int
        How many of them.
    threads : tuple of int
        The least and the most threads of one worker.
    memory : tuple of int
        The least and the largest memory limit of one worker, in bytes.
    dashboard, tunnel : str, optional
        Where the dashboard is, and the command that brings it to the user's own machine.
    secure : bool
        Whether the run is closed to other users.
    instead : str, optional
        What to say in place of the dashboard's address, which is secret.
    protocol : str, optional
        Dask's protocol, where it was asked for.
    """
    low, high = (describe_bytes(size) for size in memory)
    if instead:
        place = f", dashboard: {instead}"
    elif dashboard:
        place = f", dashboard {dashboard}" + (f" through {tunnel}" if tunnel else "")
    else:
        place = ", no dashboard (it needs bokeh)"
    note(
        f"{where}: "
        + (f"{count(ranks, 'rank')} on {count(nodes, 'node')}, " if ranks > 1 else "")
        + f"{count(workers, 'worker')} x "
        + (count(threads[0], "thread") if threads[0] == threads[1] else f"{threads[0]}-{threads[1]} threads")
        + f" x {low if low == high else f'{low} to {high}'}"
        + ("" if secure else f", {security_off(protocol)}")
        + place
    )


def ended(*, seconds: float, workers: int, error: str | None, advice: str = "", use: str = "") -> None:
    """Say that the run is over.

    Parameters
    ----------
    seconds : float
        From the start of the process to the end of the ``with`` block.
    workers : int
        Workers that were ready at the start.
    error : str, optional
        Name of the exception that ended the ``with`` block.
    advice : str
        What would have saved time.
    use : str
        How much of what was granted was used.
    """
    text = f"{f'ended by {error}' if error else 'done'} after {duration(seconds)}, {count(workers, 'worker')}"
    note("; ".join(filter(None, (text, use, advice))))


def duration(seconds: float) -> str:
    """Write a time for people: "8.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, thing: str) -> str:
    """Write a number of things for people: "1 worker", "2 workers"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
