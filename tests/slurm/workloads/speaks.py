"""Workers, their hosts and the scheduler say something, and a worker dies after its last words; what `get_logs` has of it.

Arguments: "runner" or "cluster" (of jobs that are processes of this machine), and how many lines a worker says at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings

import dask
from dask.distributed import Client, KilledWorker

from batchlet import BatchletCluster, BatchletRunner


def where() -> list[str]:
    return [os.environ.get("SLURM_PROCID", ""), os.uname().nodename]


def speak(whom: str) -> None:
    logging.getLogger("mine").info("%s: not worth keeping", whom)
    logging.getLogger("mine").warning("%s: by a logger", whom)
    alone = logging.getLogger("alone")
    alone.propagate = False
    alone.critical("%s: by a logger that keeps it to itself", whom)
    warnings.warn(f"{whom}: as a warning", stacklevel=1)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("mine").exception("%s: with a traceback", whom)
    logging.getLogger("mine").warning("%s: %s", whom, "long " * 1000)


def flood(count: int) -> None:
    logger = logging.getLogger("flood")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    for number in range(count):
        logger.warning("line %d of the flood", number)


def die() -> None:
    logging.getLogger("mine").error("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def say_as_scheduler(dask_scheduler: object) -> None:
    speak("scheduler")
    logging.getLogger("distributed.scheduler").error("scheduler: by Dask's logger")


def say_as_host() -> None:
    logging.getLogger("distributed.nanny").warning("host: by Dask's logger")


def main() -> None:
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    if sys.argv[1] == "runner":
        made = BatchletRunner()
    else:
        made = BatchletCluster("local", jobs=1, cores=2, memory="600MiB", workers_per_node=2)
    with made as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        found = {"workers": {info["name"]: client.run(where, workers=[address])[address]
                             for address, info in client.scheduler_info(n_workers=-1)["workers"].items()}}  # fmt: skip
        found["clean"] = sorted(cluster.get_logs())[:2]
        first, *_, last = sorted(client.scheduler_info(n_workers=-1)["workers"])
        client.submit(speak, "worker", workers=[first], pure=False).result()
        client.run(say_as_host, nanny=True, workers=[last])
        client.run_on_scheduler(say_as_scheduler)
        if int(sys.argv[2]):
            client.submit(flood, int(sys.argv[2]), workers=[last], pure=False).result()
        names = {address: info["name"] for address, info in client.scheduler_info(n_workers=-1)["workers"].items()}
        try:
            client.submit(die, workers=[last], pure=False).result()
        except KilledWorker:
            found["died"] = names[last]
        until = time.monotonic() + 30
        while True:
            logs = cluster.get_logs()
            lines = logs.get("Warnings", "").splitlines()
            if sum("last words" in line or "was killed by SIGKILL" in line for line in lines) == 2:
                break
            assert time.monotonic() < until, lines
            time.sleep(0.1)
        found |= {"first": names[first], "keys": sorted(logs), "lines": lines}
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main()
