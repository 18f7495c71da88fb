"""What Dask logs in a process of ours."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import warnings
from collections.abc import Callable, Iterator

import dask.config

from ..report import log_level, note
from .compat.log_messages import (
    SLOW_SCRATCH,
    dead_worker,
    greedy_worker,
    is_broken_off,
    is_failed_handshake,
    is_late_connection,
    is_late_heartbeat,
    is_restart,
)

__all__ = [
    "DASK_LOG_LEVEL",
    "Strangers",
    "configure_logging",
    "expect_death",
    "hear_deaths",
    "hush",
    "hushed",
    "logging_is_the_users",
    "mention_strangers_once",
    "report_deaths",
    "tell_deaths",
]

_SIGNAL = re.compile(r"signal (\d+)")
_hushed = False
# Of loggers that are hushed.
_levels: dict[str, int] = {}
_started = False
_expected: set[int] = set()
# Process ids of workers that their nannies end for their memory.
_greedy: set[int] = set()
# What is said of worker processes that have died, goes there.
_tell: Callable[[str], object] = note
# Who else is to know: the number of the process, and what is said.
_hearers: list[Callable[[int, str], object]] = []


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
    _speak_again()
    # Each worker would say that of its own directory. We say it once, of the one that has them all.
    warnings.filterwarnings("ignore", SLOW_SCRATCH)
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
    scheduler = logging.getLogger("distributed.scheduler")
    if not any(isinstance(known, _LateHeartbeats) for known in scheduler.filters):
        scheduler.addFilter(_LateHeartbeats())
    nanny = logging.getLogger("distributed.nanny")
    nanny.setLevel(min(DASK_LOG_LEVEL(), logging.INFO))
    if not any(isinstance(known, _WorkerDeaths) for known in nanny.filters):
        nanny.addFilter(_WorkerDeaths())
    memory = logging.getLogger("distributed.nanny.memory")
    if not any(isinstance(known, _GreedyWorkers) for known in memory.filters):
        memory.addFilter(_GreedyWorkers())


class Strangers(logging.Filter):
    """Lets one line through about connections without the run's credentials: whoever makes thousands fills no log."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is to be heard."""
        if not is_failed_handshake(record):
            return True
        if is_broken_off(record):
            # It has not knocked: one of ours that did not want to wait any longer on a busy machine and tries again.
            return False
        said, self._said = self._said, True
        return not said


_strangers = Strangers()


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
        pid = dead_worker(text)
        if pid is not None:
            if _started and not _hushed and pid not in _expected:
                text = _SIGNAL.sub(_signal_name, text)
                why = " for more memory than its limit" if pid in _greedy else ""
                said = f"w{text[1:]}{why} on node {socket.gethostname()}; it is started again"
                _tell(said)
                for hear in _hearers[:]:
                    hear(pid, said)
            return False
        # What fails at the start is raised as well, and reported by us.
        if is_restart(text) or (not _started and record.exc_info):
            return False
        return record.levelno >= DASK_LOG_LEVEL()


class _GreedyWorkers(logging.Filter):
    """Notes which workers are ended for their memory, for the line about their death."""

    def filter(self, record: logging.LogRecord) -> bool:
        pid = greedy_worker(record.getMessage())
        if pid is not None:
            _greedy.add(pid)
        return True


class _Handshakes(logging.Filter):
    """Drops the traceback of a connection that was being made to a Nanny or worker at the moment of its end."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not is_late_connection(record.exc_info[1] if record.exc_info else None)


class _LateHeartbeats(logging.Filter):
    """Drops what is said of a worker that has handed over and ends a moment after it was forgotten."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not is_late_heartbeat(record.getMessage())


def expect_death(pid: int) -> None:
    """Do not report the end of this worker process."""
    _expected.add(pid)


def tell_deaths(tell: Callable[[str], object]) -> None:
    """Have somebody else say which worker processes have died."""
    global _tell
    _tell = tell


def hear_deaths(hear: Callable[[int, str], object]) -> Callable[[], None]:
    """Have somebody know as well which worker processes have died.

    Parameters
    ----------
    hear : callable
        Gets the number of the process, and what is said.

    Returns
    -------
    callable
        Ends this.
    """
    _hearers.append(hear)
    return lambda: _hearers.remove(hear) if hear in _hearers else None


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
            logger = logging.getLogger(name)
            _levels.setdefault(name, logger.level)
            logger.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Hold Dask's chatter back while something is stopped on purpose in a process that goes on."""
    hush()
    try:
        yield
    finally:
        _speak_again()


def _speak_again() -> None:
    """Let Dask chatter as before: another block begins in this process."""
    global _hushed, _started
    _hushed = _started = False
    while _levels:
        name, level = _levels.popitem()
        logging.getLogger(name).setLevel(level)
