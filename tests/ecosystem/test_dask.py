"""What Dask itself offers: collections, plugins, coordination between tasks, and ways to watch a computation."""

from __future__ import annotations

from four_ways import FourWays


class TestDask(FourWays):
    needs = {"frames": [], "plugins": [], "together": [], "watching": []}
    also = ("frames", "plugins", "together")
