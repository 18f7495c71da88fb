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
    metadata: Any = sys.modules.get("importlib_metadata") or importlib.import_module("importlib.metadata")
    found = {"Python": platform.python_version()}
    for name in ("dask", "distributed", "dask-batchlet"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "(not installed)"
    return found
