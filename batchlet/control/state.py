"""What the coordinator decides: from what happens to what is to be done, without clock, sockets, threads or environment.

The life of a run, and of the blocks (``with`` blocks of the user's code) in it::

    IDLE ------rank 0 begins a block-----> STARTING
    STARTING --all have come and all workers have joined, or as many as min_workers wants, at the deadline--> RUNNING
    RUNNING ---the client has left the block--> PAUSING: `Pause` to agents; after the last `Paused` `BlockOver` to the client
    PAUSING ---the workers are gone, or had their time to--> IDLE: the block's scheduler ends
    IDLE ------the client never comes--------> FAILED: where rank 0 is there before the script has made a runner
    anywhere --the client's process ends-----> STOPPING: `Stop` to all; `Closed` to the client after the last agent
    anywhere --whatever else goes wrong------> FAILED: `Failed` to all, and to those who come within a moment

From STOPPING and FAILED the scheduler ends last, and then rank 0. The first failure is the root cause, and the only one that is
told; nothing that happens later changes the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ClusterLostError, StartTimeoutError, error_named, terminated
from ..plan import CLIENT, SCHEDULER
from . import events as e
from . import messages as m
from . import wording
from .ending import FAILED, IDLE, LINGER, PAUSE, PAUSING, RUNNING, STARTING, STOP, STOPPING, STUCK
from .events import Rules
from .guests import GUEST
from .losses import Losses
from .pulse import Pulse
from .roster import Peer
from .visitors import VISITOR, as_visitor

__all__ = ["DEADLINE", "FAILED", "IDLE", "PAUSING", "RUNNING", "STARTING", "STOPPING", "State"]

# Timers. `DEADLINE` comes back with what the launcher says about nodes.
DEADLINE = "deadline"
_GRACE, _OBITUARY = "grace", "obituary"
# Seconds within which an agent says how the scheduler's process has ended.
_OBITUARY_SECONDS = 1.0


class State(Losses):
    """Where the run is; see `advance`.

    Parameters
    ----------
    node : str
        Name of rank 0's node.
    ranks : int
        How many there are.
    versions : mapping of str to str
        Versions of Python and packages on rank 0; all others must have the same.
    stop_timeout : float
        Seconds for an end before any block has begun; see `batchlet.settings.Settings`.
    """

    def __init__(self, node: str, ranks: int, versions: Mapping[str, str], stop_timeout: float) -> None:
        super().__init__(node, ranks, versions, stop_timeout)
        self._node = node
        self._own = Peer(e.OWN, "scheduler", SCHEDULER, node)
        # Of the block
        self._launch = ""
        self._facts: Mapping[str, Sequence[Any]] | None = None
        # Seconds for the client to come, where the first block is its own affair.
        self._patience = 0.0
        self._signal: m.Terminate | None = None
        self._pulse = Pulse()
        self._ready_news: m.Ready | None = None

    def advance(self, event: e.Event) -> tuple[e.Action, ...]:
        """Draw the conclusions from what has happened.

        Returns
        -------
        tuple of Action
            What is to be done, in this order.
        """
        match event:
            case e.Began(rules, launch):
                self._begin(rules, launch)
            case e.Awaited(seconds):
                self._patience = seconds
                self._timed(DEADLINE, seconds)
            case e.PeerEntered(number, hello):
                self._enter(number, hello)
            case e.MessageCame(number, message):
                self._hear(self._own if number == e.OWN else self._roster[number], message)
            case e.PeerLeft(number, cut_off):
                self._roster[number].cut_off = cut_off
                self._leave(self._roster[number], lost=True)
            case e.DeadlinePassed(nodes, block) if block == self._block:
                self._deadline(nodes)
            case e.TimerFired(name, block) if block == self._block:
                self._timer(name)
            case e.TimePassed(seconds):
                self._watch_scheduler(seconds)
            case e.LocalSignal(number, where):
                self._pass_signal(number, where)
            case e.Fail(error):
                self._fail(error)
            case e.FactsKnown(facts):
                self._facts = facts
                self._out.broadcast(m.Welcome(facts, self._launch))
            case e.SchedulerGone():
                self._scheduler_lost(None)
        self._see_who_is_back()
        self._settle()
        return self._out.take()

    # What happens

    def _begin(self, rules: Rules, launch: str) -> None:
        """Begin a block."""
        if self._over:
            return
        first = self._block == 0
        self._block += 1
        self._phase, self._rules, self._launch, self._stop_timeout = STARTING, rules, launch, rules.stop_timeout
        self._timeline, self._facts, self._started, self._signal, self._pulse = {}, None, None, None, Pulse()
        self._ready_news = None
        died = self._roster.begin(rules.participants)
        self._timed(DEADLINE, rules.patience)
        self._wait_on()
        for participant, node in died.items() if first else ():
            # Later on those who have died before are missed no more: the user knows.
            self._died_at_start([participant], node)

    def _enter(self, number: int, hello: m.Hello) -> None:
        peer = self._roster.enter(number, as_visitor(hello))
        if self._failure is not None:
            self._out.send([peer], m.Failed.of(self._failure))
        elif self._phase == STOPPING:
            self._out.send([peer], m.Stop())
        elif peer.role == VISITOR:
            self._visitors.enter(peer, hello.versions, self._launch, self._started)
        elif self._versions != hello.versions:
            self._refuse(peer, wording.other_versions(peer.name, peer.node, hello.versions, self._versions))
        elif peer.role != SCHEDULER:
            if self._signal is not None:
                self._out.send([peer], self._signal)
            self._tell_of_block(peer)
            self._check_ready()

    def _tell_of_block(self, peer: Peer) -> None:
        """Tell who has just come what the others have heard of this block, unless it is over."""
        # A guest may need long until it has workers, while the block ends: what it imports is the user's.
        peer.paused = self._phase == PAUSING or peer.role == GUEST
        if self._phase in (STARTING, RUNNING):
            welcome = m.Welcome(self._facts, self._launch) if self._facts is not None else None
            for message in (welcome, self._started, self._ready_news):
                if message is not None:
                    self._out.send([peer], message)

    def _hear(self, peer: Peer, message: m.Message) -> None:
        if peer.role == SCHEDULER:
            self._hear_scheduler(message)
        if self._guests.hear(peer, message) or self._visitors.hear(peer, message):
            return
        match message:
            case m.Ping():
                self._out.send([peer], m.Pong())
            case m.Planned(participant, workers):
                self._planned_by(peer, participant, workers)
            case m.Gone(participant):
                self._participant_gone(peer, participant)
            case m.Replaces():
                self._replaces(peer, message)
            case m.ReportFailure(kind, text):
                self._cannot(peer, error_named(kind, text))
            case m.Signalled(number, participant):
                self._pass_signal(number, f"{wording.called(participant)} on node {peer.node}")
            case m.SchedulerDied(how, block) if block == self._block:
                self._scheduler_lost(how)
            case m.SocketTaken(user):
                # One line is enough: whoever does so does it on all nodes.
                self._out.add_once(e.NoteLoss(wording.socket_taken(peer.node, user)))
            case m.Told(text):
                # One line is enough: what one node says of itself, the others that are like it say too.
                self._out.add_once(e.NoteLoss(f"{text} (node {peer.node})"), text)
            case m.Done() if self._phase == RUNNING:
                self._pause()
            case m.Paused():
                peer.paused = True
            case m.Begin(launch) if self._phase == IDLE:
                self._out.add(e.BeginBlock(launch))
            case m.Finish():
                self._stop()
            case m.Timeline(who, marks):
                self._timeline[who] = marks
            case m.Closed():
                self._leave(peer, lost=False)

    def _hear_scheduler(self, message: m.Message) -> None:
        match message:
            case m.Beat():
                self._pulse.beat()
            case m.WorkerJoined(worker):
                self._roster.joined.add(worker)
                self._check_ready()
            case m.SchedulerStarted() if self._phase == STARTING:
                self._started = message
                self._out.broadcast(message)
                self._check_ready()

    def _planned_by(self, peer: Peer, participant: str, workers: Sequence[Sequence[Any]]) -> None:
        self._roster.add_workers(peer, participant, workers)
        self._check_ready()
        if self._phase == RUNNING:
            self._check_met()

    def _leave(self, peer: Peer, *, lost: bool) -> None:
        """Draw the conclusion from a connection that has ended, or is about to."""
        if peer.left:
            return
        peer.left = True
        if peer.role == SCHEDULER:
            if self._ending:
                self._out.add_once(e.StopServing())
            elif peer.block == self._block:
                self._scheduler_lost(None)
        elif self._over or peer.role == VISITOR:
            pass
        elif peer.role == GUEST:
            self._guests.leave(peer, lost=lost)
            if self._phase == RUNNING and not self._workers_left:
                self._fail(ClusterLostError(f"{peer.name}, which had joined, has left; no worker is left."))
        elif peer.role == CLIENT:
            if self._roster.connected(CLIENT):
                # It has another connection: that by which it was known before its first block is of no use any more.
                return
            # A client that says good-bye early has its reasons, and says them itself; between two blocks its process ends.
            if lost and self._phase != IDLE:
                self._out.add(e.NoteLoss(wording.client_lost(peer.name, peer.node)))
            self._stop()
        elif lost:
            self._agent_lost(peer)

    def _scheduler_lost(self, how: str | None) -> None:
        if self._phase not in (STARTING, RUNNING):
            return
        if how is None:
            self._timed(_OBITUARY, _OBITUARY_SECONDS)
            return
        self._fail(ClusterLostError(f"The scheduler, a process of rank 0 on node {self._node}, {how}."))

    def _pass_signal(self, number: int, where: str) -> None:
        if self._signal is not None or self._over:
            return
        self._signal = m.Terminate(number, where)
        clients = self._roster.connected(CLIENT)
        if not clients or self._rules is None or self._phase == IDLE:
            # There is no block whose end could wait for anything.
            self._fail(terminated(number, where))
            return
        self._out.send(clients, self._signal)
        # The client ends itself within `grace`; this is for one that cannot.
        self._timed(_GRACE, self._rules.grace + self._rules.stop_timeout)

    def _watch_scheduler(self, seconds: float) -> None:
        """End the run when the scheduler's event loop is blocked for good; a busy one catches up."""
        if self._rules is None:
            return
        limit = self._rules.scheduler_timeout
        if self._pulse.silence_after(seconds) > limit and self._phase == RUNNING:
            text = f"The scheduler, rank 0, has not responded for {limit:g} s (scheduler_timeout)."
            self._fail(ClusterLostError(text))

    def _timer(self, name: str) -> None:
        if name == _OBITUARY:
            self._scheduler_lost("ended")
        elif name == _GRACE and self._signal is not None:
            self._fail(terminated(self._signal.number, self._signal.where))
        elif name == PAUSE and self._phase == PAUSING:
            self._say_over()
        elif name == LINGER and not self._ending:
            self._end()
        elif name == STOP and not self._ending:
            self._say_closed()
        elif name == STUCK:
            self._out.add_once(e.EndHard())
        else:
            self._is_late(name)

    # Becoming ready

    def _check_ready(self) -> None:
        if self._phase == STARTING and self._started is not None and not any(self._roster.missing()):
            self._ready()

    def _ready(self) -> None:
        workers = self._roster.workers()
        if not workers:
            self._fail(StartTimeoutError("No rank is left that hosts workers."))
            return
        self._phase = RUNNING
        self._out.add(e.Mark("all workers joined"))
        self._check_met()
        threads, memory = sorted(size[0] for size in workers), sorted(size[1] for size in workers)
        self._ready_news = m.Ready(len(workers), (threads[0], threads[-1]), (memory[0], memory[-1]), self._roster.nodes)
        self._out.broadcast(self._ready_news)

    def _check_met(self) -> None:
        """Those who are late although the run has begun without them may still come and need the record."""
        if self._roster.all_met:
            self._out.add_once(e.Met())

    def _deadline(self, nodes: Mapping[int, str]) -> None:
        if self._phase == IDLE and not self._roster.had(CLIENT):
            # No block has begun: of the others it is known only whether the agent of their node has come.
            absent = ["1", *map(str, self._roster.without_agent(range(2, self._ranks)))]
            who = wording.missing_parts(absent, [], False, lambda name: self._roster.node_of(name, nodes))
            self._fail(StartTimeoutError(wording.incomplete(who, 0, self._patience)))
        if self._phase != STARTING or self._rules is None:
            return
        participants, workers = (sorted(names, key=wording.by_rank) for names in self._roster.missing())
        count = len(self._roster.workers())
        enough = self._rules.quorum(len(self._roster.planned()) + len(participants))
        started, seconds = self._started is not None, self._rules.start_timeout
        missing = wording.missing_parts(
            participants, workers, not started, lambda name: self._roster.node_of(name, nodes)
        )
        if enough is not None and count >= enough and self._roster.connected(CLIENT) and started:
            text = f"{missing} after {seconds:g} s; the run goes on with {count} workers (min_workers)"
            self._out.add(e.NoteLoss(text))
            self._roster.expect_no_more(participants, late=True)
            self._ready()
            return
        self._fail(StartTimeoutError(wording.incomplete(missing, count, seconds)))
