"""Workers of another kind: a server that makes Nannies itself, one for each device, as dask_cuda.CUDAWorker does."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from dask.distributed import Client, Nanny
from distributed.core import Server

from batchlet import BatchletRunner

DEVICES = 2


class Several(Server):
    def __init__(
        self, scheduler, *, name=None, nthreads=1, memory_limit="auto", preload=(), preload_argv=(), **keywords
    ):
        super().__init__({})
        self.nannies = [
            Nanny(
                scheduler,
                name=f"{name}-{device}",
                nthreads=nthreads,
                memory_limit=memory_limit // DEVICES,
                preload=[*preload],
                preload_argv=[*preload_argv, "--of-its-own"],
                # Its own, beside what is passed on to each.
                env={"DEVICE": str(device)},
                config={"of-its-own": device},
                **keywords,
            )
            for device in range(DEVICES)
        ]

    async def start_unsafe(self):
        await asyncio.gather(*self.nannies)
        return self

    async def close(self):
        await asyncio.gather(*(nanny.close() for nanny in self.nannies))


class OneOnly:
    """The least that is needed: it takes a few arguments only, is awaited, and closed."""

    def __init__(self, scheduler, name, nthreads, security, host, protocol, local_directory):
        self._inner = Nanny(
            scheduler, name=name, nthreads=nthreads, security=security, host=host, protocol=protocol,
            local_directory=local_directory,
        )  # fmt: skip

    def __await__(self):
        return self._inner.__await__()

    async def close(self, timeout=2):
        await self._inner.close(timeout=timeout)


def look():
    import dask

    return os.environ.get("DEVICE"), dask.config.get("of-its-own", None), os.environ.get("SLURM_PROCID")


if __name__ == "__main__":
    with BatchletRunner(worker_class=sys.argv[1], **json.loads(sys.argv[2])) as runner, Client(runner) as client:
        count = int(sys.argv[3])
        client.wait_for_workers(count, timeout=30)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        names = {address: str(worker["name"]) for address, worker in workers.items()}
        found = {names[address]: seen for address, seen in client.run(look).items()}
        # One dies, and comes back.
        victim = min(names, key=names.__getitem__)
        assert client.submit(os._exit, 3, workers=[victim], pure=False).exception(timeout=30) is not None
        client.wait_for_workers(count, timeout=30)
        back = {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
        assert back == set(found), back
        sum_ = client.submit(sum, [1, 2, 3]).result(timeout=30)
        print("RESULT " + json.dumps({"found": found, "sum": sum_}))
