"""Short commands, small files and bounded waits, as the test cluster needs them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# The daemons are in sbin, which is not on every root's PATH.
DAEMON_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ClusterError(RuntimeError):
    """The cluster could not be built, or not be taken down; the message says what was found."""


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a short command; one that is missing or hangs fails like any other, with a shell's exit codes for that."""
    environment = {**os.environ, "PATH": DAEMON_PATH} if env is None else env
    try:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 124, "", str(error))


def ip(namespace_of: int | None, *commands: str) -> None:
    """Run ``ip`` commands in one go, on the host or in the network namespace of a process."""
    enter = [] if namespace_of is None else ["nsenter", f"--target={namespace_of}", "--net"]
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"],
        env={**os.environ, "PATH": DAEMON_PATH},
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"ip failed: {done.stderr.strip()}")


def wait(condition: Callable[[], bool], seconds: float, message: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"after {seconds:g} s {message()}")
        time.sleep(0.03)


def make_directory(path: Path, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)  # mkdir's own mode is subject to the caller's umask


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "(no message)"
