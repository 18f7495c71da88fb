"""A map of many tasks, as its user would write it: what is done is saved before the end, and the next attempt does the rest.

Arguments: how many tasks, seconds of each, and how long before its end each attempt is stopped ("20,35,10", of which the last
is for all that follow). Which tasks were computed, and how often, stands in the file ``computed``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

# isort: off
from batchlet.early import BatchletRunner
from dask.distributed import Client, Future, as_completed

count, seconds = int(sys.argv[1]), float(sys.argv[2])
leads = sys.argv[3].split(",")
attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
RESULTS = Path("results.json")
OPTIONS = {"workers_per_node": 2, "threads_per_worker": 1}


def work(number: int, computed: str, seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    with Path(computed).open("a") as file:
        file.write(f"{number} ")
    return number, number * number


done: dict[int, int] = {}
if RESULTS.exists():
    done = {int(number): result for number, result in json.loads(RESULTS.read_text()).items()}
lead = leads[min(attempt, len(leads) - 1)]


def save() -> None:
    new = RESULTS.with_suffix(".new")
    new.write_text(json.dumps(done))
    new.replace(RESULTS)
    print("saved", len(done), flush=True)


with BatchletRunner(requeue=True, stop_before=float(lead), **OPTIONS) as runner, Client(runner) as client:
    # Whole at any moment: each result comes by one assignment.
    runner.before_end(callback=save)
    todo = [number for number in range(count) if number not in done]
    print("attempt", runner.attempt, "has", len(todo), "tasks to do", flush=True)

    def begin(number: int) -> Future:
        return client.submit(work, number, computed=str(Path("computed").absolute()), seconds=seconds)

    # Two for each worker at a time: what is lost at most when the job is stopped.
    rest = iter(todo)
    running = as_completed(
        [begin(number) for number in itertools.islice(rest, 2 * runner.n_workers)], with_results=True
    )
    for _, (number, result) in running:
        done[number] = result
        for following in itertools.islice(rest, 1):
            running.add(begin(following))

print("RESULT", sum(done.values()), flush=True)
