"""Versions that all processes of a run must share: they exchange pickled objects."""

from __future__ import annotations

import platform

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Give the versions of Python, Dask and Batchlet in this process, without importing Dask."""
    # Not at the top: what rank 0 alone compares must not slow the import of the package.
    import importlib.metadata

    found = {"Python": platform.python_version()}
    for name in ("dask", "distributed", "dask-batchlet"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "(not installed)"
    return found
