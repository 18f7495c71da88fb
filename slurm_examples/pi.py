"""Estimate pi from random points: the share of a square that lies in its circle.

The points are a dask.array in chunks, of which a worker holds only a few at once.

    python pi.py                            # on a laptop
    srun -n 8 python pi.py --samples 1e10   # inside a Slurm job
"""

from __future__ import annotations

import argparse
import math
import time

import batchlet.early  # ranks that will be workers wait here
import dask.array as da
from dask.distributed import Client

CHUNK = 1_000_000  # points per task: 16 MB, and a few tens of milliseconds


def main(runner: batchlet.BatchletRunner) -> None:
    """Run once, on the client, whatever the number of ranks."""
    parser = argparse.ArgumentParser(description="Estimate pi from random points.")
    parser.add_argument("--samples", type=float, default=2e8, help="default: 2e8")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args()
    samples = int(options.samples)
    if samples < 1:
        parser.error("--samples must be at least 1")

    with Client(runner) as client:
        began = time.perf_counter()
        # Each chunk has its own stream of random numbers, fixed by the seed:
        # the estimate is the same on any number of workers.
        rng = da.random.default_rng(options.seed)
        x, y = rng.random((2, samples), chunks=(2, CHUNK))
        inside = int((x**2 + y**2 < 1).sum().compute())
        seconds = time.perf_counter() - began
        workers = len(client.nthreads())

    pi = 4 * inside / samples
    expected = math.sqrt(math.pi * (4 - math.pi) / samples)  # one standard deviation
    print(f"pi     {pi:.7f}")
    print(f"error  {abs(pi - math.pi):.7f}  (about {expected:.7f} is expected)")
    print(f"{samples:,} samples in {seconds:.1f} s on {workers} workers")
    print(f"{samples / seconds:,.0f} samples per second")


if __name__ == "__main__":
    with batchlet.BatchletRunner() as runner:
        main(runner)
