"""A cluster that grows and shrinks with the work, from a login node or a notebook: jobs that are submitted to Slurm.

python slurm_examples/adaptive.py [cores memory]
"""

from __future__ import annotations

import random
import sys

from batchlet import BatchletCluster


def hits(seed: int, points: int = 200_000) -> int:
    """Count random points of the unit square within the circle."""
    random.seed(seed)
    return sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(points))


def main() -> None:
    cores, memory = sys.argv[1:] or ("4", "2GiB")
    with BatchletCluster("slurm", cores=int(cores), memory=memory, walltime="00:10:00") as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=3)
        client = cluster.get_client()
        inside = sum(client.gather(client.map(hits, range(64))))
        print(f"pi is about {4 * inside / (64 * 200_000):.4f}")
        for job in cluster.jobs:
            print(job)


if __name__ == "__main__":
    main()
