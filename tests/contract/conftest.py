"""What the contract tests share: a worker that really runs."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Nanny, Scheduler

Use = Callable[[Any, Any], Awaitable[Any]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[Use], Any]]:
    """Run a coroutine with a scheduler and a Nanny."""

    async def run(use: Use) -> Any:
        async with Scheduler(port=0, dashboard=False, dashboard_address="127.0.0.1:0", host="127.0.0.1") as scheduler:
            nanny = Nanny(scheduler.address, nthreads=1, local_directory=str(tmp_path), host="127.0.0.1")
            try:
                await nanny
                return await asyncio.wait_for(use(scheduler, nanny), 30)
            finally:
                await nanny.close()

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield lambda use: asyncio.run(run(use))


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """A Nanny writes into the environment of its own process what its worker shall have; other tests run here too."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="session")
def _no_helpers_left() -> Iterator[None]:
    yield
    for child in multiprocessing.active_children():
        with contextlib.suppress(Exception):
            child.kill()
