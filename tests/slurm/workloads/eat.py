"""One task allocates without end; the other workers have work to do meanwhile."""

import json
import os
import sys
import time

from dask.distributed import Client, KilledWorker

from batchlet import BatchletRunner


def eat():
    eaten = []
    while True:
        eaten.append(bytearray(20_000_000))
        time.sleep(0.02)


def work(number):
    time.sleep(0.05)
    return number, os.getpid()


with BatchletRunner() as runner, Client(runner) as client:
    known = client.scheduler_info(n_workers=-1)["workers"]
    bad = client.submit(eat, workers=2)
    good = client.map(work, range(60), workers=[3, 4, 5])
    try:
        bad.result()
    except KilledWorker:
        killed = True
    done = client.gather(good)
    client.wait_for_workers(len(known), timeout=20)
    report = {
        "limits": [worker["memory_limit"] for worker in known.values()],
        "killed": killed,
        "numbers": [number for number, _ in done],
        "processes": len({process for _, process in done}),
        "again": client.submit(lambda: "it works again", workers=2).result(),
    }
    sys.stdout.write(f"RESULT {json.dumps(report)}\n")
