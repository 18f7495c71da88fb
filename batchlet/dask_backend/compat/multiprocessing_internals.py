"""Corners of CPython's multiprocessing: its fork server, resource tracker, and what it tells its children.

Seen with Python 3.10 to 3.13; 3.14 starts its fork server in another way, which is left alone.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.spawn
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.popen_forkserver import Popen
from typing import Any

__all__ = [
    "adopt_fork_server",
    "adopt_tracker",
    "altered_preparation",
    "child_config",
    "end_fork_server",
    "forget_tracker",
    "fork_server_of_this_block",
    "may_adopt_fork_server",
    "run_finalizers",
    "serve_forks",
    "start_quiet_tracker",
    "stop_helpers",
    "tracker_file",
    "true_exit_codes",
]

# What `multiprocessing.forkserver.main` takes in the versions of Python that are known to work this way.
_KNOWN = ("listener_fd", "alive_r", "preload", "main_path", "sys_path")
_lock = threading.Lock()
_alterations: list[Callable[[str, dict[str, Any]], None]] = []
_poll_count = 0
_preparation = getattr(multiprocessing.spawn, "get_preparation_data", None)
_poll = getattr(Popen, "poll", None)


def child_config() -> dict[str, Any]:
    """Give the configuration that this process hands to its children, for changing it.

    ``tempdir`` is where multiprocessing puts its sockets, ``semprefix`` how its semaphores are called. In ``_config`` of the
    current process; without that the changes are for nothing: sockets are made in a directory that multiprocessing makes, and
    semaphores that a killed run leaves behind stay there.
    """
    config = getattr(multiprocessing.current_process(), "_config", None)
    return config if isinstance(config, dict) else {}


@contextlib.contextmanager
def altered_preparation(alter: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Have processes that are started afresh begin otherwise, for as long as the block runs.

    They do first what ``multiprocessing.spawn.get_preparation_data`` has written down for them, which is not meant to be
    changed. Without it they begin as multiprocessing has it, which runs the user's main module again.

    Parameters
    ----------
    alter : callable
        Gets the name of the process and the data, which it may change.
    """
    module: Any = multiprocessing.spawn
    with _lock:
        _alterations.append(alter)
        if _preparation is not None:
            module.get_preparation_data = _altered
    try:
        yield
    finally:
        with _lock:
            _alterations.remove(alter)
            if not _alterations and _preparation is not None:
                module.get_preparation_data = _preparation


def _altered(name: str, *rest: Any) -> dict[str, Any]:
    assert _preparation is not None
    data: dict[str, Any] = _preparation(name, *rest)
    for alter in _alterations:
        alter(name, data)
    return data


@contextlib.contextmanager
def true_exit_codes() -> Iterator[None]:
    """Let each process that comes from a fork server tell its exit code to whoever asks.

    It tells that once, through a pipe. Dask waits for a process in a thread of its own, while every thread that starts another
    one asks all of them (``Popen.poll``); who comes second reads nothing and notes 255, an "unknown signal" (so does Python
    3.13). Without that method it stays so.
    """
    global _poll_count
    kind: Any = Popen
    with _lock:
        _poll_count += 1
        if _poll is not None:
            kind.poll = _poll_once
    try:
        yield
    finally:
        with _lock:
            _poll_count -= 1
            if _poll_count == 0 and _poll is not None:
                kind.poll = _poll


def _poll_once(self: Any, flag: int = os.WNOHANG) -> int | None:
    assert _poll is not None
    if flag != os.WNOHANG and self.returncode is None:
        wait([self.sentinel])
    with self.__dict__.setdefault("_batchlet_lock", threading.Lock()):
        code: int | None = _poll(self)
        return code


def _fork_server() -> Any:
    return getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)


def _tracker() -> Any:
    return getattr(multiprocessing.resource_tracker, "_resource_tracker", None)


def may_adopt_fork_server() -> bool:
    """Whether there is no fork server yet, and one of ours can take its place.

    That is known of those versions of Python whose ``forkserver.main`` takes what `serve_forks` gives and whose clients need
    no key (3.14 does). Otherwise multiprocessing starts one itself, which imports Dask a second time.
    """
    module, server = multiprocessing.forkserver, _fork_server()
    return (
        callable(getattr(module, "main", None))
        and tuple(inspect.signature(module.main).parameters)[: len(_KNOWN)] == _KNOWN
        and all(hasattr(server, f"_forkserver_{name}") for name in ("pid", "address", "alive_fd"))
        and server._forkserver_pid is None
        and not hasattr(server, "_forkserver_authkey")
    )


def adopt_fork_server(pid: int, address: str, alive: int) -> None:
    """Have multiprocessing take a process as its fork server; only after `may_adopt_fork_server`.

    Parameters
    ----------
    pid : int
        The process.
    address : str
        Path of the socket at which it waits.
    alive : int
        Descriptor of the end of a pipe that it sees close when this process ends.
    """
    server = _fork_server()
    server._forkserver_pid, server._forkserver_address, server._forkserver_alive_fd = pid, address, alive


def serve_forks(listener: int, alive: int) -> None:
    """Be the fork server, with these descriptors, until the other end of `alive` is closed."""
    multiprocessing.forkserver.main(listener, alive, [])


def end_fork_server() -> int | None:
    """Kill the fork server and all that it has forked, if they are a process group; gives its number.

    It is in ``_forkserver_pid``. Without it, or where it is not the first of a group, nothing is killed.
    """
    pid: int | None = getattr(_fork_server(), "_forkserver_pid", None)
    with contextlib.suppress(OSError):
        if pid is not None and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    return pid


@contextlib.contextmanager
def fork_server_of_this_block() -> Iterator[None]:
    """End the fork server that was started in this block (``_forkserver_pid``, ``_stop``), unless there was one before.

    Its socket lies in a directory that goes with the block; another cluster in this process would look for it there. Without
    these names a second cluster in one process does not start.
    """
    before = getattr(_fork_server(), "_forkserver_pid", None)
    try:
        yield
    finally:
        if before is None:
            with contextlib.suppress(Exception):
                _fork_server()._stop()


def adopt_tracker(fork: Callable[[Callable[[], None], int], int]) -> bool:
    """Have multiprocessing take a process that `fork` makes as its resource tracker, which is a whole interpreter otherwise.

    Parameters
    ----------
    fork : callable
        Gets what the process is to do, and the descriptor that it needs for that; gives its number.

    Returns
    -------
    bool
        Whether it was done: not if there is one, or if it is not known (``_fd``, ``_pid``, ``main``) how to.
    """
    module: Any = multiprocessing.resource_tracker
    tracker, main = _tracker(), getattr(module, "main", None)
    if not (hasattr(tracker, "_fd") and hasattr(tracker, "_pid") and callable(main)) or tracker._fd is not None:
        return False
    reader, writer = os.pipe()
    tracker._pid = fork(lambda: main(reader), reader)
    tracker._fd = writer
    os.close(reader)
    return True


def start_quiet_tracker() -> None:
    """Start multiprocessing's resource tracker so that it is silent if this process is killed.

    It then removes the semaphores of Dask's queues, which is its job, and would warn of them. It is started with the options
    for warnings of this process, ``sys.warnoptions``; without these it warns.
    """
    quiet = "ignore:resource_tracker"
    sys.warnoptions.append(quiet)
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def tracker_file() -> int:
    """Give the descriptor of the pipe to the resource tracker; 0 if there is none."""
    return int(getattr(_tracker(), "_fd", None) or 0)


def forget_tracker() -> None:
    """Have multiprocessing start a resource tracker for this process, should it need one, rather than use its parent's.

    In ``_fd`` and ``_pid``. Without them its semaphores are removed when the parent ends.
    """
    tracker = _tracker()
    if hasattr(tracker, "_fd"):
        tracker._fd = tracker._pid = None


def run_finalizers() -> None:
    """Remove now what multiprocessing would remove at the exit of this process (``util._run_finalizers``)."""
    run = getattr(multiprocessing.util, "_run_finalizers", None)
    if callable(run):
        run()


def stop_helpers() -> None:
    """End the fork server and the resource tracker of this process and wait for them (``_stop`` of each).

    Without it they notice the end of this process by themselves, a moment later.
    """
    for helper in (_fork_server(), _tracker()):
        with contextlib.suppress(Exception):
            helper._stop()
