"""Looking at a cluster, and changing it: reports, samplers, progress; retire_workers and restart."""

import os
import tempfile
import time
from pathlib import Path

import dask.array as da
from dask.distributed import Client, get_task_stream, performance_report, progress, wait
from distributed.diagnostics import MemorySampler


def main(client):
    x = da.random.default_rng(0).random((400, 400), chunks=(100, 100))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.html")
        with performance_report(filename=report):
            x.sum().compute()
        print("performance_report", "<html" in report.read_text(encoding="utf-8").lower())

    sampler = MemorySampler()
    with sampler.sample("work", interval=0.05):
        wait(x.persist())
        time.sleep(0.3)
    print("MemorySampler", list(sampler.to_pandas().columns))

    with get_task_stream() as stream:
        client.gather(client.map(abs, range(-10, 0), key="streamed"))
    print("get_task_stream", len([task for task in stream.data if str(task["key"]).startswith("streamed")]))

    futures = client.map(lambda number: number + 1, range(10))
    progress(futures, notebook=False)
    print()
    print("progress", sum(client.gather(futures)))

    before = len(client.scheduler_info(n_workers=-1)["workers"])
    kept = client.map(lambda number: number * 2, range(20))
    wait(kept)
    gone = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    client.retire_workers([gone])
    print("retired", before > 1, sum(client.gather(kept)))

    pids = client.run(os.getpid)
    client.restart(wait_for_workers=False)
    client.wait_for_workers(1, timeout=30)
    print("restarted", client.submit(os.getpid).result() not in pids.values())


if __name__ == "__main__":
    client = Client()
    main(client)
