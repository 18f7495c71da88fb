"""The custodian: a process beside the client that cancels its jobs and removes its files when the client is gone.

It is run as a program, by its file, and imports the standard library alone. The client tells it everything through its
standard input, one JSON object a line; when that ends without
the word that all is done, the client is dead, whatever killed it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

__all__ = ["Custodian"]

# Seconds for which a command that fails is tried again, and between two of the tries.
_PATIENCE, _PAUSE = 600.0, 5.0
_TIMEOUT = 60.0


class Custodian:
    """The client's hold on its custodian.

    Parameters
    ----------
    environ : mapping of str to str
        The environment for the batch system's commands.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[str] | None = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__)],  # noqa: PTH100
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(environ),
            cwd="/",
            # Neither Ctrl-C nor the end of the terminal is for it.
            start_new_session=True,
        )

    def jobs(self, cancel: Sequence[str]) -> None:
        """Say by which command all jobs are cancelled that there are now; an empty one if there are none."""
        self._say({"cancel": list(cancel)})

    def files(self, paths: Iterable[str]) -> None:
        """Say which files and directories are to be removed; a directory that others use too is kept if it is not empty."""
        self._say({"files": list(paths)})

    def dismiss(self) -> None:
        """Let it go: nothing is left to do."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            process.communicate(json.dumps({"done": True}) + "\n", timeout=2.0)

    def abandon(self) -> None:
        """Leave it alone with what is left to do."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _say(self, words: Mapping[str, object]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(words) + "\n")
                self._process.stdin.flush()


def _attend(stream: IO[str]) -> None:
    """Hear what the client says, and do what is left when it is gone."""
    cancel: list[str] = []
    files: list[str] = []
    for line in stream:
        words = json.loads(line) if line.endswith("\n") else {}
        if words.get("done"):
            return
        cancel = words.get("cancel", cancel)
        files = words.get("files", files)
    for path in files:
        _remove(path)
    until = time.monotonic() + _PATIENCE
    while cancel and not _succeeds(cancel) and time.monotonic() < until:
        time.sleep(_PAUSE)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        if path.endswith("/"):
            os.rmdir(path)  # noqa: PTH106
        elif os.path.isdir(path):  # noqa: PTH112
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)  # noqa: PTH108


def _succeeds(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    _attend(sys.stdin)
