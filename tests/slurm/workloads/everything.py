"""A user's script that uses much of what Dask offers, with no `if __name__ == "__main__"` around any of it.

The argument is the name of a worker; the result is one line of JSON.
"""

import json
import multiprocessing
import os
import sys

from dask.distributed import Client, WorkerPlugin, as_completed, get_worker

from batchlet import BatchletRunner

# All ranks and no child process of theirs say this.
sys.stdout.write(f"top {os.environ.get('SLURM_PROCID', 'local')}\n")
sys.stdout.flush()


class Thing:
    def __init__(self, number):
        self.number = number

    def double(self):
        return 2 * self.number


class Counter:
    def __init__(self):
        self.count = 0

    def increment(self):
        self.count += 1
        return self.count


class Plugin(WorkerPlugin):
    def setup(self, worker):
        worker.mark_of_the_plugin = 42


def increment(number):
    return number + 1


def where():
    return get_worker().name


def in_a_pool(method, number):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.map(abs, [number])[0]


with BatchletRunner() as runner, Client(runner) as client:
    # Only the client needs these.
    import dask.array as da
    import dask.dataframe as dd
    import numpy as np
    import pandas as pd

    name = int(sys.argv[1])
    found = {
        "runner": [runner.mode, runner.role, runner.n_workers],
        "workers": sorted(worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()),
        "functions": client.gather(client.map(increment, range(5))),
        "class": client.submit(lambda: Thing(21)).result().double(),
        "method": client.submit(Thing(21).double).result(),
        "as_completed": sorted(future.result() for future in as_completed(client.map(increment, range(5)))),
        "worker by name": client.submit(where, workers=name).result(),
        "pool, fork": client.submit(in_a_pool, "fork", -3, workers=name).result(),
        "pool, spawn": client.submit(in_a_pool, "spawn", -4, workers=name).result(),
    }

    matrix = da.random.default_rng(7).random((2000, 20), chunks=(500, 20))
    singular = da.linalg.svd(matrix)[1].compute()
    found["svd"] = bool(np.allclose(singular, np.linalg.svd(matrix.compute(), compute_uv=False)))

    table = pd.DataFrame({"value": range(1000), "group": np.arange(1000) % 7})
    sums = dd.from_pandas(table, npartitions=4).groupby("group").value.sum().compute()
    found["group-by"] = bool((sums.sort_index() == table.groupby("group").value.sum()).all())

    counter = client.submit(Counter, actor=True).result()
    found["actor"] = [counter.increment().result() for _ in range(3)]
    del counter

    client.register_plugin(Plugin())
    found["plugin"] = client.submit(lambda: get_worker().mark_of_the_plugin, workers=name).result()

    client.restart()
    found["after restart"] = [
        client.submit(increment, 1, workers=name).result(),
        len(client.scheduler_info(n_workers=-1)["workers"]),
    ]
    sys.stdout.write(f"RESULT {json.dumps(found)}\n")
