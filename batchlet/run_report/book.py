"""The book of a run: keeps what is told of it, and has the files written that the user wants, in a thread of its own.

A file that cannot be written, or takes for ever, costs the run nothing but a line.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import report
from . import writer
from .collector import Collector
from .log_lines import LogStore

__all__ = ["FILES", "Book"]

#: Name under which the client tells where files are to be written: see `Book.files`.
FILES = "files"
# Seconds between two reports while a run lasts, and between two rounds of metrics; the first ones come sooner.
_JOURNAL, _METRICS, _FIRST = 30.0, 15.0, 2.0
# A report takes at most this part of the time.
_SHARE = 0.01


class Book:
    """Keeps what is told of a run.

    Parameters
    ----------
    versions : mapping of str to str
        By package.
    say : callable
        Tells the user a line.
    """

    def __init__(self, versions: Mapping[str, str], say: Callable[[str], object] = report.note) -> None:
        known = {"Python": "python", "dask-batchlet": "batchlet"}
        self._collector = Collector(time.time(), {known.get(name, name): version for name, version in versions.items()})
        self._say = say
        self._changed = threading.Condition()
        self._report: Path | None = None
        self._metrics: Path | None = None
        self._thread: threading.Thread | None = None
        self._wanted = self._over = False
        self._told: set[str] = set()

    # What happens

    def files(self, report: str | None = None, metrics: str | None = None) -> None:
        """Have files written from here on; absolute paths.

        Parameters
        ----------
        report : str, optional
            Directory of reports.
        metrics : str, optional
            The file for Prometheus.
        """
        with self._changed:
            self._report = Path(report) if report else self._report
            self._metrics = Path(metrics) if metrics else self._metrics
            if self._thread is None and (self._report or self._metrics):
                self._over = False
                self._thread = threading.Thread(target=self._write_on, name="batchlet-report", daemon=True)
                self._thread.start()

    def about(self, **run: Any) -> None:
        """See `Collector.about`."""
        with self._changed:
            self._collector.about(**run)

    def began(self) -> None:
        """Begin a block."""
        with self._changed:
            self._collector.began(time.time())

    def take(self, told: Sequence[Sequence[Any]], node: str | None = None) -> None:
        """Take in what a process of the run has told; see `batchlet.run_report.told.Told.take`."""
        others = []
        for name, arguments in told:
            if name == FILES:
                self.files(**arguments)
            else:
                others.append((name, arguments))
        with self._changed:
            self._collector.take(time.time(), others, node)
            if any(name in ("ready", "ended") for name, _ in others):
                self._write_soon()

    def event(self, kind: str, text: str, node: str | None = None) -> None:
        """Note what has happened."""
        with self._changed:
            self._collector.event(time.time(), kind, text, node)

    def failed(self, kind: str, message: str, exit_code: int | None) -> None:
        """Note that the block has failed, and why."""
        self.take([("ended", {"state": "failed", "kind": kind, "message": message, "exit_code": exit_code})])

    # What it comes to

    @property
    def logs(self) -> LogStore:
        """The lines of logs that are kept."""
        return self._collector.logs

    def use(self, *, of_block: bool = True) -> dict[str, Any]:
        """Give the part `use` of the schema."""
        with self._changed:
            return self._collector.use(time.time(), of_block=of_block)

    def report(self) -> dict[str, Any]:
        """Give the report as it is now."""
        with self._changed:
            return self._collector.report(time.time())

    # Files

    def write_soon(self) -> None:
        """Have the files written now, by the thread that does so."""
        with self._changed:
            self._write_soon()

    def _write_soon(self) -> None:
        self._wanted = True
        self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Write the files for the last time; gives up after so many seconds, when the disk hangs. Twice does no harm."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def _write_on(self) -> None:
        """Write the files again and again, until the end."""
        pause, due = _FIRST, {"report": time.monotonic() + _FIRST, "metrics": time.monotonic() + _FIRST}
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._wanted or self._over, max(0.0, min(due.values()) - time.monotonic())
                )
                last, wanted, self._wanted = self._over, self._wanted, False
            now = time.monotonic()
            if last or wanted or now >= due["report"]:
                self._write_report(last=last)
                took = time.monotonic() - now
                pause = max(min(2 * pause, _JOURNAL), took / _SHARE)
                due["report"] = time.monotonic() + pause
            if last or wanted or now >= due["metrics"]:
                self._write_metrics()
                due["metrics"] = time.monotonic() + min(pause, _METRICS)
            if last:
                return

    def _write_report(self, *, last: bool) -> None:
        with self._changed:
            directory, run_id = self._report, self._collector.run_id
            if directory is None or not run_id:
                return
            found = self._collector.report(time.time())
        with self._harmless(f"no report in {directory}"):
            where = writer.place(str(directory), run_id)
            if last:
                # What makes the page is large, and no rank has use for it before.
                from .finishing import finish

                finish(where, found)
            else:
                writer.write(where, found)

    def _write_metrics(self) -> None:
        with self._changed:
            path = self._metrics
            if path is None:
                return
            found = self._collector.report(time.time(), series=False)
        from . import prometheus

        with self._harmless(f"no metrics in {path}"):
            writer.write_text(path, prometheus.text(found), None)

    @contextlib.contextmanager
    def _harmless(self, what: str) -> Any:
        """Tell the user of what went wrong, once, and go on: the next time it may be better."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a report never ends a run
            why = (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            if what not in self._told:
                self._told.add(what)
                self._say(f"{what}: {why}; the run goes on without")
