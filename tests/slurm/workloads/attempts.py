"""A computation that takes three attempts; how each of the first two ends, its arguments say.

Arguments: what ends the first attempt and the second ("time", "scheduler", "wait", or "late" for a rank that does not come in
time), and the step at which the third is done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

if sys.argv[1] == "late" and os.environ["SLURM_PROCID"] == "3" and "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(10)

# isort: off
from batchlet.early import BatchletRunner
from dask.distributed import Client

*ends, last = sys.argv[1:]
FILE = Path(f"state-{os.environ.get('BATCHLET_FIRST_JOB', os.environ['SLURM_JOB_ID'])}.json")


def say(*words: object) -> None:
    print(*words, flush=True)


def square(number: int) -> int:
    return number * number


def pid(dask_scheduler) -> int:
    return os.getpid()


with BatchletRunner() as runner, Client(runner) as client:
    # Steps done, and the sum of their squares.
    state = json.loads(FILE.read_text()) if FILE.exists() else [0, 0]
    say("attempt", runner.attempt, "from", state[0], "time", runner.time_left is not None)

    def save() -> None:
        # With a cluster that works.
        FILE.write_text(json.dumps(client.submit(list, state, pure=False).result()))
        say("saved", state[0])

    runner.before_end(callback=save)
    how = ends[runner.attempt - 1] if runner.attempt <= len(ends) else "finish"
    done_before = state[0]
    while how != "finish" or state[0] < int(last):
        if how == "finish" or state[0] < done_before + 10:
            state = [state[0] + 1, state[1] + client.submit(square, state[0], pure=False).result()]
        else:
            time.sleep(0.05)
        if how == "scheduler" and state[0] >= done_before + 3:
            FILE.write_text(json.dumps(state))
            say("kills the scheduler at", state[0])
            os.kill(client.run_on_scheduler(pid), signal.SIGKILL)
            how = "wait"
        if state[0] == done_before + 3:
            say("under way")
say("RESULT", state[1])
