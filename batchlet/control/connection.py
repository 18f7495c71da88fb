"""A rank's connection to the coordinator on rank 0, in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ..errors import ClusterLostError, EndError, StartTimeoutError, error_named
from ..network import in_url
from ..rendezvous.base import CoordinatorRecord
from ..security import Credentials, pinned
from .greeting import ProtocolError
from .handshake import connect, receive, run_loop
from .messages import Closed, Failed, Hello, Message, Ping, Pong
from .wire import encode, name_of

__all__ = ["Connection", "error_of"]

M = TypeVar("M", bound=Message)

_RETRY = 0.2
# Seconds between two questions whether rank 0 is alive.
_PING = 3.0


class Connection:
    """The connection of one rank.

    Parameters
    ----------
    record : CoordinatorRecord
        Where rank 0 is.
    hello : Hello
        Who this process is.
    deadline : float
        Until when connecting may take, in seconds of `time.monotonic`.
    latest : callable, optional
        Looks for a newer record when nobody listens where this one says; may raise `EndError` to give up.
    patience : float
        Seconds without a word from rank 0 after which it counts as lost.

    Attributes
    ----------
    credentials : Credentials or None
        The run's, as rank 0 has told; `None` where the user has turned security off.

    Raises
    ------
    StartTimeoutError
        If rank 0 could not be reached by the deadline.
    """

    def __init__(
        self,
        record: CoordinatorRecord,
        hello: Hello,
        deadline: float,
        patience: float,
        latest: Callable[[], CoordinatorRecord | None] | None = None,
    ) -> None:
        self.credentials: Credentials | None = None
        self._record = record
        self._latest = latest
        self._hello = hello
        self._seen: dict[type[Message], Message] = {}
        self._alive = True
        self._changed = threading.Condition()
        self._listeners: list[Callable[[Message], None]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._closing = False
        self._patience = patience
        self._heard = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=run_loop, args=(self._loop,), name="batchlet-connection", daemon=True)
        self._thread.start()
        try:
            problem = asyncio.run_coroutine_threadsafe(self._connect(deadline), self._loop).result()
            if problem is not None:
                raise problem
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            raise

    def send(self, message: Message) -> None:
        """Send a message; does nothing if the connection has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._write, message)

    def listen(self, listener: Callable[[Message], None]) -> None:
        """Call `listener` with every message: at once with those that have come before, then in the connection's thread.

        When the connection ends although nobody said so, the last message is a `Failed` made here.
        """
        with self._changed:
            past = list(self._seen.values())
            self._listeners.append(listener)
        for message in past:
            listener(message)

    def wait(self, kind: type[M], deadline: float | None = None) -> M:
        """Wait for a message.

        Raises
        ------
        EndError
            The root cause, if the run ends instead.
        StartTimeoutError
            If the deadline (in seconds of `time.monotonic`) passes first.
        """
        with self._changed:
            while (found := self._seen.get(kind)) is None:
                if (failure := self.failure) is not None:
                    raise failure
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise StartTimeoutError(
                        f"Rank 0 on node {self._record.node} said nothing in time (waiting for {name_of(kind)!r})."
                    )
                self._changed.wait(left)
            assert isinstance(found, kind)
            return found

    @property
    def record(self) -> CoordinatorRecord:
        """The record that led here."""
        return self._record

    def has(self, kind: type[Message]) -> bool:
        """Whether a message of this kind has come."""
        return kind in self._seen

    def heard(self) -> list[Message]:
        """Give the messages that have come, the latest of each kind."""
        with self._changed:
            return list(self._seen.values())

    def forget(self, *kinds: type[Message]) -> None:
        """Forget messages of these kinds, so that `wait` waits for those that come from now on."""
        with self._changed:
            for kind in kinds:
                self._seen.pop(kind, None)

    @property
    def failure(self) -> EndError | None:
        """The root cause, if the run has failed."""
        failed = self._seen.get(Failed)
        return error_of(failed) if isinstance(failed, Failed) else None

    def wait_failure(self, seconds: float) -> None:
        """Wait a moment for the news that the run has failed."""
        with self._changed:
            self._changed.wait_for(lambda: Failed in self._seen, seconds)

    @property
    def exit_code(self) -> int:
        """What a rank other than the client ends with: 0, or the code of the run's failure."""
        failure = self.failure
        return failure.exit_code if failure is not None else 0

    @property
    def coordinator_is_alive(self) -> bool:
        """Whether rank 0 is there (and says to the user what there is to say)."""
        return self._alive

    def close(self, timeout: float = 2.0) -> None:
        """Say good-bye and end the thread; does nothing the second time."""
        if self._closing:
            return
        self._closing = True
        # Python 3.10 has a TimeoutError of its own for these.
        with contextlib.suppress(RuntimeError, concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(timeout)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)

    async def _connect(self, deadline: float) -> EndError | None:
        """Connect, or give the reason why not: a `SystemExit`, which our errors are, must not be raised in a task."""
        while True:
            try:
                certificate = self._record.certificate
                context = pinned(certificate) if certificate else None
                attempt = connect(self._record.host, self._record.port, self._record.secret, self._hello, context)
                left = max(_RETRY, deadline - time.monotonic())
                reader, self._writer, key = await asyncio.wait_for(attempt, left)
                self.credentials = Credentials(certificate, key) if certificate else None
                break
            except (OSError, ProtocolError, asyncio.TimeoutError) as error:
                if time.monotonic() > deadline:
                    return StartTimeoutError(
                        f"Node {self._hello.node} cannot reach rank 0 on node {self._record.node} at "
                        f"{in_url(self._record.host)}:{self._record.port} ({str(error) or type(error).__name__}). "
                        "If the nodes have several networks, name the right one with "
                        "interface= (BATCHLET_DASK_CLUSTER__INTERFACE)."
                    )
                await asyncio.sleep(_RETRY)
                try:
                    self._record = (self._latest and self._latest()) or self._record
                except EndError as error:
                    return error
        self._heard = time.monotonic()
        self._tasks += [self._loop.create_task(self._read(reader)), self._loop.create_task(self._ping())]
        return None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (message := await receive(reader)) is not None:
            self._heard = time.monotonic()
            if not isinstance(message, Pong):
                self._note(message)
        self._lost("its connection ended without a word")

    async def _ping(self) -> None:
        """Ask rank 0 now and then whether it is alive: its process may be there and yet stand still."""
        # Often, so that a connection that is cut has something to send, which TCP then gives up.
        pause = min(_PING, self._patience / 4)
        while True:
            asked = time.monotonic()
            await asyncio.sleep(pause)
            late = time.monotonic() - asked - pause
            # If this very process stood still, it cannot tell how long the other side was silent.
            if late > pause:
                self._heard += late
            if time.monotonic() - self._heard > self._patience:
                self._lost(f"it has not responded for {self._patience:g} s (scheduler_timeout)")
                return
            self._write(Ping())

    def _lost(self, why: str) -> None:
        if self._closing or Failed in self._seen or Closed in self._seen:
            return
        self._alive = False
        message = f"Rank 0 on node {self._record.node}, the scheduler, is lost: {why}."
        self._note(Failed.of(ClusterLostError(message)))

    def _note(self, message: Message) -> None:
        with self._changed:
            # In the order in which they came: who listens later must not hear of the pause after the block that followed it.
            self._seen.pop(type(message), None)
            self._seen[type(message)] = message
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener(message)

    def _write(self, message: Message) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.write(encode(message))

    async def _leave(self) -> None:
        self._write(Closed())
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()


def error_of(failed: Failed) -> EndError:
    """Make the error that a run has failed with."""
    return error_named(failed.kind, failed.message)
