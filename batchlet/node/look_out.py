"""Looking out for the coordinator's record while Dask is being imported."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from ..rendezvous.base import CoordinatorRecord, Rendezvous

__all__ = ["looking_out"]

_PAUSE = 0.05


@contextlib.contextmanager
def looking_out(rendezvous: Rendezvous) -> Any:
    """Look out for the coordinator's record meanwhile; gives a function that ends this and tells what was seen.

    A record that was there and is gone says that the run is over, however long the import takes. There is no thread any more
    when the function has returned, since this process is about to fork.
    """
    found: list[CoordinatorRecord] = []
    over = threading.Event()

    def look() -> None:
        while not found and not over.wait(_PAUSE):
            record = rendezvous.latest()
            if record is not None:
                found.append(record)

    thread = threading.Thread(target=look, name="batchlet-look-out", daemon=True)
    thread.start()

    def end() -> CoordinatorRecord | None:
        over.set()
        thread.join()
        return found[0] if found else None

    try:
        yield end
    finally:
        end()
