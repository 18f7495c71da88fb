"""The incremental searches of dask-ml, which the newest Dask has broken: `tests/run --dask oldest` runs them."""

from __future__ import annotations

import importlib.metadata

import pytest
from four_ways import FourWays
from run_helpers import Result

# dask-ml 2025.1 calls `dask.persist` in a coroutine, which Dask no longer lets it do.
BROKEN_BY_DASK = "RuntimeError: Attempting to use an asynchronous Client in a synchronous context"


class TestSearches(FourWays):
    needs = {"searches": ["dask-ml"]}
    also = ("searches",)

    def check(self, plain: Result) -> None:
        if BROKEN_BY_DASK in plain.stderr:
            versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("dask-ml", "dask"))
            pytest.skip(
                f"plain Dask cannot run this either: {versions}: {BROKEN_BY_DASK} (tests/run --dask oldest can)"
            )
