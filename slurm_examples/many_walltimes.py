"""A computation that takes longer than any of its jobs may: each is replaced before its time limit, and no result is lost.

python slurm_examples/many_walltimes.py [cores memory [seconds that a job is used [steps]]]
"""

from __future__ import annotations

import random
import sys
import time

from batchlet import BatchletCluster

WALKERS = 4


def walk(place: int, number: int, step: int) -> int:
    """Go on from where the step before has come to, for a second: what is known of it is in the memory of some worker."""
    draw = random.Random(1000 * step + number)
    until = time.monotonic() + 1.0
    for _ in range(1000):
        place += draw.choice((-1, 1))
    time.sleep(max(0.0, until - time.monotonic()))
    return place


def main() -> None:
    given = [*sys.argv[1:], *("4", "2GiB", "600", "2400")[len(sys.argv) - 1 :]]
    cores, memory, lifetime, steps = int(given[0]), given[1], float(given[2]), int(given[3])
    # The time limit alone would do. With job_lifetime jobs are replaced sooner: to try it out, or where memory leaks.
    with BatchletCluster(
        "slurm", jobs=2, cores=cores, memory=memory, walltime="01:00:00", job_lifetime=lifetime
    ) as cluster:
        client = cluster.get_client()
        places = [0] * WALKERS
        for step in range(steps):
            places = client.map(walk, places, range(WALKERS), step=step)
        print(f"after {1000 * steps} steps: {client.gather(places)}")
        print(f"{len(cluster.jobs)} jobs, two at a time, each for at most {lifetime:g} s")


if __name__ == "__main__":
    main()
