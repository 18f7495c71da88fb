"""Dask's own performance report of a block, by a client of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import report
from ..run_report.writer import write_text

__all__ = ["Place", "performance_report"]

_BEGIN = 10.0


@dataclass(frozen=True)
class Place:
    """Where a cluster is.

    Parameters
    ----------
    address : str
        Of its scheduler.
    security : distributed.Security
        With which a client connects.
    """

    address: str
    security: Any


@contextlib.contextmanager
def performance_report(place: Place, path: str, timeout: float) -> Iterator[None]:
    """Have Dask's `performance_report` of what happens in the block; where there is none, one line says why.

    Parameters
    ----------
    place : Place
        Where the cluster is.
    path : str
        The file, for its owner alone.
    timeout : float
        Seconds that asking for it at the end may take.
    """
    steps: list[tuple[Any, Any, str]] = []
    began = _in_time(lambda: steps.append(_begin(place, path)), _BEGIN, path)
    try:
        yield
    finally:
        if began:
            _in_time(lambda: _end(*steps[0], path), timeout, path)


def _begin(place: Place, path: str) -> tuple[Any, Any, str]:
    """Give a client, and the report that has begun; into a file beside the one that is wanted."""
    import bokeh  # noqa: F401 - what the scheduler makes the report with
    from distributed import Client
    from distributed import performance_report as dask_report

    beside = Path(path)
    with beside.open("ab"):
        # Whether it can be written is to be known now.
        pass
    client = Client(place.address, security=place.security, set_as_default=False)
    wanted = dask_report(filename=f"{path}~")
    with client.as_current():
        wanted.__enter__()
    return client, wanted, f"{path}~"


def _end(client: Any, wanted: Any, made: str, path: str) -> None:
    try:
        with client.as_current():
            wanted.__exit__(None, None, None)
        write_text(Path(path), Path(made).read_text(encoding="utf-8"))
    finally:
        with contextlib.suppress(OSError):
            Path(made).unlink()
        client.close(timeout=1)


def _in_time(work: Callable[[], object], seconds: float, path: str) -> bool:
    """Do it in a thread, without an event loop around it, and for so long at the most; whether that was well."""
    problems: list[str] = []

    def run() -> None:
        try:
            work()
        except OSError as error:
            problems.append(error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - the run goes on
            problems.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run, name="batchlet-performance-report", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        problems.append(f"the scheduler has not answered within {seconds:g} s")
    if problems:
        report.note(f"no performance report in {path}: {problems[0]}")
    return not problems
