"""The ranks meet through one small file on a file system that all nodes share.

The record is complete from the moment it can be seen (written under another name, synced, renamed), readable by the owner
alone, named after the run, and gone when the run ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import RendezvousError, StartTimeoutError
from .base import CoordinatorRecord, Rendezvous

__all__ = ["FileRendezvous"]

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.25
_MKDIR_TRIES = 20
_HINT = (
    "The ranks meet in a directory that every node can see and only you can use: start the job in such a directory, "
    "or set rendezvous_dir= (BATCHLET_DASK_CLUSTER__RENDEZVOUS_DIR) to one."
)


class FileRendezvous(Rendezvous):
    """Meet in a directory.

    Parameters
    ----------
    directory : str
        The directory; made (mode 0700) by rank 0 if it is not there and removed when it is empty at the end.
    run_id : str
        The run; its record is ``<run_id>.json``.
    node : str
        The node of this process, for messages.
    told : callable, optional
        Gives the record if it has come another way.
    """

    def __init__(
        self, directory: str, run_id: str, node: str, told: Callable[[], CoordinatorRecord | None] = lambda: None
    ) -> None:
        self.run_id = run_id
        self._told = told
        self.node = node
        self.directory = Path(directory)
        try:
            self.directory = self.directory.expanduser().absolute()
        except RuntimeError as error:
            raise self._error(str(error)) from None
        self._file = self.directory / f"{run_id}.json"
        self._note = self.directory / f"{run_id}.dashboard"
        self._published = False
        self._found: CoordinatorRecord | None = None

    @property
    def place(self) -> str:
        """See the base class."""
        return str(self.directory)

    @property
    def file(self) -> Path:
        """Where the record is, or would be."""
        return self._file

    def check(self) -> None:
        """See the base class. Makes the directory, so that every rank runs into the same problem if there is one."""
        for attempt in range(_MKDIR_TRIES):
            try:
                self._make_directory()
            except OSError as error:
                raise self._error(error.strerror or str(error)) from None
            if os.access(self.directory, os.W_OK | os.X_OK):
                return
            # Another run that ends may have removed it between the two lines above.
            time.sleep(_FIRST_PAUSE * attempt / _MKDIR_TRIES)
        raise self._error("it cannot be written")

    def _make_directory(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.directory.mkdir(mode=0o700)
        self._check_owner()

    def publish(self, record: CoordinatorRecord) -> None:
        """See the base class."""
        try:
            self._write(self._file, record.to_json())
            self._published = True
            self._refresh(self.directory, sync=True)
        except OSError as error:
            self.withdraw()
            raise self._error(error.strerror or str(error)) from None

    def _write(self, path: Path, text: str) -> None:
        """Write a file that is complete from the moment it can be seen."""
        temporary = self.directory / f".{self.run_id}.{secrets.token_hex(8)}"
        descriptor = self._create(temporary)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _create(self, path: Path) -> int:
        # Another run in the same directory may end, and remove the directory, between our mkdir and our open.
        for attempt in range(_MKDIR_TRIES):
            self._make_directory()
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                time.sleep(_FIRST_PAUSE * attempt)
        raise FileNotFoundError(errno.ENOENT, "it disappears again and again while it is being used")

    def _check_owner(self) -> None:
        try:
            status = self.directory.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None
        if not stat.S_ISDIR(status.st_mode):
            raise self._error("it is not a directory (symbolic links are not followed)")
        if status.st_uid != os.geteuid():
            raise self._error(f"it belongs to user {status.st_uid}, not to you ({os.geteuid()})")
        if status.st_mode & 0o077:
            raise self._error(f"others may use it (mode {stat.S_IMODE(status.st_mode):04o}, needed 0700)")

    def wait(self, deadline: float) -> CoordinatorRecord:
        """See the base class."""
        started = time.monotonic()
        pause = _FIRST_PAUSE
        problem = ""
        while True:
            self._refresh(self.directory)
            record, problem = self._read()
            record = record or self._told()
            if record is not None:
                self._found = record
                return record
            left = deadline - time.monotonic()
            if left <= 0:
                break
            # Spread out, so that thousands of ranks do not ask a file server in step.
            time.sleep(min(left, pause * random.uniform(0.7, 1.3)))  # noqa: S311
            pause = min(_LONGEST_PAUSE, pause * 1.4)
        raise StartTimeoutError(
            f"No word from rank 0 for {time.monotonic() - started:.0f} s (start_timeout): node {self.node} sees "
            f"{problem or 'no record of this run'} in {self.directory}. Either rank 0 did not start (its output says "
            f"why) or the directory is not shared between the nodes. {_HINT}"
        )

    def look(self) -> tuple[CoordinatorRecord | None, str]:
        """Look for the record once, for a run that is under way already.

        Returns
        -------
        record : CoordinatorRecord or None
            The record.
        problem : str
            What is there instead, where something is.

        Raises
        ------
        RendezvousError
            If the directory is not one that only this user can use.
        """
        self._refresh(self.directory)
        self._check_owner()
        return self._read()

    def latest(self) -> CoordinatorRecord | None:
        """See the base class."""
        self._refresh(self.directory)
        record = self._read()[0]
        self._found = record or self._found
        return record

    def _read(self) -> tuple[CoordinatorRecord | None, str]:
        """Read the record if it can be trusted; otherwise say what is wrong with it."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"a record that cannot be read ({error.strerror})"
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return None, "a record that is not a file"
        with os.fdopen(descriptor, encoding="utf-8") as file:
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None, "a record that others may have written"
            try:
                record = CoordinatorRecord.from_json(file.read())
            except (ValueError, OSError):
                return None, "a record that is damaged"
        if record.run_id != self.run_id:
            return None, f"a record of another run ({record.run_id})"
        return record, ""

    @staticmethod
    def _refresh(directory: Path, *, sync: bool = False) -> None:
        """Open the directory and the one above it.

        A network file system remembers for up to a minute that a name was not there (NFS: ``acdirmax``, 60 s). Opening
        the directory makes it ask the server whether the directory has changed, which drops such memories.
        """
        for place in (directory.parent, directory):
            with contextlib.suppress(OSError):
                descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    if sync:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def withdraw(self, *, orphaned: bool = False) -> None:
        """See the base class."""
        if self._published or (orphaned and self._found is not None and self._read()[0] == self._found):
            self._file.unlink(missing_ok=True)
            self._published = False
        if orphaned:
            self.remove_note()
        # Not empty: another run meets here; it will remove the directory.
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def hand_over(self, name: str, text: str) -> None:
        """Give rank 0 something to read, which takes it by `collect`.

        Raises
        ------
        RendezvousError
            If that is not possible.
        """
        try:
            self._make_directory()
            self._write(self.directory / f"{self.run_id}.{name}", text)
            self._refresh(self.directory, sync=True)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from None

    def collect(self, name: str, count: int, deadline: float) -> list[str]:
        """Take what `count` ranks have handed over under names that begin with `name`.

        Returns
        -------
        list of str
            The texts, fewer if not all were there by the deadline (in seconds of `time.monotonic`).
        """
        texts: dict[Path, str] = {}
        pause = _FIRST_PAUSE
        while True:
            self._refresh(self.directory)
            for path in sorted(self.directory.glob(f"{self.run_id}.{name}*")):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and path not in texts:
                        texts[path] = path.read_text(encoding="utf-8")
                    path.unlink()
            if len(texts) >= count or time.monotonic() > deadline:
                break
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.4)
        self.withdraw()
        return list(texts.values())

    def leave_note(self, text: str) -> Path:
        """Write what is for the run's owner alone into ``<run_id>.dashboard``, beside the record.

        Raises
        ------
        RendezvousError
            If that is not possible.
        """
        try:
            self._make_directory()
            # A predecessor of the same name was killed.
            self._note.unlink(missing_ok=True)
            with os.fdopen(self._create(self._note), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self.remove_note()
            raise self._error(error.strerror or str(error)) from None
        return self._note

    def remove_note(self) -> None:
        """Remove what `leave_note` has written, in this process or in another one; twice does no harm."""
        with contextlib.suppress(OSError, RendezvousError):
            self._check_owner()
            self._note.unlink()
            self.directory.rmdir()

    def _error(self, what: str) -> RendezvousError:
        return RendezvousError(
            f"The rendezvous directory {self.directory} cannot be used on node {self.node}: {what}. {_HINT}"
        )
