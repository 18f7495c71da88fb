"""Other users of the machine: where they may stand, and how the tests play one."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
LOOPBACK = "127.0.0.1"


FLOODER = (Path(__file__).parent / "flooder.py").read_text()
# What another user's program says on a line of its own when all is set up.
READY = "ready"


@functools.cache
def foreign_python() -> str:
    """A Python that any user can run."""
    for python in ("/usr/bin/python3", "/usr/local/bin/python3", sys.executable):
        if Path(python).exists():
            tried = subprocess.run(
                [*AS_NOBODY, python, "-I", "-c", "import ssl"], check=False, capture_output=True, cwd="/"
            )
            if tried.returncode == 0:
                return python
    pytest.skip("no Python here that other users can run (apt-get install python3)")


def need_root() -> None:
    """Skip where no other user can be played."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("nsenter") is None:
        pytest.skip("to play another user needs root, setpriv and nsenter (apt-get install util-linux)")


@dataclass(frozen=True)
class Standpoint:
    """Where an attacker stands: a network namespace."""

    name: str
    namespace: str
    enter: tuple[str, ...] = ()
    address: str = LOOPBACK


def here() -> Standpoint:
    """This machine itself, the login node of the test cluster."""
    return Standpoint("login", str(Path("/proc/self/ns/net").readlink()))


def standpoints(cluster: Any) -> list[Standpoint]:
    """All nodes of the test cluster, and its login node."""
    found = [Standpoint("login", here().namespace, (), cluster.login_address)]
    pids = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            match = re.search(r"slurmd .*-N (\S+)", " ".join(process.cmdline()))
            if match and process.name() == "slurmd":
                pids[match[1]] = process.pid
    for node, address in cluster.node_addresses.items():
        pid = pids[node]
        found.append(
            Standpoint(
                node, str(Path(f"/proc/{pid}/ns/net").readlink()), ("nsenter", f"--target={pid}", "--net"), address
            )
        )
    return found


def as_nobody(
    standpoint: Standpoint, *arguments: str, stdin: str = "", timeout: float = 240, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, there."""
    source = ["-c", code] if code else list(arguments)
    return subprocess.run(
        [*standpoint.enter, *AS_NOBODY, foreign_python(), "-I", *source, *(arguments if code else ())],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def stranger(
    point: Standpoint, *arguments: str, code: str, stdin: str = "", timeout: float = 30
) -> Iterator[subprocess.Popen[str]]:
    """Have Python code run as another user, there, for as long as the block lasts; it prints `READY` when all is set up."""
    process = subprocess.Popen(
        [*point.enter, *AS_NOBODY, foreign_python(), "-I", "-c", code, *arguments],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(stdin)
        process.stdin.close()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout), f"another user's program was not ready within {timeout:g} s"
        assert process.stdout.readline() == f"{READY}\n", "another user's program has failed; see its output"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def flooding(point: Standpoint, host: str, port: int, connections: int, kind: str) -> Iterator[None]:
    """Have another user keep so many connections to a port, for as long as the block lasts; see flooder.py."""
    with stranger(point, host, str(port), str(connections), kind, code=FLOODER):
        yield
