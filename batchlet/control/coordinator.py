"""The coordinator on rank 0: knows every rank of the run, says when the cluster is ready, and ends the run for all.

It lives in a thread with an event loop of its own, so that it goes on while the scheduler's loop is busy.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import (
    ClusterLostError,
    EndError,
    StartTimeoutError,
    VersionMismatchError,
    error_named,
    terminated,
)
from ..plan import CLIENT, SCHEDULER, WORKER
from ..security import Credentials
from ..timeline import Marks, mark, marks
from .handshake import LIMIT, Message, ProtocolError, accept, encode, receive, run_loop

__all__ = ["Coordinator"]

_LINGER = 3.0
# Seconds within which a host says how the scheduler's process has ended.
_OBITUARY = 1.0
# Connections that may wait to be accepted: all ranks come at the same moment.
_BACKLOG = 4096


@dataclass(eq=False)
class _Peer:
    name: str
    role: str
    node: str
    writer: asyncio.StreamWriter
    plan: dict[str, dict[str, tuple[int, int]]] = field(
        default_factory=dict
    )  # participant -> worker -> (threads, memory)
    left: bool = False
    brings: list[str] = field(default_factory=list)

    def send(self, message: Message) -> None:
        # AttributeError: asyncio's, of a TLS connection that is closed already (seen with Python 3.11).
        with contextlib.suppress(RuntimeError, OSError, AttributeError):
            if not self.left:
                self.writer.write(encode(message))


class Coordinator:
    """The record point of all ranks.

    Parameters
    ----------
    host : str
        Address to listen on; the port is chosen by the system.
    secret : str
        The run's secret.
    credentials : Credentials, optional
        For TLS.
    node : str
        Name of this node.
    participants : iterable of str
        Who must come: the ranks, "0w" for the workers of head rank 0, "client" for a client that is not one of the ranks.
    start_timeout, stop_timeout, grace, scheduler_timeout : float
        Seconds; see `batchlet.settings.Settings`.
    versions : mapping of str to str
        Versions of Python and the packages on rank 0; all others must have the same.
    quorum : callable
        From the number of planned workers to the number that is enough at the deadline; `None` where all are needed.
    on_met : callable
        Called in the coordinator's thread when nobody is expected any more.
    on_stop : callable
        Called in the coordinator's thread when the run is over and every other rank has left, or at once if it has failed.
    on_failure : callable
        Called in the coordinator's thread with the root cause, once.
    patience : float
        Seconds that are left of `start_timeout`.
    on_stuck : callable
        Called in the coordinator's thread when the run is over but this process has not ended within `stop_timeout`.
    expected_nodes : callable
        Gives the node on which each rank should be, for messages.
    on_loss : callable
        Called in the coordinator's thread with a line for the user when workers were lost and the run goes on.
    """

    def __init__(
        self,
        *,
        host: str,
        secret: str,
        credentials: Credentials | None,
        node: str,
        participants: Iterable[str],
        start_timeout: float,
        patience: float,
        stop_timeout: float,
        grace: float,
        scheduler_timeout: float,
        versions: Mapping[str, str],
        quorum: Callable[[int], int | None],
        on_met: Callable[[], None],
        on_stop: Callable[[], None],
        on_failure: Callable[[EndError], None],
        on_loss: Callable[[str], None],
        on_stuck: Callable[[], None],
        expected_nodes: Callable[[], Mapping[int, str]],
    ) -> None:
        self._host = host
        self._secret = secret
        self._credentials = credentials
        self._expected = set(participants)
        self._start_timeout = start_timeout
        self._patience = patience
        self._stop_timeout = stop_timeout
        self._grace = grace
        self._scheduler_timeout = scheduler_timeout
        self._versions = versions
        self._quorum = quorum
        self._on_met = on_met
        self._on_stop = on_stop
        self._on_failure = on_failure
        self._on_loss = on_loss
        self._on_stuck = on_stuck
        self._expected_nodes = expected_nodes
        self.on_gone: Callable[[set[str]], object] = lambda _: None
        self.on_stopping: Callable[[], object] = lambda: None
        self._began = time.monotonic()
        self._peers: dict[str, _Peer] = {}
        self._nodes: dict[int, str] = {0: node}
        self._absent: set[str] = set()
        self._joined: set[str] = set()
        self._timeline: dict[str, Marks] = {}
        self._facts: Mapping[str, Any] | None = None
        self._start: Message | None = None
        self._failure: EndError | None = None
        self._signal: Message | None = None
        self._beat = 0.0
        self._phase = "starting"
        self._ending = False
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

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Let the ranks know what rank 0 knows about the nodes; they wait for it."""
        self._call(self._welcome_all, facts)

    def scheduler_gone(self) -> None:
        """Note that the scheduler's process, where it is not this one, has ended."""
        self._call(self._scheduler_lost, None)

    def scheduler_started(self, **start: Any) -> None:
        """Let the ranks know where the scheduler listens."""
        self._call(self._started, {"op": "start", **start})

    def expect(self, participant: str) -> None:
        """Add a process that must come."""
        self._call(self._expected.add, participant)

    def worker_joined(self, name: object) -> None:
        """Note that the scheduler knows a worker."""
        self._call(self._join, str(name))

    def beat(self) -> None:
        """Note that the scheduler's event loop runs; called by it, again and again from its start."""
        self._beat = time.monotonic()

    def signalled(self, number: int, where: str) -> None:
        """Pass a signal that a rank got on to the client."""
        self._call(self._pass_signal, number, where)

    def fail(self, error: EndError) -> None:
        """End the run for all ranks."""
        self._call(self._fail, error)

    def close(self) -> None:
        """Close all connections and end the thread; does nothing the second time."""
        if self._loop.is_closed():
            return
        # Python 3.10 has a TimeoutError of its own for these.
        with contextlib.suppress(concurrent.futures.TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(self._stop_timeout)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(self._stop_timeout)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(function, *arguments)

    # In the coordinator's thread

    async def _listen(self) -> int:
        context = self._credentials.coordinator_context() if self._credentials else None
        self._server = await asyncio.start_server(
            self._serve, self._host, 0, limit=LIMIT, backlog=_BACKLOG, ssl=context
        )
        self._loop.call_later(self._patience, self._deadline)
        self._background(self._watch_scheduler())
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: _Peer | None = None
        try:
            hello = await accept(reader, writer, self._secret, self._credentials.key if self._credentials else "")
            peer = self._enter(hello, writer)
            while (message := await receive(reader)) is not None:
                self._handle(peer, message)
        except (ProtocolError, asyncio.CancelledError):
            # Not raised on: asyncio would print the end of a task that we end ourselves.
            pass
        finally:
            writer.close()
            if peer is not None:
                self._leave(peer)

    def _enter(self, hello: Message, writer: asyncio.StreamWriter) -> _Peer:
        peer = _Peer(str(hello["name"]), str(hello["role"]), str(hello["node"]), writer, brings=list(hello["brings"]))
        self._peers[peer.name] = peer
        self._expected |= set(peer.brings)
        ours, theirs = self._versions, hello["versions"]
        if ours != theirs and self._failure is None:
            names = [name for name in ours if ours[name] != theirs.get(name)]
            self._fail(
                VersionMismatchError(
                    f"{_called(peer.name)} on node {peer.node} has "
                    + ", ".join(f"{name} {theirs.get(name)}" for name in names)
                    + ", but rank 0 has "
                    + ", ".join(f"{name} {ours[name]}" for name in names)
                    + ". All ranks need the same environment: activate it in the batch script, before srun or mpirun."
                )
            )
        self._nodes |= dict.fromkeys(hello["local_ranks"], peer.node)
        if self._failure is not None:
            peer.send(_end(self._failure))
            return peer
        if self._phase == "stopping":
            peer.send({"op": "stop"})
            return peer
        if peer.role == SCHEDULER:
            self.on_stopping = lambda: peer.send({"op": "stopping"})
            self.on_gone = lambda names: peer.send({"op": "forget", "workers": sorted(names)})
            return peer
        if self._signal is not None:
            peer.send(self._signal)
        if self._facts is not None:
            peer.send({"op": "welcome", "facts": self._facts})
        if self._start is not None:
            peer.send(self._start)
        self._check_ready()
        return peer

    def _handle(self, peer: _Peer, message: Message) -> None:
        op = message["op"]
        if op == "plan":
            participant = str(message["participant"])
            peer.plan[participant] = {str(name): (threads, memory) for name, threads, memory in message["workers"]}
            self._check_ready()
            if participant in self._absent:
                self._absent.discard(participant)
                self._check_met()
        elif op == "gone":
            self._participants_lost(peer, [str(message["participant"])])
        elif op == "failed":
            self._fail(error_named(str(message.get("kind")), str(message.get("message"))))
        elif op == "signalled":
            who = _called(str(message.get("participant", peer.name)))
            self._pass_signal(int(message["number"]), f"{who} on node {peer.node}")
        elif peer.role == SCHEDULER and op == "beat":
            self.beat()
        elif peer.role == SCHEDULER and op == "joined":
            self._join(str(message["worker"]))
        elif peer.role == SCHEDULER and op == "started":
            self._started({"op": "start", **message["start"]})
        elif op == "died":
            self._scheduler_lost(str(message["how"]))
        elif op == "done":
            self._stop()
        elif op == "bye":
            peer.left = True
        elif op == "timeline":
            self._timeline[str(message["who"])] = message["marks"]
        elif op == "ping":
            peer.send({"op": "pong"})

    def _leave(self, peer: _Peer) -> None:
        """Draw the conclusion from a connection that has ended."""
        lost = not peer.left
        peer.left = True
        if peer.role == SCHEDULER:
            self._scheduler_left()
        elif self._phase == "stopping":
            self._check_stopped()
        elif self._phase == "failed":
            pass
        elif peer.role == CLIENT:
            # A client that says good-bye early has its reasons, and says them itself.
            if lost:
                self._client_lost(peer)
            else:
                self._stop()
        elif lost:
            self._participants_lost(peer, list(peer.plan) or peer.brings)

    def _scheduler_left(self) -> None:
        """The scheduler's process has taken its leave, or died."""
        if self._ending:
            self._on_stop()
        else:
            self._scheduler_lost(None)

    def _scheduler_lost(self, how: str | None) -> None:
        if self._phase not in ("starting", "running"):
            return
        if how is None:
            self._loop.call_later(_OBITUARY, self._scheduler_lost, "ended")
            return
        self._fail(ClusterLostError(f"The scheduler, a process of rank 0 on node {self._nodes[0]}, {how}."))

    def _client_lost(self, peer: _Peer) -> None:
        who = "the client" if peer.name == "client" else f"the client, rank {peer.name}"
        self._on_loss(
            f"{who} on node {peer.node}, ended without leaving the `with` block; the run ends with the client's exit code"
        )
        self._stop()

    def _participants_lost(self, peer: _Peer, participants: list[str]) -> None:
        """Ranks are gone, and the workers that they brought; with their host, all that it had."""
        gone = {name for participant in participants for name in peer.plan.pop(participant, {})}
        if self._phase not in ("starting", "running"):
            return
        self._joined -= gone
        self.on_gone(gone)
        where = f"{_called_together(participants)} on node {peer.node}"
        if self._phase == "starting":
            text = f"{where} died while the cluster was starting"
            if self._quorum(1) is None:
                self._fail(ClusterLostError(f"{text}; its own output says why. To go on without it, set min_workers."))
                return
            self._on_loss(text)
            self._expected -= set(participants)
            self._check_ready()
            return
        left = len(self._workers())
        if left < max(1, self._quorum(left + len(gone)) or 1):
            self._fail(ClusterLostError(f"{where} died and {_workers(len(gone))} with it; {_workers(left)} left."))
        elif gone:
            self._on_loss(f"{where} died and {_workers(len(gone))} with it; the run goes on with {left}")

    def _pass_signal(self, number: int, where: str) -> None:
        if self._signal is not None or self._phase in ("stopping", "failed"):
            return
        self._signal = {"op": "terminate", "number": number, "where": where}
        clients = [peer for peer in self._peers.values() if peer.role == CLIENT and not peer.left]
        if not clients:
            self._fail(terminated(number, where))
            return
        for client in clients:
            client.send(self._signal)
        # The client ends itself within `grace`; this is for one that cannot.
        self._loop.call_later(self._grace + self._stop_timeout, self._fail, terminated(number, where))

    async def _watch_scheduler(self) -> None:
        """End the run when the scheduler's event loop is blocked for good; a busy one catches up."""
        while True:
            pause = min(1.0, self._scheduler_timeout / 4)
            asked = time.monotonic()
            await asyncio.sleep(pause)
            late = time.monotonic() - asked - pause
            if late > pause:  # this whole process stood still, not the scheduler alone
                self._beat += late
            if self._beat and self._phase == "running" and time.monotonic() - self._beat > self._scheduler_timeout:
                self._fail(
                    ClusterLostError(
                        f"The scheduler, rank 0, has not responded for {self._scheduler_timeout:g} s (scheduler_timeout)."
                    )
                )

    def _welcome_all(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._broadcast({"op": "welcome", "facts": facts})

    def _started(self, start: Message) -> None:
        if self._phase == "starting":
            self._start = start
            self._broadcast(start)
            self._check_ready()

    def _join(self, name: str) -> None:
        self._joined.add(name)
        self._check_ready()

    def _planned(self) -> dict[str, tuple[int, int]]:
        return {
            name: size
            for peer in self._peers.values()
            if not peer.left
            for workers in peer.plan.values()
            for name, size in workers.items()
        }

    def _workers(self) -> list[tuple[int, int]]:
        """Threads and memory of the workers that have joined."""
        return [size for name, size in self._planned().items() if name in self._joined]

    def _missing(self) -> tuple[list[str], list[str]]:
        """Members that have not come, and workers that have not joined."""
        there = {name for name, peer in self._peers.items() if peer.role != WORKER}
        there |= {participant for peer in self._peers.values() for participant in peer.plan}
        return sorted(self._expected - there, key=_by_rank), sorted(set(self._planned()) - self._joined, key=_by_rank)

    def _check_ready(self) -> None:
        if self._phase == "starting" and self._start is not None and self._missing() == ([], []):
            self._ready()

    def _ready(self) -> None:
        workers = self._workers()
        if not workers:
            self._fail(StartTimeoutError("No rank is left that hosts workers."))
            return
        self._phase = "running"
        mark("all workers joined")
        self._check_met()
        self._broadcast(
            {
                "op": "ready",
                "workers": len(workers),
                "threads": _extent(threads for threads, _ in workers),
                "memory": _extent(memory for _, memory in workers),
                "nodes": len(set(self._nodes.values())),
            }
        )

    def _check_met(self) -> None:
        """Those who are late although the run has begun without them may still come and need the record."""
        if not self._absent:
            self._on_met()

    def _deadline(self) -> None:
        if self._phase != "starting":
            return
        participants, workers = self._missing()
        count = len(self._workers())
        enough = self._quorum(len(self._planned()) + len(participants))
        client_there = any(peer.role == CLIENT and not peer.left for peer in self._peers.values())
        missing = self._name_missing(participants, workers)
        if enough is not None and count >= enough and client_there and self._start is not None:
            self._on_loss(
                f"{missing} after {self._start_timeout:g} s; the run goes on with {count} workers (min_workers)"
            )
            self._expected -= set(participants)
            self._absent = set(participants)
            self._ready()
            return
        self._fail(
            StartTimeoutError(
                f"The cluster was not complete after {self._start_timeout:g} s (start_timeout): {missing}; "
                f"{count} workers had joined. The output of the ranks that are missing says why, if they started at all. "
                "If they are only slow, raise start_timeout (BATCHLET_DASK_CLUSTER__START_TIMEOUT); to go on without "
                "them, set min_workers (BATCHLET_DASK_CLUSTER__MIN_WORKERS)."
            )
        )

    def _name_missing(self, participants: list[str], workers: list[str]) -> str:
        parts = []
        if participants:
            shown = ", ".join(f"{_called(name)} {self._place(name)}" for name in participants[:8])
            parts.append(f"{shown}{_and_more(participants)} did not arrive")
        if workers:
            names = f"{'worker' if len(workers) == 1 else 'workers'} {', '.join(workers[:8])}{_and_more(workers)}"
            parts.append(f"{names} did not join the scheduler")
        if self._start is None:
            parts.append("the scheduler did not start")
        return " and ".join(parts)

    def _place(self, name: str) -> str:
        rank = _by_rank(name)
        node = self._nodes.get(rank) or self._expected_nodes().get(rank)
        return f"on node {node}" if node else "on a node that nobody came from"

    def _broadcast(self, message: Message, but: str | None = None) -> None:
        for peer in self._peers.values():
            if not peer.left and peer.role != but:
                peer.send(message)

    def _fail(self, error: EndError) -> None:
        if self._phase in ("failed", "stopping"):
            return
        self._phase = "failed"
        self._failure = error
        self._on_failure(error)
        self._broadcast(_end(error))
        self._background(self._linger())

    async def _linger(self) -> None:
        """Wait a little for those that have not come yet, so that they hear the root cause instead of silence.

        Not after the deadline: they had their time.
        """
        until = time.monotonic() + _LINGER
        late = isinstance(self._failure, StartTimeoutError)
        while time.monotonic() < until and (
            any(not peer.left for peer in self._peers.values()) or (not late and self._missing()[0])
        ):
            await asyncio.sleep(0.02)
        self._end()

    def _stop(self) -> None:
        if self._phase in ("failed", "stopping"):
            return
        self._phase = "stopping"
        self.on_stopping()
        self._broadcast({"op": "stop"}, but=SCHEDULER)
        self._loop.call_later(self._stop_timeout, self._say_bye)
        self._check_stopped()

    def _check_stopped(self) -> None:
        """The client leaves last: it waits for the coordinator's bye."""
        if any(not peer.left for peer in self._peers.values() if peer.role not in (CLIENT, SCHEDULER)):
            return
        self._say_bye()

    def _say_bye(self) -> None:
        apart = any(peer.role == SCHEDULER for peer in self._peers.values())
        ours = {"rank 0" if apart else "rank 0, the scheduler": marks()}
        self._broadcast({"op": "bye", "timeline": {**ours, **self._timeline}}, but=SCHEDULER)
        self._end()

    def _end(self) -> None:
        """Let the scheduler end; the hard way if its event loop is blocked."""
        self._ending = True
        schedulers = [peer for peer in self._peers.values() if peer.role == SCHEDULER and not peer.left]
        for scheduler in schedulers:
            scheduler.send({"op": "stop"})
        if not schedulers:
            self._on_stop()
        self._loop.call_later(self._stop_timeout, self._on_stuck)

    def _background(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self) -> None:
        self._server.close()
        for peer in self._peers.values():
            with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(peer.writer.drain(), 1)
            peer.writer.close()


def _end(error: EndError) -> Message:
    return {"op": "end", "kind": type(error).__name__, "message": str(error)}


def _extent(numbers: Iterable[int]) -> tuple[int, int]:
    ordered = sorted(numbers)
    return ordered[0], ordered[-1]


def _by_rank(name: str) -> int:
    """Rank in the name of a participant or worker: "3", "3w", "3-1"; the client that has none comes last."""
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else sys.maxsize


def _called(name: str) -> str:
    if name.startswith("host-"):
        name = name[5:]
    if name.endswith("w"):
        return f"the worker host of rank {name[:-1]}"
    return f"rank {name}" if name.isdigit() else f"the {name}"


def _called_together(participants: list[str]) -> str:
    """Name ranks that have died at once: with the process that hosts their workers."""
    if len(participants) == 1:
        return _called(participants[0])
    ranks = sorted(_by_rank(participant) for participant in participants)
    return f"the worker host of ranks {', '.join(map(str, ranks[:8]))}{_and_more(participants)}"


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 8} more" if len(names) > 8 else ""
