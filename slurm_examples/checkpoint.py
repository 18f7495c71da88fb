"""A computation that takes longer than its job may: shortly before the end it is saved, and the job starts again.

sbatch checkpoint.sbatch                                 # as many times as it takes
python checkpoint.py --samples 1e9                       # on a laptop: in one go, the same result
python checkpoint.py --samples 1e9 --time-limit 15       # saved after half of that; again, and it goes on
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import batchlet.early  # ranks that will be workers wait here
import numpy
from dask.distributed import Client

CHUNK = 1_000_000  # points of a task
TASKS = 4  # for each worker at a time: what is lost at most when the job is stopped


def hits(seed: int) -> int:
    """Count random points of the unit square within the circle; each task has its own, whenever and wherever it runs."""
    x, y = numpy.random.default_rng(seed).random((2, CHUNK))
    return int((x**2 + y**2 < 1).sum())


def load(file: Path) -> tuple[int, int]:
    """Give the tasks that are done, and their hits."""
    if not file.exists():
        return 0, 0
    done, inside = json.loads(file.read_text())
    return done, inside


def save(file: Path, state: tuple[int, int]) -> None:
    """Write them: all, or nothing at all."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.replace(file)
    print(f"saved  after {state[0]} tasks", flush=True)


def main() -> None:
    """Run once, on the client, whatever the number of ranks."""
    parser = argparse.ArgumentParser(description="Estimate pi, in as many jobs as it takes.")
    parser.add_argument("--samples", type=float, default=1e9, help="default: 1e9")
    parser.add_argument("--time-limit", help="end after this time, where the batch system has no limit")
    options = parser.parse_args()
    tasks = max(1, round(options.samples / CHUNK))
    # Of this job alone, if it is one, and of those that follow it where Slurm may not start it again.
    job = os.environ.get("BATCHLET_FIRST_JOB", os.environ.get("SLURM_JOB_ID", "here"))
    file = Path(f"checkpoint-{job}-{tasks}.json")

    with batchlet.BatchletRunner(requeue=True, time_limit=options.time_limit) as runner, Client(runner) as client:
        state = load(file)
        left = "without limit" if runner.time_left is None else f"{runner.time_left:.0f} s left"
        print(f"attempt {runner.attempt}, {left}, {state[0]} of {tasks} tasks done", flush=True)
        # Called in the midst of the loop: `state` is whole at any moment, since one assignment replaces all of it.
        runner.before_end(callback=lambda: save(file, state))
        began = time.perf_counter()
        while state[0] < tasks:
            batch = range(state[0], min(tasks, state[0] + TASKS * runner.n_workers))
            found = sum(client.gather(client.map(hits, batch, pure=False)))
            state = (state[0] + len(batch), state[1] + found)
        seconds = time.perf_counter() - began

    file.unlink(missing_ok=True)
    print(f"pi     {4 * state[1] / (tasks * CHUNK):.7f}")
    print(f"{tasks} tasks, the last of them in {seconds:.1f} s")


if __name__ == "__main__":
    main()
