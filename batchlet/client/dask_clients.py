"""Dask's clients of a cluster, by whatever way they have found it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

__all__ = ["any_disconnected", "any_other", "close", "close_async", "synchronous"]


def _of(address: str) -> list[Any]:
    """Give the clients that are connected to the scheduler at this address."""
    if "distributed" not in sys.modules:
        return []
    from distributed import Client

    from ..dask_backend.compat.dask_internals import living

    return [
        client
        for client in living(Client)
        if client.status == "running" and getattr(client.scheduler, "address", None) == address
    ]


def synchronous(address: str) -> list[Any]:
    """Give those clients of this scheduler whose event loop is in another thread."""
    return [client for client in _of(address) if not client.asynchronous]


def any_disconnected(address: str) -> bool:
    """Whether a client of this scheduler has lost its connection."""
    clients = _of(address)
    if not clients:
        return False
    from ..dask_backend.compat.dask_internals import is_disconnected

    return any(is_disconnected(client) for client in clients)


def any_other(address: str, client: Any) -> bool:
    """Whether this scheduler has a client in this process beside this one."""
    return any(other is not client for other in _of(address))


def close(address: str, timeout: float) -> None:
    """Close the clients of a scheduler, each within so many seconds."""
    for client in synchronous(address):
        with contextlib.suppress(Exception):
            client.close(timeout=timeout)


async def close_async(address: str, timeout: float) -> None:
    """Do as `close`, in an event loop."""
    import asyncio

    for client in _of(address):
        with contextlib.suppress(Exception):
            # A client whose event loop is elsewhere has closed when the call returns, and gives nothing to wait for.
            closing = client.close()
            if closing is not None:
                await asyncio.wait_for(closing, timeout)
