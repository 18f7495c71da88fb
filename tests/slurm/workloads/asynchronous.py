"""The runner and its client in the user's own event loop."""

import asyncio
import json
import sys

from dask.distributed import Client

from batchlet import BatchletRunner


def increment(number):
    return number + 1


async def main():
    async with (
        BatchletRunner(asynchronous=True) as runner,
        Client(runner, asynchronous=True) as client,
    ):
        numbers = await client.gather(client.map(increment, range(5)))
        found = {"runner": [runner.mode, runner.role, runner.n_workers], "functions": numbers}
        sys.stdout.write(f"RESULT {json.dumps(found)}\n")


asyncio.run(main())
