"""Corners of Dask for those who look at a scheduler from outside. Seen with distributed 2024.8.0 to 2026.8.0."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from distributed import Client, Scheduler
from distributed.core import rpc

__all__ = ["VisitingClient", "identity"]


async def identity(address: str, security: Any) -> dict[str, Any]:
    """Ask a scheduler what `Client.scheduler_info` has, of all workers, without being a client of it.

    That is the scheduler's operation ``identity``, which of late tells of a few workers only unless it is asked for all.
    Without it nothing can be told of the workers.
    """
    words = {"n_workers": -1} if "n_workers" in inspect.signature(Scheduler.identity).parameters else {}
    async with rpc(address, connection_args=security.get_connection_args("client")) as scheduler:
        return dict(await scheduler.identity(**words))


class VisitingClient(Client):  # type: ignore[misc]
    """A client that says when it is closed, in whatever way that is done: all of them come to ``Client._close``.

    Without that its visit to the run goes on until the process ends, and nothing else is lost.

    Parameters
    ----------
    cluster : object
        As `Client` takes it.
    on_close : callable
        Called once it is closed, in its event loop.
    keywords
        Of Client.
    """

    def __init__(self, cluster: object, on_close: Callable[[], object], **keywords: Any) -> None:
        self._on_close = on_close
        super().__init__(cluster, **keywords)

    async def _close(self, *args: Any, **keywords: Any) -> None:
        try:
            await super()._close(*args, **keywords)
        finally:
            self._on_close()
