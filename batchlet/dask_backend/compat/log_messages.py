"""What Dask's loggers say: messages are known by their text. Seen with distributed 2024.8.0 to 2026.8.0.

Where a text has changed, its line appears as Dask has it, at Dask's own level, beside Batchlet's own.
"""

from __future__ import annotations

import logging
import re

__all__ = [
    "SLOW_SCRATCH",
    "dead_worker",
    "greedy_worker",
    "is_broken_off",
    "is_failed_handshake",
    "is_late_connection",
    "is_late_heartbeat",
    "is_restart",
    "is_task_of_the_end",
    "is_told_by_the_nanny",
]

#: Begin of the warning of a directory that is slow (`distributed.core.Server`); each worker would say it of its own directory,
#: and Batchlet says it once, of the one that has them all.
SLOW_SCRATCH = "Creating scratch directories is taking"
_DEAD = re.compile(r"Worker process (?P<pid>\d+) (?:was killed by|exited with) ")

_GREEDY = re.compile(r"^Worker .*\(pid=(?P<pid>\d+)\) exceeded \d+% memory budget")


def dead_worker(text: str) -> int | None:
    """Give the process id if this tells of a worker process that has ended (`WorkerProcess._death_message`, level "info").

    Otherwise such a death is told by nobody.
    """
    match = _DEAD.match(text)
    return int(match["pid"]) if match else None


def greedy_worker(text: str) -> int | None:
    """Give the process id if a Nanny says that it ends a worker over its limit (`NannyMemoryManager`, level "warning")."""
    match = _GREEDY.search(text)
    return int(match["pid"]) if match else None


def is_restart(text: str) -> bool:
    """Whether a Nanny says that it starts its worker again (level "warning"), as it does after each `client.restart`."""
    return text.startswith("Restarting worker")


def is_failed_handshake(record: logging.LogRecord) -> bool:
    """Whether this tells of a connection that has not proved to be of the run: Dask's line, or Tornado's ("SSL Error")."""
    return "TLS handshake failed" in str(record.msg) or str(record.msg).startswith("SSL Error")


def is_broken_off(record: logging.LogRecord) -> bool:
    """Whether a failed handshake is one that the other side has given up: with leave (EOF), or without (OpenSSL's name)."""
    return any(text in record.getMessage() for text in ("UNEXPECTED_EOF", "connection has been closed (EOF)"))


def is_late_connection(error: BaseException | None) -> bool:
    """Whether a connection came to a listener that was being stopped (`BaseTCPListener._check_started`): a traceback."""
    return isinstance(error, ValueError) and "non-started TCPListener" in str(error)


def is_late_heartbeat(text: str) -> bool:
    """Whether a scheduler has heard of a worker that it has forgotten already (``heartbeat_worker``, level "warning")."""
    return text.startswith("Received heartbeat from unregistered worker")


def is_task_of_the_end(text: str) -> bool:
    """Whether a worker tells of a task of its own that its end has cancelled (`worker_state_machine`, level "warning")."""
    return "ended with CancelledError" in text


def is_told_by_the_nanny(text: str) -> bool:
    """Whether a worker tells why it did not start (`WorkerProcess._run`); its Nanny raises the same."""
    return text in ("Failed to initialize worker", "Failed to start worker")
