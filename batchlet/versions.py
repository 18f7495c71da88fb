"""Versions that all processes of a run must share: they exchange pickled objects."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Give the versions of Python, Dask and Batchlet in this process, without importing Dask."""
    # Not at the top: what rank 0 alone compares must not slow the import of the package. Dask imports one of the two.
    # It may be doing so at this moment, in another thread: this waits until it is done.
    name = "importlib_metadata" if sys.modules.get("importlib_metadata") else "importlib.metadata"
    metadata: Any = importlib.import_module(name)
    found = {"Python": platform.python_version()}
    for name in ("dask", "distributed", "dask-batchlet"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "(not installed)"
    return found
