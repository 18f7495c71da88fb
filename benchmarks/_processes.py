"""The processes of one run, on all nodes: known by a variable in their environment, as they share the host's numbers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "BENCHMARK_MARK"
# What belongs to the launcher, which any tool needs.
LAUNCHERS = ("prted", "srun", "mpirun", "prterun", "slurmstepd")


def marked(mark: str) -> list[int]:
    """List the processes that have this mark; a zombie has no environment any more."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def memory(mark: str) -> tuple[int, int]:
    """Sum up the memory of all that runs on the nodes, without the launchers.

    Returns
    -------
    tuple of int
        Bytes (PSS: a page that n processes share counts 1/n for each), and the number of processes.
    """
    here = Path("/proc/self/ns/net").readlink()
    total = number = 0
    for pid in marked(mark):
        process = Path("/proc", str(pid))
        with contextlib.suppress(OSError):
            # A node is a network namespace; what is in ours only starts and watches the run.
            if (process / "ns/net").readlink() == here or (process / "comm").read_text().strip() in LAUNCHERS:
                continue
            for line in (process / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
                    number += 1
    return total, number


def end(mark: str, grace: float) -> int:
    """End what is left after `grace` seconds.

    Returns
    -------
    int
        How many processes had to be killed.

    Raises
    ------
    RuntimeError
        If they do not die.
    """
    deadline = time.monotonic() + grace
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed: set[int] = set()
    deadline = time.monotonic() + 10
    while left := marked(mark):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes do not die: {left}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        time.sleep(0.05)
    return len(killed)
