"""How Dask behaves in a process of ours: what it logs, and how it starts child processes."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing.resource_tracker
import multiprocessing.spawn
import multiprocessing.util
import os
import re
import signal
import socket
import ssl
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from typing import Any

import dask.config
import psutil
from distributed import Nanny

from ..errors import EndError, InputError
from ..report import log_level, note

__all__ = [
    "DASK_LOG_LEVEL",
    "SCHEDULER_PROCESS",
    "close_files",
    "configure_logging",
    "end_helpers",
    "expect_death",
    "hidden_main",
    "hush",
    "logging_is_the_users",
    "mention_strangers_once",
    "report_deaths",
    "start_failure",
    "start_helpers",
    "true_exit_codes",
]

# Seconds for killed processes to be gone.
_GONE = 2.0
_NUMBER = re.compile(r"\d+")
_SIGNAL = re.compile(r"signal (\d+)")
_WORKER_PROCESS = "Dask Worker process (from Nanny)"
#: Name of the process of the scheduler, where a host starts it.
SCHEDULER_PROCESS = "Batchlet scheduler"
_lock = threading.Lock()
_hide_count = 0
_hushed = False
_started = False
_expected: set[int] = set()
_poll_count = 0
_original = multiprocessing.spawn.get_preparation_data
_original_poll = Popen.poll


def DASK_LOG_LEVEL() -> int:  # noqa: N802
    """Level of Dask's own loggers in our processes."""
    return int(getattr(logging, log_level().upper()))


def logging_is_the_users() -> bool:
    """Whether the user has configured Dask's logging, which then stays as it is."""
    return dask.config.get("logging", None) is not None


def configure_logging() -> None:
    """Keep Dask's loggers at ``BATCHLET_LOG_LEVEL`` ("warning"), unless the user has configured Dask's logging.

    By default Dask logs every connection at level "info", which is 141 lines for a clean run of five ranks.
    """
    # Each worker would say that of its own directory. We say it once, of the one that has them all.
    warnings.filterwarnings("ignore", "Creating scratch directories is taking")
    if logging_is_the_users():
        return
    for name in ("distributed", "tornado"):
        logging.getLogger(name).setLevel(DASK_LOG_LEVEL())
    mention_strangers_once()
    # Bokeh warns of a wildcard that Dask itself has set.
    logging.getLogger("bokeh").setLevel(max(DASK_LOG_LEVEL(), logging.ERROR))
    # These two have handlers and levels of their own in Dask's defaults.
    for name in ("distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(max(DASK_LOG_LEVEL(), logging.WARNING))
    application = logging.getLogger("tornado.application")
    if not any(isinstance(known, _Handshakes) for known in application.filters):
        application.addFilter(_Handshakes())
    nanny = logging.getLogger("distributed.nanny")
    nanny.setLevel(min(DASK_LOG_LEVEL(), logging.INFO))
    if not any(isinstance(known, _WorkerDeaths) for known in nanny.filters):
        nanny.addFilter(_WorkerDeaths())


class _Strangers(logging.Filter):
    """Lets one line through about connections without the run's credentials: whoever makes thousands fills no log."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "TLS handshake failed" not in str(record.msg) and not str(record.msg).startswith("SSL Error"):
            return True
        if "UNEXPECTED_EOF" in record.getMessage():
            # It has not knocked: one of ours that did not want to wait any longer on a busy machine and tries again.
            return False
        said, self._said = self._said, True
        return not said


_strangers = _Strangers()


def mention_strangers_once() -> None:
    """Keep those who knock without the run's credentials from filling the log of this process."""
    for name in ("distributed", "tornado"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_strangers)


def _signal_name(match: re.Match[str]) -> str:
    try:
        return signal.Signals(int(match[1])).name
    except ValueError:
        return match[0]


class _WorkerDeaths(logging.Filter):
    """One line for each worker process that died, none for those that `client.restart` ended.

    Dask's Nanny tells of a death at level "info" and of every restart, wanted or not, at level "warning".
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith("Worker process ") and (" was killed by " in text or " exited with " in text):
            if _started and not _hushed and not _expected & {int(pid) for pid in _NUMBER.findall(text)}:
                text = _SIGNAL.sub(_signal_name, text)
                note(f"w{text[1:]} on node {socket.gethostname()}; it is started again")
            return False
        # What fails at the start is raised as well, and reported by us.
        if text.startswith("Restarting worker") or (not _started and record.exc_info):
            return False
        return record.levelno >= DASK_LOG_LEVEL()


class _Handshakes(logging.Filter):
    """Drops the traceback of a connection that was being made to a Nanny or worker at the moment of its end."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, ValueError) and "non-started TCPListener" in str(error))


def start_failure(what: str, error: Exception) -> EndError:
    """Make the message for a part of Dask that did not start; the cause is most often an option passed through."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    cause = f"{type(error).__name__}: {str(error).rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return InputError(
            f"Dask's {what} did not start, because the ranks refuse each other's certificates ({cause}): the object in "
            "security= must be the same on all ranks, so made from files; Security.temporary() is another one on each. "
            "Leave security= out to have Batchlet make and share one."
        )
    return InputError(f"Dask's {what} did not start: {cause}. Check {what}_options= and the configuration of Dask.")


def expect_death(pid: int) -> None:
    """Do not report the end of this worker process."""
    _expected.add(pid)


def report_deaths() -> None:
    """Report from now on worker processes that die: all are up."""
    global _started
    _started = True


def hush() -> None:
    """Hold Dask's chatter back while the run is being stopped on purpose: every connection that closes is a message."""
    global _hushed
    _hushed = True
    if log_level() == "debug":
        return
    for name in list(logging.Logger.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep the user's script from running a second time in the processes that Dask's Nanny starts.

    A process that multiprocessing starts afresh runs the parent's main module again under another name, which a script
    without an ``if __name__ == "__main__"`` guard does not survive. Workers do not need it: Dask sends what the main module
    defines by value. Other processes, such as those of the user's own pools, are not touched.
    """
    global _hide_count
    with _lock:
        _hide_count += 1
        multiprocessing.spawn.get_preparation_data = _preparation_data
    try:
        yield
    finally:
        with _lock:
            _hide_count -= 1
            if _hide_count == 0:
                multiprocessing.spawn.get_preparation_data = _original


def _preparation_data(name: str) -> dict[str, Any]:
    data: dict[str, Any] = _original(name)
    if name in (_WORKER_PROCESS, SCHEDULER_PROCESS):
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
        # Each Nanny puts its own directory on the path of this process: no worker is to import from another one's.
        theirs = {nanny.local_directory for nanny in Nanny._instances}
        data["sys_path"] = [path for path in data["sys_path"] if path not in theirs]
    return data


@contextlib.contextmanager
def true_exit_codes() -> Iterator[None]:
    """Let each process that comes from a fork server tell its exit code to whoever asks.

    It tells that once, through a pipe. Dask waits for a process in a thread of its own, while every thread that starts another
    one asks all of them; who comes second reads nothing and notes 255, an "unknown signal" (so does Python 3.13).
    """
    global _poll_count
    with _lock:
        _poll_count += 1
        Popen.poll = _poll  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _lock:
            _poll_count -= 1
            if _poll_count == 0:
                Popen.poll = _original_poll  # type: ignore[method-assign]


def _poll(self: Any, flag: int = os.WNOHANG) -> int | None:
    if flag != os.WNOHANG and self.returncode is None:
        wait([self.sentinel])
    with self.__dict__.setdefault("_batchlet_lock", threading.Lock()):
        code: int | None = _original_poll(self)
        return code


def start_helpers() -> None:
    """Start multiprocessing's resource tracker so that it is silent if this process is killed.

    It then removes the semaphores of Dask's queues, which is its job, and would warn of them.
    """
    quiet = "ignore:resource_tracker"
    sys.warnoptions.append(quiet)
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def close_files(keep: set[int]) -> None:
    """Close what a process has inherited from the one it was forked from, but for the output, logs and what it is to keep.

    Who waits for the end of a connection or a pipe would not see it as long as this process has it open too.
    """
    for number in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if number > 2 and number not in keep and not stat.S_ISREG(os.fstat(number).st_mode):
                os.close(number)


def end_helpers() -> None:
    """End multiprocessing's helper processes (fork server, resource tracker) and wait until they are gone.

    Left to themselves they notice the end of this process a moment later; Slurm, which finds them still in the step's
    cgroup, then looks again only a second later (seen on 22.05).
    """
    # Processes that were just being started still need the semaphores; all of them are of the fork server's group.
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    with contextlib.suppress(OSError):
        if pid is not None and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    for child in multiprocessing.active_children():
        # Rank 0 sees to the end of the scheduler.
        if child.name != SCHEDULER_PROCESS:
            child.kill()
            child.join(1.0)
    # Dask's queues hold semaphores, which must be gone before the tracker is.
    gc.collect()
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    for module, name in (("forkserver", "_forkserver"), ("resource_tracker", "_resource_tracker")):
        helper = getattr(sys.modules.get(f"multiprocessing.{module}"), name, None)
        with contextlib.suppress(Exception):
            helper._stop()  # type: ignore[union-attr]
    # The workers that were killed with the fork server are nobody's children now: they, too, have to be gone.
    until = time.monotonic() + _GONE
    while pid is not None and time.monotonic() < until and _group_lives(pid):
        time.sleep(0.005)


def _group_lives(group: int) -> bool:
    """Whether any process of a group is more than a zombie that somebody has yet to look at."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
