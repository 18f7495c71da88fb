"""The coordinator on rank 0: knows every rank of the run, says when the cluster is ready, and ends the run for all.

It lives in a thread with an event loop of its own, so that it goes on while the scheduler's loop is busy. What it decides
stands in `batchlet.control.state`; here are its connections and timers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import BatchletError, EndError, terminated
from ..security import Credentials
from ..timeline import mark, marks
from . import events as e
from . import messages as m
from .door import Door
from .events import Rules
from .handshake import is_cut_off, receive, run_loop
from .state import DEADLINE, State
from .visitors import VISITOR, pace
from .wire import encode

__all__ = ["Coordinator", "CoordinatorConfig", "Owner"]

# Seconds for what has been said to be on its way when the connections are closed.
_DRAIN = 1.0
# Seconds between two looks whether the scheduler gives signs of life, at most.
_TICK = 1.0


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    """What a coordinator needs to know before any block begins.

    Parameters
    ----------
    host : str
        Address to listen on; the port is chosen by the system.
    secret : str
        The run's secret.
    credentials : Credentials, optional
        For TLS.
    node : str
        Name of rank 0's node.
    ranks : int
        How many ranks there are.
    versions : mapping of str to str
        Versions of Python and packages on rank 0; all others must have the same.
    stop_timeout, scheduler_timeout : float
        Seconds; see `batchlet.settings.Settings`.
    """

    host: str
    secret: str
    credentials: Credentials | None
    node: str
    ranks: int
    versions: Mapping[str, str]
    stop_timeout: float
    scheduler_timeout: float


class Owner(Protocol):
    """Rank 0, as the coordinator sees it; called in the coordinator's thread."""

    def met(self) -> None:
        """Note that nobody is expected any more; once at most."""

    def begin_block(self, launch: str) -> None:
        """Begin another block: the client has entered one, with these options."""

    def end_block(self) -> None:
        """End the scheduler of this block, and wait for another one."""

    def conclude(self) -> None:
        """Bring the report to its end: nobody but the client is there any more, and it ends as soon as this returns."""

    def stop_serving(self) -> None:
        """End: the run is over and every other rank has left, or had its time to; once at most."""

    def failed(self, error: EndError) -> None:
        """Note the root cause of the run's failure; once at most."""

    def lost(self, text: str) -> None:
        """Tell the user that something was lost and the run goes on."""

    def keep(self, told: Sequence[Sequence[Any]], node: str | None) -> None:
        """Keep something for the report; see `batchlet.control.messages.ForReport`."""

    def logs(self, start: int) -> tuple[Sequence[Sequence[Any]], int, int]:
        """Give what `batchlet.control.messages.KeptLogs` says."""

    def use_of_block(self) -> Mapping[str, Any]:
        """Say what the block did with what it was granted."""

    def end_hard(self) -> None:
        """End this process: the run is over, and it has not ended within `stop_timeout`."""

    def expected_nodes(self) -> Mapping[int, str]:
        """Give the node on which each rank should be, for messages."""


class Coordinator:
    """Where all ranks come together.

    Parameters
    ----------
    config : CoordinatorConfig
        What the run is like.
    owner : Owner
        Is told what becomes of it.

    Attributes
    ----------
    on_stopping, on_gone : callable
        For the scheduler in this process, if it is here; see `batchlet.dask_backend.scheduler.Observer`.
    """

    def __init__(self, config: CoordinatorConfig, owner: Owner) -> None:
        self._config = config
        self._owner = owner
        self.on_gone: Callable[[set[str]], object] = lambda _: None
        self.on_stopping: Callable[[], object] = lambda: None
        self._state = State(config.node, config.ranks, config.versions, config.stop_timeout)
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._numbers = itertools.count(e.OWN + 1)
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=run_loop, args=(self._loop,), name="batchlet-coordinator", daemon=True)

    # Called from other threads

    def listen(self) -> int:
        """Start the coordinator's thread and listen.

        Returns
        -------
        int
            The port.
        """
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def begin(self, rules: Rules, launch: str) -> None:
        """Begin a block."""
        self._happened(e.Began(rules, launch))

    def await_client(self, seconds: float) -> None:
        """Wait for the client, which is to come within so many seconds; the first block is its own affair."""
        self._happened(e.Awaited(seconds))

    def tell(self, facts: Mapping[str, Sequence[Any]]) -> None:
        """Let the ranks know what rank 0 knows about the nodes; they wait for it."""
        self._happened(e.FactsKnown(facts))

    def scheduler_gone(self) -> None:
        """Note that the scheduler's process, where it is not this one, has ended."""
        self._happened(e.SchedulerGone())

    def scheduler_started(self, **start: Any) -> None:
        """Let the ranks know where the scheduler listens."""
        self._happened(e.MessageCame(e.OWN, m.SchedulerStarted(**start)))

    def worker_joined(self, name: object) -> None:
        """Note that the scheduler knows a worker."""
        self._happened(e.MessageCame(e.OWN, m.WorkerJoined(str(name))))

    def beat(self) -> None:
        """Note that the scheduler's event loop runs; called by it, again and again from its start."""
        self._happened(e.MessageCame(e.OWN, m.Beat()))

    def for_report(self, told: Sequence[Sequence[Any]]) -> None:
        """Note what the scheduler tells of its workers, for the report."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._keep, m.ForReport(told), self._config.node)

    def signalled(self, number: int, where: str) -> None:
        """Pass a signal that rank 0 got on to the client."""
        self._happened(e.LocalSignal(number, where))

    def fail(self, error: EndError) -> None:
        """End the run for all ranks."""
        self._happened(e.Fail(error))

    def close(self) -> None:
        """Close all connections and end the thread; does nothing the second time."""
        if self._loop.is_closed():
            return
        # Python 3.10 has a TimeoutError of its own for these.
        with contextlib.suppress(concurrent.futures.TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(self._config.stop_timeout)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(self._config.stop_timeout)

    def _happened(self, event: e.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(self._advance, event)

    # In the coordinator's thread

    async def _listen(self) -> int:
        config = self._config
        self._door = Door(config.host, config.secret, config.credentials, config.ranks, self._serve)
        for work in (self._door.run(), self._tick()):
            task = self._loop.create_task(work)
            self._tasks.add(task)
        return self._door.port

    async def _serve(self, hello: m.Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear what somebody of this run has to say."""
        number = next(self._numbers)
        self._writers[number] = writer
        self._advance(e.PeerEntered(number, hello))
        wait = pace(hello)
        try:
            while (message := await receive(reader)) is not None:
                if hello.role == VISITOR:
                    # Looks on, and has no say.
                    pass
                elif isinstance(message, (m.ForReport, m.Timeline)):
                    self._keep(message, hello.node)
                elif isinstance(message, m.AskLogs):
                    self._send((number,), m.KeptLogs(*self._owner.logs(message.start)))
                self._advance(e.MessageCame(number, message))
                await wait()
        finally:
            del self._writers[number]
            self._advance(e.PeerLeft(number, is_cut_off(reader)))

    async def _tick(self) -> None:
        """Have the time of this process pass: where it stands still, so does the scheduler, and neither is to blame."""
        pause = min(_TICK, self._config.scheduler_timeout / 4)
        while True:
            asked = time.monotonic()
            await asyncio.sleep(pause)
            self._advance(e.TimePassed(min(time.monotonic() - asked, 2 * pause)))

    def _advance(self, event: e.Event) -> None:
        if self._closing:
            return
        try:
            actions = self._state.advance(event)
        except Exception as error:  # noqa: BLE001 - whatever is wrong here, no rank may wait for an answer that never comes
            problem = BatchletError(f"The coordinator, rank 0, failed on {event}: {type(error).__name__}: {error}")
            actions = self._state.advance(e.Fail(problem))
        for action in actions:
            try:
                self._carry_out(action)
            except Exception as error:  # noqa: BLE001 - the actions after this one are for others
                self._loop.call_exception_handler({"message": f"{action} was not carried out", "exception": error})

    def _keep(self, message: m.Message, node: str | None = None) -> None:
        """Have the report know what somebody has told, or is being told."""
        told: Sequence[Sequence[Any]] = ()
        match message:
            case m.ForReport(told):
                pass
            case m.Timeline(who, at):
                told = [("marks", {"who": who, "marks": at})]
            case m.Ready():
                told = [("ready", {}), ("marks", {"who": "rank 0", "marks": marks()})]
            case m.Terminate(number, where):
                told = [("event", {"kind": "signal", "text": str(terminated(number, where))})]
            case m.Forget(workers):
                told = [("lost", {"workers": workers})]
        if told:
            try:
                self._owner.keep(told, node)
            except Exception as error:  # noqa: BLE001 - a report never ends a run
                self._loop.call_exception_handler({"message": f"{told} was not kept", "exception": error})

    def _carry_out(self, action: e.Action) -> None:
        if isinstance(action, (e.Send, e.TellScheduler)):
            self._keep(action.message)
        match action:
            case e.Send(peers, message):
                self._send(peers, message)
            case e.SayOver(peers, who, timeline):
                self._send(peers, m.BlockOver({who: marks(), **timeline}, self._owner.use_of_block()))
            case e.TellScheduler(m.Stopping()):
                self.on_stopping()
            case e.TellScheduler(m.Forget(workers)):
                self.on_gone(set(workers))
            case e.StartTimer(name, seconds, block):
                self._loop.call_later(seconds, self._fire, name, block)
            case e.Mark(event):
                mark(event)
            case e.NoteLoss(text):
                self._owner.lost(text)
            case e.Report(error):
                self._owner.failed(error)
            case e.Met():
                self._owner.met()
            case e.BeginBlock(launch):
                self._owner.begin_block(launch)
            case e.EndBlock():
                self._owner.end_block()
            case e.Conclude():
                self._owner.conclude()
            case e.StopServing():
                self._owner.stop_serving()
            case e.EndHard():
                self._owner.end_hard()

    def _fire(self, name: str, block: int) -> None:
        if name == DEADLINE:
            self._advance(e.DeadlinePassed(self._owner.expected_nodes(), block))
        else:
            self._advance(e.TimerFired(name, block))

    def _send(self, peers: Sequence[int], message: m.Message) -> None:
        line = encode(message)
        for number in peers:
            # It may have gone a moment ago. AttributeError: asyncio's, of a TLS connection that is closed already (seen with
            # Python 3.11).
            with contextlib.suppress(KeyError, RuntimeError, OSError, AttributeError):
                self._writers[number].write(line)

    async def _close(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._door.close()
        await asyncio.gather(*(_finish(writer) for writer in self._writers.values()))


async def _finish(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
        await asyncio.wait_for(writer.drain(), _DRAIN)
    writer.close()
