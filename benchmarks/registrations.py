"""Whether the scheduler takes thousands of workers at once. Run under a launcher, on one node::

    srun -n 3 python benchmarks/registrations.py [--workers 2000] [--processes 4] [--seconds 30]

The workers are real ones as far as the scheduler sees (a connection with TLS each, heartbeats, tasks), but share a few
processes. All register at the same moment. The exit code is 0 if all have come, each has done a task, and none was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import sys
import tempfile
import time
from typing import Any

from batchlet import BatchletRunner


def host(address: str, security: Any, names: range, gate: Any, over: Any) -> None:
    """Run many workers in one process, until told to stop."""
    asyncio.run(_host(address, security, names, gate, over))


async def _host(address: str, security: Any, names: range, gate: Any, over: Any) -> None:
    import dask.config
    from distributed import Worker

    from batchlet.dask_backend.tuning import intervals

    logging.getLogger("distributed").setLevel(logging.ERROR)
    dask.config.set(intervals(workers=10_000, total=10_000))
    dask.config.set({"distributed.worker.http.routes": [], "distributed.admin.tick.limit": "1h"})
    with tempfile.TemporaryDirectory() as directory:
        workers = [
            Worker(
                address,
                name=f"simulated-{name}",
                nthreads=1,
                memory_limit=0,
                security=security,
                local_directory=directory,
                dashboard=False,
            )
            for name in names
        ]
        await asyncio.to_thread(gate.wait)
        await asyncio.gather(*workers)
        await asyncio.to_thread(over.wait)
        await asyncio.gather(*(worker.close(timeout=30, nanny=False) for worker in workers))


def say(text: str) -> None:
    """Print now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they stay")
    given = parser.parse_args()
    with BatchletRunner(workers_per_node=1) as runner:
        from distributed import Client

        context = multiprocessing.get_context("spawn")
        gate, over = context.Barrier(given.processes + 1), context.Event()
        size = -(-given.workers // given.processes)
        parts = [range(first, min(first + size, given.workers)) for first in range(0, given.workers, size)]
        processes = [
            context.Process(target=host, args=(runner.scheduler_address, runner.security, part, gate, over))
            for part in parts
        ]
        for process in processes:
            process.start()
        with Client(runner) as client:
            gate.wait()
            began = time.monotonic()
            total = given.workers + runner.n_workers
            client.wait_for_workers(total, timeout=600)
            say(f"{given.workers} workers registered in {time.monotonic() - began:.1f} s")
            time.sleep(given.seconds)
            there = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers))
            say(f"after {given.seconds:g} s: {total - there} lost")
            addresses = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.workers))
            began = time.monotonic()
            futures = [client.submit(abs, -n, workers=[address], pure=False) for n, address in enumerate(addresses)]
            right = client.gather(futures) == list(range(len(addresses)))
            say(f"a task on each of them: {time.monotonic() - began:.1f} s, {'right' if right else 'WRONG'}")
            del futures
            # What goes away with a result still on it, the scheduler tells of.
            client.run_on_scheduler(lambda: None)
            over.set()
            for process in processes:
                process.join(120)
    return 0 if right and there == total else 1


if __name__ == "__main__":
    sys.exit(main())
