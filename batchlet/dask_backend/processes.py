"""How Dask starts child processes in a process of ours, and how they end."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from distributed import Nanny

from ..errors import EndError, InputError, SettingsError
from .compat import multiprocessing_internals
from .compat.dask_internals import WORKER_PROCESS, living

__all__ = [
    "SAME_SECURITY",
    "SCHEDULER_PROCESS",
    "NotMadeError",
    "close_files",
    "end_helpers",
    "end_session",
    "hidden_main",
    "start_failure",
]

# Seconds for killed processes to be gone.
_GONE = 2.0
#: What to do about ranks that do not trust each other.
SAME_SECURITY = (
    "The object in security= must be the same on all ranks, so made from files; Security.temporary() is another one on each. "
    "Leave security= out to have Batchlet make and share one."
)
#: Name of the process of the scheduler, where a host starts it.
SCHEDULER_PROCESS = "Batchlet scheduler"


class NotMadeError(Exception):
    """A worker could not be made; the message says all that the user needs.

    Not one of ours, which end the process: an event loop would end by it, wherever it is raised.
    """


def start_failure(what: str, error: Exception) -> EndError:
    """Make the message for a part of Dask that did not start; the cause is most often an option passed through."""
    while not isinstance(error, NotMadeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, NotMadeError):
        return SettingsError(str(error))
    cause = f"{type(error).__name__}: {str(error).rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return InputError(
            f"Dask's {what} did not start, because the ranks refuse each other's certificates ({cause}). {SAME_SECURITY}"
        )
    return InputError(f"Dask's {what} did not start: {cause}. Check {what}_options= and the configuration of Dask.")


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep the user's script from running a second time in the processes that Dask's Nanny starts.

    A process that multiprocessing starts afresh runs the parent's main module again under another name, which a script
    without an ``if __name__ == "__main__"`` guard does not survive. Workers do not need it: Dask sends what the main module
    defines by value. Other processes, such as those of the user's own pools, are not touched.
    """
    with multiprocessing_internals.altered_preparation(_hide_main):
        yield


def _hide_main(name: str, data: dict[str, Any]) -> None:
    if name not in (WORKER_PROCESS, SCHEDULER_PROCESS):
        return
    data.pop("init_main_from_name", None)
    data.pop("init_main_from_path", None)
    # Each Nanny puts its own directory on the path of this process: no worker is to import from another one's.
    theirs = {nanny.local_directory for nanny in living(Nanny)}
    data["sys_path"] = [path for path in data.get("sys_path", ()) if path not in theirs]


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
    pid = multiprocessing_internals.end_fork_server()
    for child in multiprocessing.active_children():
        # Rank 0 sees to the end of the scheduler.
        if child.name != SCHEDULER_PROCESS:
            child.kill()
            child.join(1.0)
    # Dask's queues hold semaphores, which must be gone before the tracker is.
    gc.collect()
    multiprocessing_internals.run_finalizers()
    multiprocessing_internals.stop_helpers()
    # The workers that were killed with the fork server are nobody's children now: they, too, have to be gone.
    until = time.monotonic() + _GONE
    while pid is not None and time.monotonic() < until and _group_lives(pid):
        time.sleep(0.005)


def end_session(session: int | None) -> None:
    """End what is left of an agent that has died: its workers, which end with it, but not while they are in compiled code.

    Until then they would hold their memory and their ports. What they have started themselves goes with them.

    Parameters
    ----------
    session : int, optional
        The number of its fork server, which was the leader of their session. The kernel gives it to no other process while
        anybody is in that session.
    """
    if session is None or session == os.getsid(0):
        return
    until = time.monotonic() + _GONE
    while (left := _in_session(session)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.005)


def _in_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _group_lives(group: int) -> bool:
    """Whether any process of a group is more than a zombie that somebody has yet to look at."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
