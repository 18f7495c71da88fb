"""Scratch: a directory of this process's own on the node's disk, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import dask.config

from ..errors import SettingsError
from ..report import note
from ..security import swappable_by_group, unsafe
from ..settings import Settings
from .compat.multiprocessing_internals import child_config

__all__ = ["forget_scratch", "remove_scratch", "scratch", "scratch_directories"]

# Bytes that the path of a Unix socket may have (sun_path, 108 on Linux and 104 on macOS), less what multiprocessing adds.
_LONGEST_SOCKET_DIRECTORY = 104 - len("/listener-xxxxxxxx") - 1


_directories: set[str] = set()
# Open files of theirs.
_locks: set[int] = set()
_PREFIX = "batchlet-"
# What marks a directory as ours; a user's own may be called batchlet-something, too.
_LOCK = ".batchlet-lock"
# Seconds after which a directory that nobody has locked is nobody's, and not just about to be locked.
_STALE = 60.0
# Where Linux keeps named semaphores.
_SEMAPHORES = "/dev/shm/sem."  # noqa: S108
# Who ends well has removed its semaphores itself, and may have made some that the user still needs.
_JANITOR = 'read -r end || rm -f -- "$0"-*; rm -rf -- "$@"'
# Bytes of what a lock tells.
_LONGEST_HOST = 1024
# Where scratch goes if it may not be where the environment has it.
_OTHERS = ("/tmp", "/var/tmp")  # noqa: S108
# Seconds that making a directory takes on a file system that is no place for scratch.
_SLOW = 1.0


def remove_scratch() -> None:
    """Remove this process's directories at once; for an end in which nothing else is done."""
    for directory in list(_directories):
        shutil.rmtree(directory, ignore_errors=True)


def scratch_directories() -> list[str]:
    """Name this process's directories."""
    return sorted(_directories)


def forget_scratch() -> None:
    """Leave the directories of the process that this one was forked from to that."""
    _directories.clear()
    while _locks:
        # A network file system keeps what somebody has open, and the directory with it.
        with contextlib.suppress(OSError):
            os.close(_locks.pop())
    child_config().pop("tempdir", None)


@contextlib.contextmanager
def scratch(settings: Settings, usual: Sequence[str], run_id: str, *, quiet: bool = False) -> Iterator[str]:
    """Make a directory of this process's own on node-local scratch, and see it removed at the end.

    Dask and multiprocessing put what they need into it as well.

    A shell waits for the end of this process and removes the directory, so that it also goes when this process is killed.

    Parameters
    ----------
    settings : Settings
        What the user asked for, a directory among it.
    usual : sequence of str
        Directories that this place has for scratch, the best one first.
    run_id : str
        The run, by which people shall know what the directory is for.
    quiet : bool
        Whether another process says where scratch is, if not in the first of them.

    Raises
    ------
    SettingsError
        If the directory cannot be made, or cannot be trusted.
    """
    wanted = settings.local_directory
    candidates = [*usual, tempfile.gettempdir()]
    base = wanted or candidates[0]
    began = time.monotonic()
    try:
        if wanted:
            Path(base).mkdir(parents=True, exist_ok=True)
        else:
            base = _safe_from_groups(base, [*candidates, *_OTHERS], quiet=quiet)
        if problem := unsafe(base) or swappable_by_group(base):
            raise SettingsError(
                f"The scratch directory {base} cannot be trusted: {problem}, so that others could put their own files in the "
                "place of the run's. Set local_directory= (BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY) to a directory of your own."
            )
        directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{run_id}-", dir=base)
        short = len(directory) <= _LONGEST_SOCKET_DIRECTORY
        sockets = directory if short else tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    except OSError as error:
        raise SettingsError(
            f"The scratch directory {base} cannot be used ({error.strerror}): set local_directory= "
            "(BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY) to a directory on the node's own disk."
        ) from None
    locks = [lock for place in {directory, sockets} if (lock := _lock(place, new=True)) is not None]
    for place in {base, os.path.dirname(sockets)}:  # noqa: PTH120
        _sweep(place)
    if time.monotonic() - began > _SLOW:
        note(
            f"the scratch directory {base} is slow ({time.monotonic() - began:.1f} s to make one in it); if it is not on the "
            "node's own disk, set local_directory= (BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY)"
        )
    # A session of its own, so that signals to this process's group do not end it first.
    name = os.path.basename(directory)  # noqa: PTH119
    janitor = subprocess.Popen(
        ["/bin/sh", "-c", _JANITOR, f"{_SEMAPHORES}{name}", directory, sockets],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    _directories.update((directory, sockets))
    _locks.update(locks)
    config = child_config()
    config.setdefault("tempdir", sockets)
    # So that the next run can tell whose the semaphores are that a killed run leaves behind, six of each worker.
    prefix = config.get("semprefix")
    config["semprefix"] = f"/{name}"
    try:
        with dask.config.set({"temporary-directory": directory}):
            yield directory
    finally:
        if config.get("tempdir") == sockets:
            del config["tempdir"]
        config["semprefix"] = prefix
        janitor.communicate(b"good\n")
        for lock in locks:
            os.close(lock)
        _locks.difference_update(locks)
        _directories.difference_update((directory, sockets))


def _safe_from_groups(base: str, others: Sequence[str], *, quiet: bool) -> str:
    """Give another directory than one that the environment names, if members of a group could swap what is in it.

    Nobody has chosen it for this run, and runs were started there before that was looked at: they go on, elsewhere.
    """
    problem = swappable_by_group(base)
    if problem is None or unsafe(base):
        return base
    for other in others:
        with contextlib.suppress(OSError):
            if os.access(other, os.W_OK | os.X_OK) and not unsafe(other) and not swappable_by_group(other):
                if not quiet:
                    note(
                        f"scratch is in {other} instead of {base}: {problem}, so that its members could put their own files in "
                        "the place of the run's; local_directory= (BATCHLET_DASK_CLUSTER__LOCAL_DIRECTORY) chooses another one"
                    )
                return other
    return base


def _this_host() -> str:
    """Name this machine, since it was started last: processes here are sure to see each other's locks."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{os.uname().nodename} {boot}"


def _lock(directory: str, *, new: bool) -> int | None:
    """Show others that a directory is in use, for as long as this process or one that is forked from it lives.

    The file tells on which host it was made: a network file system may keep locks to the host that has taken them.

    `None` if it is in use already, or none of ours, or of another host, or on a file system without locks.
    """
    descriptor: int | None = None
    try:
        flags = os.O_CREAT | os.O_EXCL if new else os.O_NOFOLLOW
        descriptor = os.open(os.path.join(directory, _LOCK), os.O_RDWR | flags, 0o600)  # noqa: PTH118
        if not new and time.time() - os.fstat(descriptor).st_mtime < _STALE:
            raise BlockingIOError
        if not new and os.read(descriptor, _LONGEST_HOST).decode("utf-8", "replace") != _this_host():
            raise BlockingIOError
        if new:
            os.write(descriptor, _this_host().encode())
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _sweep(base: str) -> None:
    """Remove what earlier runs of this user have left on this node, where Slurm had killed all of their processes at once."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(base)):
            if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            lock = _lock(entry.path, new=False)
            if lock is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                for semaphore in glob.glob(f"{_SEMAPHORES}{glob.escape(entry.name)}-*"):  # noqa: PTH207
                    os.unlink(semaphore)  # noqa: PTH108
                os.close(lock)
