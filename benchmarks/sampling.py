"""What sampling costs: CPU time of a whole run with it and without it, and the part that is spent in it.

    python benchmarks/sampling.py                       # two workers on this machine
    python benchmarks/sampling.py --repeats 9 --seconds 20 --tasks 20000

Each repeat starts one run that samples and one that does not, in turns, and each run does the same: so many small tasks, and so
many seconds of work for each worker. The CPU time is that of all processes of the run, from their start to their end.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

# The program runs in a process of its own; without sampling it takes away what would sample, and what counts tasks.
PROGRAM = """
import json, sys, time
sampled, seconds, tasks = sys.argv[1] == "yes", float(sys.argv[2]), int(sys.argv[3])
from batchlet import BatchletRunner
from batchlet.dask_backend import local_cluster
from batchlet.dask_backend.scheduler_figures import SchedulerFigures
from batchlet.node.sampling import Sampler
from distributed import Client

spent = [0.0]

def timed(function):
    def call(*args, **kwargs):
        began = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.thread_time() - began
    return call

if sampled:
    Sampler.sample, SchedulerFigures.told = timed(Sampler.sample), timed(SchedulerFigures.told)
else:
    local_cluster.sample = lambda *_: lambda: None

def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def small(number):
    return number

if __name__ == "__main__":
    with BatchletRunner(workers_per_node=2, threads_per_worker=1, memory_per_worker="1GiB", security=False) as runner:
        with Client(runner) as client:
            client.gather(client.map(work, [seconds] * 2, pure=False))
            for _ in range(tasks // 1000):
                client.gather(client.map(small, range(1000), pure=False))
    print(json.dumps(spent[0]))
"""


def cpu_of_children() -> float:
    """CPU seconds of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(sampled: bool, arguments: argparse.Namespace) -> tuple[float, float]:
    """CPU seconds of a run, and those that were spent in sampling."""
    before = cpu_of_children()
    words = ["yes" if sampled else "no", str(arguments.seconds), str(arguments.tasks)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=600,
        check=True,
    )
    return cpu_of_children() - before, float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU seconds of each worker")
    parser.add_argument("--tasks", type=int, default=10_000, help="small tasks")
    arguments = parser.parse_args()
    ratios, shares, began = [], [], time.monotonic()
    for number in range(arguments.repeats):
        found = {sampled: run(sampled, arguments) for sampled in ((True, False) if number % 2 else (False, True))}
        (total, spent), (without, _) = found[True], found[False]
        ratios.append(total / without)
        shares.append(spent / total)
        print(f"with {total:.2f} s, without {without:.2f} s, in sampling {spent:.3f} s", flush=True)
    print(
        f"ratio {statistics.median(ratios):.4f} (median of {len(ratios)}), in sampling {statistics.median(shares):.2%}"
    )
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
