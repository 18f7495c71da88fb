"""The client's end of its jobs: where their agents come in, prove that they belong to the cluster, and are told what to do.

It lives in a thread with an event loop of its own, so that agents find their client alive while the scheduler's loop is busy.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..control.door import Door
from ..control.guests import GUEST, GuestBook
from ..control.handshake import receive, run_loop
from ..control.messages import (
    Closed,
    Failed,
    ForReport,
    Hello,
    Message,
    Orders,
    Ping,
    Planned,
    Pong,
    Remaining,
    ReportFailure,
    SchedulerStarted,
    Serving,
    Signalled,
    Stop,
    Told,
    Welcome,
)
from ..control.visitors import VISITOR, Reception
from ..control.wire import encode
from ..errors import VersionMismatchError
from ..security import Credentials
from ..versions import versions

__all__ = ["Came", "Ends", "Event", "Failure", "Guest", "Hub", "News", "Noted", "Serves", "Warned", "Went"]

# Agents that may come at one moment.
_CROWD = 1024
_DRAIN = 1.0


@dataclass(frozen=True)
class Event:
    """Something that has happened to a node of a job."""

    job: str
    node: str


@dataclass(frozen=True)
class Came(Event):
    """Its agent has come."""


@dataclass(frozen=True)
class Serves(Event):
    """Its workers are up."""


@dataclass(frozen=True)
class Ends(Event):
    """The batch system ends it in so many seconds."""

    seconds: int


@dataclass(frozen=True)
class Warned(Event):
    """The batch system is about to end it, by this signal."""

    number: int


@dataclass(frozen=True)
class News(Event):
    """The user is to know this, `once` for all jobs where that is enough."""

    text: str
    once: bool = False


@dataclass(frozen=True)
class Noted(Event):
    """It tells something for the report; see `batchlet.control.messages.ForReport`."""

    told: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Failure(Event):
    """Its agent cannot host workers."""

    text: str


@dataclass(frozen=True)
class Went(Event):
    """Its agent has gone; the number of the node in its job, and whether the agent was told to."""

    number: int
    orderly: bool


@dataclass(frozen=True)
class Guest(Event):
    """A node of another job has joined the cluster, or gone; these workers have gone, and this the user is to know."""

    gone: tuple[str, ...] = ()
    text: str | None = None


class Hub:
    """Where the agents of all jobs come in.

    Parameters
    ----------
    host : str
        Address to listen on.
    secret : str
        The cluster's secret.
    credentials : Credentials, optional
        For TLS.
    orders : callable
        Gives the orders for a node of a job, by the job's name and the number of the node among those that have come; `None`
        where the job is not wanted any more. Called in the hub's thread.
    welcome : callable
        Gives what guests and visitors are to know, options and more as `Welcome` has them, and where the scheduler is. Called
        in the hub's thread.
    on_event : callable
        Gets each `Event`. Called in the hub's thread.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        credentials: Credentials | None,
        orders: Callable[[str, int], str | None],
        welcome: Callable[[], tuple[str, SchedulerStarted]],
        on_event: Callable[[Event], object],
    ) -> None:
        self._place = (host, secret, credentials)
        self._orders = orders
        self._welcome = welcome
        self._reception = Reception(versions(), welcome)
        self._on_event = on_event
        self._versions = versions()
        # By job: the connection to the agent of each of its nodes, by that node's number.
        self._agents: dict[str, dict[int, asyncio.StreamWriter]] = {}
        self._stopped: set[str] = set()
        self._book = GuestBook()
        # Nodes of other jobs; `None` once there are to be no more.
        self._guests: dict[int, asyncio.StreamWriter] | None = {}
        self._guests_gone = asyncio.Event()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=run_loop, args=(self._loop,), name="batchlet-hub", daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def stop(self, job: str, *, for_good: bool = True) -> None:
        """Tell the agents of a job to end, those that are there and, for good, those that come: a job may be requeued."""
        self._later(self._stop, job, for_good)

    def broadcast(self, message: Message) -> None:
        """Tell all agents something."""
        self._later(self._send_all, message)

    def dismiss_guests(self, timeout: float) -> None:
        """Have visitors and nodes of other jobs leave the cluster, and wait for the latter so many seconds."""
        with contextlib.suppress(concurrent.futures.TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._dismiss_guests(), self._loop).result(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Close all connections and end the thread; does nothing the second time."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout)
        self._later(self._loop.stop)
        self._thread.join(timeout)

    # In the hub's thread

    def _later(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    async def _listen(self) -> int:
        host, secret, credentials = self._place
        self._door = Door(host, secret, credentials, _CROWD, self._serve)
        self._tasks.add(self._loop.create_task(self._door.run()))
        return self._door.port

    async def _serve(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear what an agent has to say, for as long as it is there."""
        if hello.role == VISITOR:
            await self._reception.serve(hello, reader, writer)
            return
        job, node = hello.name, hello.node
        problem = self._mismatch(hello)
        if problem is not None:
            self._write(writer, Failed.of(problem))
            if hello.role != GUEST:
                self._on_event(Failure(job, node, str(problem)))
            return
        if hello.role == GUEST:
            await self._serve_guest(job, node, reader, writer)
            return
        agents = self._agents.setdefault(job, {})
        number = next(number for number in range(len(agents) + 1) if number not in agents)
        launch = None if job in self._stopped else self._orders(job, number)
        if launch is None:
            self._write(writer, Stop())
            with contextlib.suppress(OSError):
                await writer.drain()
            return
        agents[number] = writer
        self._on_event(Came(job, node))
        orderly = False
        try:
            self._write(writer, Orders(launch))
            while (message := await receive(reader)) is not None:
                orderly = orderly or isinstance(message, Closed)
                self._hear(job, node, message, writer)
        finally:
            del agents[number]
            self._on_event(Went(job, node, number, orderly))

    async def _serve_guest(
        self, job: str, node: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Hear what a node of another job has to say, for as long as it is there."""
        if self._guests is None:
            self._write(writer, Stop())
            with contextlib.suppress(OSError):
                await writer.drain()
            return
        guests, number, lost = self._guests, next(self._numbers), True
        guests[number] = writer
        launch, started = self._welcome()
        self._write(writer, Welcome({}, launch))
        self._write(writer, started)
        try:
            while (message := await receive(reader)) is not None:
                match message:
                    case Ping():
                        self._write(writer, Pong())
                    case Planned(_, workers):
                        self._on_event(Guest(job, node, text=self._book.came(number, job, workers)))
                    case ForReport(told):
                        self._on_event(Noted(job, node, told))
                    case Closed():
                        lost = False
        finally:
            del guests[number]
            gone, text = self._book.left(number, job, node, lost=lost)
            self._on_event(Guest(job, node, gone, text if self._guests is not None else None))
            if self._guests is None and not guests:
                self._guests_gone.set()

    async def _dismiss_guests(self) -> None:
        self._reception.say_over()
        guests, self._guests = self._guests, None
        for writer in (guests or {}).values():
            self._write(writer, Stop())
        if guests:
            await self._guests_gone.wait()

    def _hear(self, job: str, node: str, message: Message, writer: asyncio.StreamWriter) -> None:
        match message:
            case Ping():
                self._write(writer, Pong())
            case Serving():
                self._on_event(Serves(job, node))
            case Remaining(seconds):
                self._on_event(Ends(job, node, seconds))
            case ForReport(told):
                self._on_event(Noted(job, node, told))
            case Told(text, once):
                self._on_event(News(job, node, text, bool(once)))
            case ReportFailure(_, text):
                self._on_event(Failure(job, node, text))
                self._write(writer, Stop())
            case Signalled(number, _):
                self._on_event(Warned(job, node, number))

    def _mismatch(self, hello: Hello) -> VersionMismatchError | None:
        different = [
            f"{name} {theirs} instead of {self._versions.get(name)}"
            for name, theirs in hello.versions.items()
            if theirs != self._versions.get(name)
        ]
        if not different:
            return None
        return VersionMismatchError(
            f"The jobs have {', '.join(different)}: they need the client's environment. Name its Python with python=, or "
            "activate it with setup_script_commands=."
        )

    def _stop(self, job: str, for_good: bool) -> None:
        if for_good:
            self._stopped.add(job)
        for writer in self._agents.get(job, {}).values():
            self._write(writer, Stop())

    def _send_all(self, message: Message) -> None:
        for agents in self._agents.values():
            for writer in agents.values():
                self._write(writer, message)

    @staticmethod
    def _write(writer: asyncio.StreamWriter, message: Message) -> None:
        with contextlib.suppress(OSError, RuntimeError, AttributeError):
            writer.write(encode(message))

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._door.close()
        for agents in list(self._agents.values()):
            for writer in list(agents.values()):
                with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(writer.drain(), _DRAIN)
                writer.close()
