"""Visitors: processes of the run's owner that look at it, or use its cluster, from outside (``python -m batchlet attach``).

A visitor hears where the scheduler is and when that changes. Nothing that it says or does has any effect on the run, nobody
waits for it, and it is paced: one that floods the coordinator slows itself alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from ..errors import VersionMismatchError
from .handshake import receive
from .messages import Closed, Failed, Hello, Message, Pause, Ping, Pong, SchedulerStarted, Stop, Welcome
from .outbox import Outbox
from .roster import Peer, Roster
from .wire import encode

__all__ = ["VISITOR", "Reception", "Visitors", "as_visitor", "pace"]

#: Role of a visitor, in its hello.
VISITOR = "visitor"
# Visitors at one moment; each costs the coordinator's process an open file.
_MOST = 64
# Seconds between two messages of a visitor that are read; it asks every three seconds whether the run is alive.
_PACE = 0.05


def as_visitor(hello: Hello) -> Hello:
    """Leave of what a visitor says of itself nothing by which it could be taken for somebody of the run."""
    return Hello(VISITOR, VISITOR, hello.node, versions=hello.versions) if hello.role == VISITOR else hello


def pace(hello: Hello) -> Callable[[], Awaitable[None]]:
    """Give what to wait for between two messages of somebody."""
    seconds = _PACE if hello.role == VISITOR else None

    async def wait() -> None:
        if seconds is not None:
            await asyncio.sleep(seconds)

    return wait


def _refusal(theirs: Mapping[str, str], ours: Mapping[str, str], others: int) -> Failed | None:
    """Say why a visitor is not let in. One that tells no versions only looks, for which they do not matter."""
    different = [name for name in ours if theirs and theirs.get(name) != ours[name]]
    if different:
        found = ", ".join(f"{name} {theirs.get(name)}" for name in different)
        needed = ", ".join(f"{name} {ours[name]}" for name in different)
        return Failed.of(
            VersionMismatchError(f"This process has {found}, the run has {needed}: attach with the Python of the run.")
        )
    if others >= _MOST:
        return Failed("UsageError", f"The run has {others} visitors already, and takes no more.")
    return None


class Visitors:
    """The visitors of a run.

    Parameters
    ----------
    roster : Roster
        Who is there.
    out : Outbox
        Gets the actions.
    versions : mapping of str to str
        Of the run.
    """

    def __init__(self, roster: Roster, out: Outbox, versions: Mapping[str, str]) -> None:
        self._roster = roster
        self._out = out
        self._versions = versions

    def enter(self, peer: Peer, versions: Mapping[str, str], launch: str, started: SchedulerStarted | None) -> None:
        """Tell a visitor what there is.

        Parameters
        ----------
        peer : Peer
            Who.
        versions : mapping of str to str
            The visitor's.
        launch : str
            Options and more, as `Welcome` has them.
        started : SchedulerStarted, optional
            Where the scheduler is, if there is one at this moment.
        """
        refusal = _refusal(versions, self._versions, len(self._roster.connected(VISITOR)) - 1)
        if refusal is not None:
            self._out.send([peer], refusal)
        elif started is None:
            self._out.send([peer], Pause())
        else:
            self._out.send([peer], Welcome({}, launch))
            self._out.send([peer], started)

    def hear(self, peer: Peer, message: Message) -> bool:
        """Take in what a visitor says; whether it was one, and nothing else follows from its words."""
        return peer.role == VISITOR and not isinstance(message, (Ping, Closed))

    def say_paused(self) -> None:
        """Tell all that there is no cluster for the moment."""
        self._out.send(self._roster.connected(VISITOR), Pause())


class Reception:
    """Where visitors come in whose cluster is in this very process, with no coordinator; in an event loop.

    Parameters
    ----------
    versions : mapping of str to str
        Of this process.
    welcome : callable
        Gives the options and more as `Welcome` has them, and where the scheduler is. Called in the event loop.
    """

    def __init__(self, versions: Mapping[str, str], welcome: Callable[[], tuple[str, SchedulerStarted]]) -> None:
        self._versions = versions
        self._welcome = welcome
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell a visitor what there is, and stay with it until it leaves."""
        refusal = _refusal(hello.versions, self._versions, len(self._writers))
        if refusal is not None:
            _write(writer, refusal)
            return
        launch, started = self._welcome()
        self._writers.add(writer)
        wait = pace(replace(hello, role=VISITOR))
        try:
            _write(writer, Welcome({}, launch))
            _write(writer, started)
            while (message := await receive(reader)) is not None:
                if isinstance(message, Ping):
                    _write(writer, Pong())
                await wait()
        finally:
            self._writers.discard(writer)

    def say_over(self) -> None:
        """Tell all visitors that this is the end."""
        for writer in self._writers:
            _write(writer, Stop())


def _write(writer: asyncio.StreamWriter, message: Message) -> None:
    # AttributeError: asyncio's, of a TLS connection that is closed already.
    with contextlib.suppress(OSError, RuntimeError, AttributeError):
        writer.write(encode(message))
