"""The porch of a local cluster: where visitors of the same user come in, as they do at the coordinator of a run of ranks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
import threading
import time

from .. import report
from ..control.door import Door
from ..control.handshake import run_loop
from ..control.messages import Hello, SchedulerStarted
from ..control.visitors import VISITOR, Reception
from ..errors import EndError
from ..node import inputs
from ..node.rank import Rank
from ..rendezvous import CoordinatorRecord, FileRendezvous, register
from ..security import Credentials
from ..versions import versions

__all__ = ["Porch"]

# Visitors that may come at one moment.
_CROWD = 16
_SECONDS = 2.0


class Porch:
    """A port for visitors, in a thread of its own, with its record.

    Parameters
    ----------
    rank : Rank
        This process.
    host : str
        Address to listen on.
    secret : str
        The run's.
    credentials : Credentials, optional
        For TLS.
    """

    def __init__(self, rank: Rank, host: str, secret: str, credentials: Credentials | None) -> None:
        self._rank = rank
        self._reception = Reception(versions(), lambda: self._answer)
        self._answer: tuple[str, SchedulerStarted]
        self._loop = asyncio.new_event_loop()
        self._door = Door(host, secret, credentials, _CROWD, self._serve)
        certificate = credentials.certificate if credentials is not None else ""
        info = rank.info
        self._record = CoordinatorRecord(
            info.run_id,
            secrets.token_hex(8),
            info.node,
            host,
            self._door.port,
            secret,
            certificate,
            f"{info.mode} {info.job}".strip(),
            time.time(),
        )
        self._place: FileRendezvous | None = None
        self._thread = threading.Thread(target=run_loop, args=(self._loop,), name="batchlet-porch", daemon=True)

    def open(self, address: str, dashboard: tuple[str, int] | None) -> bool:
        """Let visitors in, and tell them where the scheduler and the dashboard are.

        Returns
        -------
        bool
            Whether that was possible; if not, the user was told why.
        """
        settings = self._rank.settings
        launch = inputs.for_agent({"security": settings.security}, time.monotonic())
        self._answer = inputs.to_text(launch), SchedulerStarted(address, dashboard)
        self._thread.start()
        self._running = asyncio.run_coroutine_threadsafe(self._door.run(), self._loop)
        place = self._rank.notes(self._record)
        try:
            place.publish(self._record)
        except EndError as error:
            report.note(f"nobody can attach to this run: {error}")
            return False
        self._place = place
        if problem := register.enter(self._record, place.file):
            report.note(f"python -m batchlet ps will not find this run, but for {place.directory}: {problem}")
        return True

    def close(self) -> None:
        """Tell the visitors that the run is over, and let nobody in any more; twice does no harm."""
        if self._place is not None:
            register.leave(self._record)
            self._place.withdraw()
            self._place = None
        if not self._thread.is_alive():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_SECONDS)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)

    async def _end(self) -> None:
        self._reception.say_over()
        self._running.cancel()
        await asyncio.sleep(0)
        self._door.close()

    async def _serve(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if hello.role == VISITOR:
            await self._reception.serve(hello, reader, writer)
