"""What a run does when a part of it is lost: it waits a moment for who replaces it, goes on without it, or ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ClusterLostError, EndError
from . import events as e
from . import messages as m
from . import wording
from .ending import IDLE, PAUSING, RUNNING, STARTING, Ending
from .events import Rules
from .guests import Guests
from .roster import Peer

__all__ = ["Losses"]

# Begins the name of the timer of each lost agent.
_REPLACEMENT = "replacement"


@dataclass(eq=False)
class _LostAgent:
    """An agent that is gone, and whose ranks are having another one started.

    Parameters
    ----------
    name, node : str
        What it was called, and where it was.
    workers : dict of str to set of str
        The names of its workers, by participant.
    seconds : float
        How long the other one may take.
    how : str
        How it ended, as far as somebody knows.
    successor : Peer, optional
        The other one, once it is here.
    extended : bool
        Whether that has been given time for its workers to join.
    """

    name: str
    node: str
    workers: dict[str, set[str]]
    seconds: float
    how: str = ""
    successor: Peer | None = None
    extended: bool = False

    def names(self, participants: Collection[str] | None = None) -> set[str]:
        """Name its workers, or those of some participants."""
        return {
            name for one, names in self.workers.items() if participants is None or one in participants for name in names
        }


@dataclass
class _Awaited:
    """The lost agents for which another one is awaited, by the names of their timers."""

    number: int = 0
    by_timer: dict[str, _LostAgent] = field(default_factory=dict)

    def add(self, lost: _LostAgent) -> str:
        """Add one, and name its timer."""
        self.number += 1
        timer = f"{_REPLACEMENT} {self.number}"
        self.by_timer[timer] = lost
        return timer

    def by_successor(self, peer: Peer) -> _LostAgent | None:
        """Find the one in whose place a peer is."""
        return next((lost for lost in self.by_timer.values() if lost.successor is peer), None)

    def drop(self, lost: _LostAgent | None) -> None:
        """Await no other one any more."""
        self.by_timer = {timer: one for timer, one in self.by_timer.items() if one is not lost}

    def one_of(self, node: str, names: Collection[str]) -> _LostAgent | None:
        """Find the one of these names that was on a node."""
        for lost in self.by_timer.values():
            if lost.node == node and lost.name in names and lost.successor is None:
                return lost
        return None

    @property
    def workers(self) -> int:
        """How many workers may come back."""
        return sum(len(lost.names()) for lost in self.by_timer.values())


class Losses(Ending):
    """Where the run is, as far as what it has lost goes.

    Parameters
    ----------
    node : str
        Name of rank 0's node.
    ranks : int
        How many there are.
    versions : mapping of str to str
        Versions of Python and packages on rank 0.
    stop_timeout : float
        Seconds for an end before any block has begun; see `batchlet.settings.Settings`.
    """

    def __init__(self, node: str, ranks: int, versions: Mapping[str, str], stop_timeout: float) -> None:
        super().__init__(node, ranks, versions, stop_timeout)
        # Of the block
        self._rules: Rules | None = None
        self._guests = Guests(self._roster, self._out)
        self._awaited = _Awaited()

    # Agents, of which there may be another one

    def _agent_lost(self, peer: Peer) -> None:
        """An agent is gone without a word. Its tasks go elsewhere at once; its workers may come back with another one."""
        participants = list(peer.plan) or list(peer.brings) or [peer.name]
        before = self._awaited.by_successor(peer)
        self._awaited.drop(before)
        if not peer.replaceable_within or peer.cut_off:
            gone = self._roster.remove(peer, participants)
            if before is not None:
                # It was in another one's place, and had not brought all of that one's workers.
                participants = sorted({*participants, *before.workers}, key=wording.by_rank)
                gone |= before.names()
                self._roster.give_up(participants, peer.node)
            self._lost(peer.node, participants, gone)
            return
        workers = {one: set(peer.plan.get(one, ())) for one in participants}
        gone = self._roster.remove(peer, participants, for_good=False)
        if self._phase in (STARTING, RUNNING):
            self._out.tell_scheduler(m.Forget(tuple(sorted(gone))))
        if before is not None:
            self._out.add(e.NoteLoss(wording.replaced_in_vain(before.node, before.how)))
            # It may have died before it could say what it has.
            workers = {one: names | workers.get(one, set()) for one, names in before.workers.items()} | {
                one: names for one, names in workers.items() if one not in before.workers
            }
        lost = _LostAgent(peer.name, peer.node, workers, peer.replaceable_within)
        self._timed(self._awaited.add(lost), lost.seconds)

    def _replaces(self, peer: Peer, message: m.Replaces) -> None:
        """An agent is in the place of another one; it may say so once more, when it has learned how that one ended."""
        lost = self._awaited.by_successor(peer)
        if self._over or (peer.replaces and lost is None):
            return
        peer.replaces = True
        lost = lost or self._awaited.one_of(peer.node, message.agents)
        if lost is None:
            # That one was gone before it was known here, or so long ago that nobody was awaited any more.
            self._out.add(e.NoteLoss(wording.replaced(peer.node, message.how, 0)))
        else:
            lost.successor, lost.how = peer, message.how

    def _cannot(self, peer: Peer, error: EndError) -> None:
        """An agent cannot do what it should: the run fails, unless that one was to bring back what the run has done without."""
        if not peer.replaces or self._phase == STARTING:
            self._fail(error)
            return
        self._out.add(e.NoteLoss(wording.cannot_replace(peer.node, error)))
        self._out.send([peer], m.Stop())
        lost = self._awaited.by_successor(peer)
        if lost is not None:
            self._give_up(lost)

    def _see_who_is_back(self) -> None:
        """Tell the user of those who have brought back what was lost."""
        for lost in list(self._awaited.by_timer.values()):
            if self._over:
                self._awaited.drop(lost)
            elif lost.successor is not None and (
                self._phase not in (STARTING, RUNNING) or lost.names() <= self._roster.joined
            ):
                # Between blocks nobody has workers.
                back = len(lost.names()) if self._phase in (STARTING, RUNNING) else 0
                self._awaited.drop(lost)
                self._out.add(e.NoteLoss(wording.replaced(lost.node, lost.how, back)))

    def _wait_on(self) -> None:
        """In a new block other workers are awaited, with the same ranks."""
        for timer, lost in self._awaited.by_timer.items():
            lost.workers = {participant: set() for participant in lost.workers}
            self._timed(timer, lost.seconds)

    def _is_late(self, timer: str) -> None:
        """Another agent should be there by now, with all workers; what is not there is lost."""
        lost = self._awaited.by_timer.get(timer)
        if lost is None:
            return
        successor = lost.successor
        if successor is not None and not successor.left and not lost.extended and self._rules is not None:
            lost.extended = True
            self._timed(timer, self._rules.start_timeout)
        else:
            self._give_up(lost)

    def _give_up(self, lost: _LostAgent) -> None:
        """Go on without what has not come back."""
        self._awaited.drop(lost)
        successor = lost.successor
        back = {one for one in lost.workers if successor is not None and self._is_back(successor, one, lost)}
        missing = sorted(lost.workers.keys() - back, key=wording.by_rank)
        if back:
            self._out.add(e.NoteLoss(wording.replaced(lost.node, lost.how, len(lost.names(back)))))
        self._roster.give_up(missing, lost.node)
        self._lost(lost.node, missing, lost.names(missing))

    def _is_back(self, successor: Peer, participant: str, lost: _LostAgent) -> bool:
        return participant in successor.plan and lost.workers[participant] <= self._roster.joined

    # What is lost for good

    @property
    def _workers_left(self) -> int:
        """How many workers there are, those of guests and those that may come back among them."""
        return self._guests.and_all_others + self._awaited.workers

    def _participant_gone(self, peer: Peer, participant: str) -> None:
        """A rank is gone, and its workers with it."""
        lost = self._awaited.by_successor(peer)
        if lost is not None:
            lost.workers.pop(participant, None)
            if not lost.workers:
                self._awaited.drop(lost)
        self._lost(peer.node, [participant], self._roster.remove(peer, [participant]))

    def _lost(self, node: str, participants: Sequence[str], gone: Collection[str]) -> None:
        """Ranks are gone for good, and the workers that they brought; with their agent, all that it had."""
        if self._phase in (PAUSING, IDLE) and self._block > 0:
            self._out.add(e.NoteLoss(wording.died_between(wording.called_together(participants), node)))
        if self._phase not in (STARTING, RUNNING) or self._rules is None:
            return
        self._out.tell_scheduler(m.Forget(tuple(sorted(gone))))
        if self._phase == STARTING:
            self._died_at_start(participants, node)
            return
        left = self._workers_left
        text = wording.died_with_workers(f"{wording.called_together(participants)} on node {node}", len(gone))
        if left < max(1, self._rules.quorum(left + len(gone)) or 1):
            self._fail(ClusterLostError(f"{text}; {wording.workers_counted(left)} left."))
        elif gone:
            self._out.add(e.NoteLoss(f"{text}; the run goes on with {left}"))

    def _died_at_start(self, participants: Sequence[str], node: str) -> None:
        if self._phase != STARTING or self._rules is None:
            return
        text = wording.died_at_start(f"{wording.called_together(participants)} on node {node}")
        if self._rules.quorum(1) is None:
            self._fail(ClusterLostError(f"{text}; its own output says why. To go on without it, set min_workers."))
            return
        self._out.add(e.NoteLoss(text))
        self._roster.expect_no_more(participants, late=False)
        self._check_ready()

    def _check_ready(self) -> None:
        """See whether all have come; `batchlet.control.state.State` does."""
        raise NotImplementedError
