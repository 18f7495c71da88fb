"""What the benchmarks say about themselves, and how they are told to stop."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

DISTRIBUTIONS = ("dask-batchlet", "dask", "dask-jobqueue", "dask-mpi")


def say(text: str) -> None:
    """Tell of the progress."""
    sys.stderr.write(f"benchmarks: {text}\n")
    sys.stderr.flush()


def surroundings() -> str:
    """Say where the figures are from."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    load = f"load {os.getloadavg()[2]:.1f} over 15 min, the benchmark's own included"
    return (
        f"{platform.machine()}, {os.cpu_count()} CPUs, {load}, Python {platform.python_version()}, {', '.join(found)}"
    )


def stop(number: int, _: object) -> NoReturn:
    """Handle SIGTERM: end what was started, as Ctrl-C does."""
    raise SystemExit(128 + number)
