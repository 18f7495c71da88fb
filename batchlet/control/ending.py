"""How a block ends, and how the run does; the half of `batchlet.control.state` that comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import EndError, StartTimeoutError, VersionMismatchError
from ..plan import CLIENT, SCHEDULER, WORKER
from . import events as e
from . import messages as m
from .guests import GUEST
from .outbox import Outbox
from .roster import Peer, Roster
from .visitors import VISITOR, Visitors

__all__ = ["FAILED", "IDLE", "LINGER", "PAUSE", "PAUSING", "RUNNING", "STARTING", "STOP", "STOPPING", "STUCK", "Ending"]

IDLE, STARTING, RUNNING, PAUSING, STOPPING, FAILED = "idle", "starting", "running", "pausing", "stopping", "failed"
# Timers
PAUSE, LINGER, STOP, STUCK = "pause", "linger", "stop", "stuck"
# Seconds for those that have not come yet to hear of a failure, instead of silence.
_LINGER_SECONDS = 3.0


class Ending:
    """Where the run is, as far as its end goes.

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
        self._ranks = ranks
        self._stop_timeout = stop_timeout
        self._phase = IDLE
        self._failure: EndError | None = None
        self._ending = False
        self._roster = Roster(node)
        self._out = Outbox(self._roster)
        self._versions = versions
        self._visitors = Visitors(self._roster, self._out, versions)
        self._block = 0
        # Where the scheduler of the block is, from when that is known to the block's end.
        self._started: m.SchedulerStarted | None = None
        self._timeline: dict[str, Sequence[Sequence[Any]]] = {}

    @property
    def phase(self) -> str:
        """One of `IDLE`, `STARTING`, `RUNNING`, `PAUSING`, `STOPPING` and `FAILED`."""
        return self._phase

    def _timed(self, name: str, seconds: float) -> None:
        self._out.add(e.StartTimer(name, seconds, self._block))

    @property
    def _over(self) -> bool:
        return self._phase in (STOPPING, FAILED)

    def _hosts(self) -> list[Peer]:
        """Those that have workers: the agents of the run's nodes, and guests."""
        return self._roster.connected(WORKER) + self._roster.connected(GUEST)

    def _fail(self, error: EndError) -> None:
        if self._over:
            return
        self._phase, self._failure = FAILED, error
        self._out.add(e.Report(error))
        self._out.broadcast(m.Failed.of(error))
        self._timed(LINGER, _LINGER_SECONDS)

    def _refuse(self, peer: Peer, text: str) -> None:
        """End with somebody who has other versions: the run with one of its own, nothing but the guest with a guest."""
        if peer.role == GUEST:
            self._out.send([peer], m.Failed.of(VersionMismatchError(text)))
        else:
            self._fail(VersionMismatchError(text))

    def _pause(self) -> None:
        self._phase, self._started = PAUSING, None
        self._out.tell_scheduler(m.Stopping())
        for peer in self._roster.connected(WORKER):
            peer.paused = False
        self._out.send(self._hosts(), m.Pause())
        self._visitors.say_paused()
        self._timed(PAUSE, self._stop_timeout)

    def _say_over(self) -> None:
        """The workers are gone, or had their time to: the block's scheduler ends, and the client may go on."""
        self._phase = IDLE
        apart = self._roster.connected(SCHEDULER)
        peers = tuple(peer.number for peer in self._roster.connected(CLIENT))
        self._out.add(e.SayOver(peers, "rank 0" if apart else "rank 0, the scheduler", dict(self._timeline)))
        for scheduler in apart:
            # Its end is no news any more.
            scheduler.block = 0
        self._out.send(apart, m.Stop())
        self._out.add(e.EndBlock())

    def _stop(self) -> None:
        if self._over:
            return
        self._phase = STOPPING
        self._out.tell_scheduler(m.Stopping())
        self._out.broadcast(m.Stop(), but=SCHEDULER)
        self._timed(STOP, self._stop_timeout)

    def _settle(self) -> None:
        """See whether those have left for whom the end waits."""
        if self._ending:
            return
        if self._phase == PAUSING and all(peer.paused for peer in self._hosts()):
            self._say_over()
        # Before the first block agents may be on their way, who must hear that there will be none.
        all_came = self._block > 0 or not self._roster.without_agent(range(2, self._ranks))
        if self._phase == STOPPING and all_came and not self._hosts():
            # The client leaves last: it waits for the coordinator's last word.
            self._say_closed()
        # After the deadline nobody is waited for who has not come: they had their time.
        late = isinstance(self._failure, StartTimeoutError)
        if self._phase == FAILED and not self._roster.connected(but=VISITOR) and (late or not self._roster.awaited):
            self._end()

    def _say_closed(self) -> None:
        # Before the client ends: where its exit code is not 0, some launchers kill all others at that moment.
        self._out.add(e.Conclude())
        self._out.broadcast(m.Closed(), but=SCHEDULER)
        self._end()

    def _end(self) -> None:
        """Let the scheduler end; the hard way if its event loop is blocked."""
        self._ending = True
        schedulers = self._roster.connected(SCHEDULER)
        self._out.send(schedulers, m.Stop())
        if not schedulers:
            self._out.add_once(e.StopServing())
        self._timed(STUCK, self._stop_timeout)
