"""Corners of Dask: what its scheduler and workers know of each other. Seen with distributed 2024.8.0 to 2026.8.0."""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Mapping
from typing import Any

from distributed import rpc

__all__ = ["addresses_of", "are_computing", "is_computing", "let_all_leave", "lose_worker"]

# Seconds for a worker on the same node to take a connection.
_CONNECT = 5.0


def lose_worker(scheduler: Any, address: str, *, expected: bool = False) -> None:
    """Have a scheduler forget a worker whose process is known to be gone; in the scheduler's event loop.

    ``Scheduler.remove_worker`` gives its tasks to others at once. Without it Dask itself finds out, half a minute later.

    Parameters
    ----------
    scheduler : Scheduler
        Which.
    address : str
        The worker's.
    expected : bool
        Whether that is as it should be: it is not held against the tasks then (``expected``), and the worker, which may
        still be there, is not told to close (``close``). Where these are gone, tasks that have moved four times fail.
    """
    remove = getattr(scheduler, "remove_worker", None)
    if callable(remove):
        taken = inspect.signature(remove).parameters
        more = {name: value for name, value in (("expected", True), ("close", False)) if expected and name in taken}
        scheduler.loop.add_callback(remove, address, stimulus_id=f"batchlet-host-lost-{time.time()}", **more)


def let_all_leave(scheduler: Any) -> None:
    """Have a scheduler tell no worker any more that another one has left; for when all leave. In the scheduler's event loop.

    ``Scheduler.worker_send`` sends ``{"op": "remove-worker"}`` to all that are there for each that goes: with 1,000 workers
    half a million messages, of which nothing comes any more. Without it they are sent.

    Parameters
    ----------
    scheduler : Scheduler
        Which.
    """
    send = getattr(scheduler, "worker_send", None)
    if not callable(send):
        return

    def send_the_rest(worker: str, msg: Mapping[str, Any]) -> None:
        if msg.get("op") != "remove-worker":
            send(worker, msg)

    scheduler.worker_send = send_the_rest


def addresses_of(scheduler: Any, names: Collection[str] | None) -> list[str]:
    """Give the addresses of those of these workers that a scheduler knows, or of all.

    ``Scheduler.aliases`` has them by name. Without it all workers are looked through for each job that ends.
    """
    if names is None:
        return list(scheduler.workers)
    aliases = getattr(scheduler, "aliases", None)
    if isinstance(aliases, dict):
        return [aliases[name] for name in names if name in aliases]
    wanted = set(names)
    return [address for address, state in scheduler.workers.items() if state.name in wanted]


def are_computing(scheduler: Any, addresses: Collection[str], since: float = 0.0) -> int:
    """Count the tasks that these workers are computing; a worker that has not said what since a moment counts as one.

    They say so with each heartbeat: ``WorkerState.executing``, ``processing`` and ``last_seen``. Without these it is not known,
    and taken for no: what a worker is computing when its job retires, is then computed anew.
    """
    found = 0
    for address in addresses:
        state = scheduler.workers.get(address)
        executing, seen = getattr(state, "executing", None), getattr(state, "last_seen", None)
        if not isinstance(executing, dict) or seen is None:
            continue
        found += 1 if seen < since else sum(task in state.processing for task in executing)
    return found


async def is_computing(address: str, connection_args: Mapping[str, Any]) -> bool:
    """Whether a worker is computing anything; tasks that wait there do not count.

    Asks it, as ``Client.call_stack`` does through the scheduler. One that does not answer computes nothing.
    """
    try:
        async with rpc(address, connection_args=connection_args, timeout=_CONNECT) as remote:
            return bool(await remote.call_stack())
    except OSError:
        return False
    except Exception:  # noqa: BLE001 - a task that ends at that moment
        return True
