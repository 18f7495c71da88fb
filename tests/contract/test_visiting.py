"""What `batchlet.dask_backend.compat.visiting` relies on in Dask; see `test_compat`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from distributed import LocalCluster, Security, Worker

from batchlet.dask_backend.compat.visiting import VisitingClient, identity

Run = Callable[[Callable[[Any, Any], Any]], Any]


def test_identity_tells_of_all_workers_what_a_client_is_told_and_makes_no_client(cluster: Run) -> None:
    async def use(scheduler: Any, nanny: Any) -> None:
        async with contextlib.AsyncExitStack() as stack:
            # Of late Dask tells of the first five workers, unless it is asked for all.
            for _ in range(6):
                await stack.enter_async_context(Worker(scheduler.address, nthreads=1, host="127.0.0.1"))
            told = await identity(scheduler.address, Security())
            assert set(scheduler.clients) <= {"fire-and-forget"}
        assert len(told["workers"]) == 7
        known = told["workers"][nanny.worker_address]
        assert {"name", "host", "nthreads", "memory_limit", "status", "metrics"} <= set(known)
        assert {"cpu", "memory", "spilled_bytes", "task_counts", "host_net_io"} <= set(known["metrics"])

    cluster(use)


def test_a_visiting_client_says_when_it_is_closed_in_whatever_way() -> None:
    said: list[int] = []

    def made(address: str, number: int, **keywords: Any) -> VisitingClient:
        return VisitingClient(address, lambda: said.append(number), set_as_default=False, **keywords)

    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", processes=False) as cluster:
        address = cluster.scheduler_address
        made(address, 1).close()
        with made(address, 2):
            pass

        async def asynchronous() -> None:
            async with made(address, 3, asynchronous=True):
                pass
            client = await made(address, 4, asynchronous=True)
            await client.close()

        asyncio.run(asynchronous())
        last = made(address, 5)
    # Its scheduler is gone; whatever becomes of it, to close it says so.
    last.close()
    assert sorted(set(said)) == [1, 2, 3, 4, 5]
