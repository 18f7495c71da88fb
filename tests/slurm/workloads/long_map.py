"""A map of many tasks, as its user would write it: what is done is saved before the end, and the next attempt does the rest.

Arguments: how many tasks, seconds of each, and how long before its end each attempt is stopped ("20,35,10", of which the last
is for all that follow). Which tasks were computed, and how often, stands in the file ``computed``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

# isort: off
from batchlet.early import BatchletRunner
from dask.distributed import Client

count, seconds = int(sys.argv[1]), float(sys.argv[2])
leads = sys.argv[3].split(",")
attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
RESULTS = Path("results.json")
OPTIONS = {"workers_per_node": 3, "threads_per_worker": 1}


def work(number: int, computed: str, seconds: float) -> int:
    time.sleep(seconds)
    with Path(computed).open("a") as file:
        file.write(f"{number} ")
    return number * number


done: dict[int, int] = {}
if RESULTS.exists():
    done = {int(number): result for number, result in json.loads(RESULTS.read_text()).items()}
lead = leads[min(attempt, len(leads) - 1)]

with BatchletRunner(requeue=True, stop_before=float(lead), **OPTIONS) as runner, Client(runner) as client:
    futures: dict[int, object] = {}

    def save() -> None:
        ready = {number for number, future in futures.items() if future.status == "finished"}
        # What is not done by now, the next attempt does.
        client.cancel([future for number, future in futures.items() if number not in ready])
        results = {**done, **dict(zip(ready, client.gather([futures[number] for number in ready]), strict=True))}
        new = RESULTS.with_suffix(".new")
        new.write_text(json.dumps(results))
        new.replace(RESULTS)
        print("saved", len(results), flush=True)

    runner.before_end(callback=save)
    todo = [number for number in range(count) if number not in done]
    print("attempt", runner.attempt, "has", len(todo), "tasks to do", flush=True)
    started = client.map(work, todo, computed=str(Path("computed").absolute()), seconds=seconds)
    futures.update(zip(todo, started, strict=True))
    done.update(zip(todo, client.gather(started), strict=True))

print("RESULT", sum(done.values()), flush=True)
