"""What the client of every measured run does: see all workers, work, and leave a file with its figures.

What to do comes as variables (`BENCHMARK_...`), which _run.py sets. Light to import: the scheduler imports it too.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_work

Figures = dict[str, float]

#: Small tasks; transfers and their size in MB; rows of each of 16 parts of the frame; size of an array in MB; seconds that a
#: thread is held and that the processes get to settle before their memory is read.
FULL = {"tasks": 5000, "transfers": 5, "megabytes": 64, "rows": 200_000, "array": 300, "hold": 0.2, "settle": 1.0}
QUICK = {"tasks": 100, "transfers": 1, "megabytes": 4, "rows": 1_000, "array": 30, "hold": 0.05, "settle": 0.1}
PARTS = 16


def work(client: Any) -> None:
    """Take all the figures that are asked for."""
    client.run_on_scheduler(all_here, int(os.environ["BENCHMARK_WORKERS"]))
    ready = time.monotonic()
    figures: Figures = {"ready": ready, "tls": client.scheduler.address.startswith("tls://")}
    sizes = QUICK if os.environ["BENCHMARK_SCOPE"] == "quick" else FULL
    for name in os.environ["BENCHMARK_WORKS"].split():
        figures |= WORKS[name](client, sizes)
    # Half a file is never seen, and nothing but its writing lies between the end of the work and this moment.
    path = folder() / "figures.json"
    path.with_suffix(".part").write_text(json.dumps({**figures, "finished": time.monotonic()}))
    path.with_suffix(".part").rename(path)


def of_jobs() -> dict[str, Any]:
    """Give what the clusters of submitted jobs are asked for, all of them in the same words."""
    return {
        "cores": int(os.environ["BENCHMARK_CORES"]),
        "memory": os.environ["BENCHMARK_MEMORY"],
        "walltime": "00:20:00",
        # By this what is left of a run that hangs is found.
        "job_name": os.environ["BENCHMARK_MARK"],
        # The login node of the test Slurm has its own name for the network that all nodes share.
        "scheduler_options": {"interface": os.environ["BENCHMARK_INTERFACE"]},
    }


def submitted(cluster: Any, client: Any) -> None:
    """Have all jobs submitted, take the figures, and close the cluster."""
    began = time.monotonic()
    cluster.scale(jobs=int(os.environ["BENCHMARK_JOBS"]))
    work(client)
    client.close()
    cluster.close()
    (folder() / "times.json").write_text(json.dumps({"began": began, "ended": time.monotonic()}))


def folder() -> Path:
    return Path(os.environ["BENCHMARK_FOLDER"])


async def all_here(number: int, dask_scheduler: Any = None) -> None:
    """Return when that many workers can run tasks. On the scheduler, as `Client.wait_for_workers` looks every 0.1 s only."""
    import asyncio

    while sum(worker.status.name == "running" for worker in dask_scheduler.workers.values()) < number:
        await asyncio.sleep(0.005)


# Memory -----------------------------------------------------------------------------------------------------------


def memory(client: Any, sizes: dict[str, Any]) -> Figures:
    """Have the memory read from outside, twice: before any task, and when each worker has had some."""
    for name in ("idle", "used"):
        if name == "used":
            client.gather(client.map(inc, range(20 * int(os.environ["BENCHMARK_WORKERS"])), pure=False))
        time.sleep(sizes["settle"])
        (folder() / f"read-{name}").touch()
        deadline = time.monotonic() + 30
        while not (folder() / f"was-read-{name}").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nobody has read the memory")
            time.sleep(0.02)
    return {}


def resident(client: Any, sizes: dict[str, Any]) -> Figures:
    """Resident memory of all workers, in bytes: what is left of what was done before."""
    import psutil

    time.sleep(sizes["settle"])
    return {"resident": sum(client.run(lambda: psutil.Process().memory_info().rss).values())}


# Throughput -------------------------------------------------------------------------------------------------------


def inc(number: int) -> int:
    return number + 1


def tasks(client: Any, sizes: dict[str, Any]) -> Figures:
    """Small tasks a second: submitted one by one, gathered together."""
    client.gather(client.map(inc, range(sizes["tasks"] // 10), pure=False))
    began = time.perf_counter()
    client.gather(client.map(inc, range(sizes["tasks"]), pure=False))
    return {"tasks": sizes["tasks"] / (time.perf_counter() - began)}


def make(size: int, salt: int) -> Any:
    import numpy as np

    # Its pages exist before it travels.
    return np.full(size, salt % 251, dtype=np.uint8)


def transfer(client: Any, sizes: dict[str, Any]) -> Figures:
    """MB/s from one worker to another, on another node where there is one; the median of several arrays."""
    from distributed import wait

    size = sizes["megabytes"] * 1_000_000
    hosts = {address: known["host"] for address, known in client.scheduler_info(n_workers=-1)["workers"].items()}
    source = min(hosts)
    target = min(
        (address for address in hosts if address != source), key=lambda one: (hosts[one] == hosts[source], one)
    )
    speeds = []
    # The first one connects the two.
    for turn in range(sizes["transfers"] + 1):
        data = client.submit(make, size, turn, workers=[source], pure=False)
        wait(data)
        began = time.perf_counter()
        if client.submit(len, data, workers=[target], pure=False).result() != size:
            raise AssertionError("something else has arrived")
        speeds.append(sizes["megabytes"] / (time.perf_counter() - began))
        del data
    return {"transfer": statistics.median(speeds[1:])}


def frame(part: int, rows: int) -> Any:
    import numpy as np
    import pandas as pd

    numbers = np.random.default_rng(part)
    return pd.DataFrame(
        {"key": numbers.integers(0, 10_000, rows), "a": numbers.random(rows), "b": numbers.random(rows)}
    )


def shuffle(client: Any, sizes: dict[str, Any]) -> Figures:
    """Seconds for the shuffle of a frame by a column, in Dask's own way (P2P), partition to partition."""
    import dask.dataframe as dd

    def run(rows: int) -> float:
        began = time.perf_counter()
        parts = dd.from_map(frame, range(PARTS), rows=rows)
        if int(parts.shuffle("key", shuffle_method="p2p").map_partitions(len).sum().compute()) != PARTS * rows:
            raise AssertionError("rows were lost")
        return time.perf_counter() - began

    # Python 3.10 fails when several threads begin to import pandas at one moment.
    client.run(importlib.import_module, "pandas")
    run(100)
    return {"shuffle": run(sizes["rows"])}


def arrays(client: Any, sizes: dict[str, Any]) -> Figures:
    """Seconds for sums and means over square arrays of random numbers, in blocks of 3 MB and of 8 MB."""
    import dask.array as da

    def run(megabytes: int, size: int) -> float:
        side, parts = int((megabytes * 1e6 / 8) ** 0.5), max(1, round((size / megabytes) ** 0.5))
        began = time.perf_counter()
        numbers = da.random.default_rng(1).random((side * parts, side * parts), chunks=(side, side))
        client.compute(((numbers + numbers.T).mean(0) * 2 + numbers.std(0)).sum()).result()
        return time.perf_counter() - began

    run(1, 4)
    return {f"arrays-{megabytes}": run(megabytes, sizes["array"]) for megabytes in (3, 8)}


# CPUs -------------------------------------------------------------------------------------------------------------


def hold(_: int, seconds: float) -> tuple[str, int, int]:
    time.sleep(seconds)
    return socket.gethostname(), os.getpid(), threading.get_ident()


def threads(client: Any, sizes: dict[str, Any]) -> Figures:
    """Different threads that have run a task, when there were tasks for many more."""
    number = 4 * int(os.environ["BENCHMARK_CPUS"])
    return {"threads": len(set(client.gather(client.map(hold, range(number), seconds=sizes["hold"], pure=False))))}


WORKS: dict[str, Callable[[Any, dict[str, Any]], Figures]] = {
    "memory": memory,
    "resident": resident,
    "tasks": tasks,
    "transfer": transfer,
    "shuffle": shuffle,
    "arrays": arrays,
    "threads": threads,
    **gpu_work.WORKS,
}
