"""Guests: nodes of other jobs, which host workers for the run while they last (``python -m batchlet join``).

The run neither waits for them nor fails with them; all that it wants to know is which workers are gone when one of them is.
"""

from __future__ import annotations

from . import events as e
from . import messages as m
from . import wording
from .outbox import Outbox
from .roster import Peer, Roster

__all__ = ["GUEST", "Guests"]

#: Role of a guest, in its hello.
GUEST = "guest"


class Guests:
    """The workers of all guests, and what has been said of them: of each job one line when it comes, one when it goes.

    Parameters
    ----------
    roster : Roster
        Who belongs to the run itself.
    out : Outbox
        Gets the actions.
    """

    def __init__(self, roster: Roster, out: Outbox) -> None:
        self._roster = roster
        self._out = out
        self._workers: dict[int, tuple[str, ...]] = {}
        self._told: set[str] = set()

    @property
    def and_all_others(self) -> int:
        """How many workers there are, those of guests and those of the run itself."""
        return sum(map(len, self._workers.values())) + len(self._roster.workers())

    def hear(self, peer: Peer, message: m.Message) -> bool:
        """Take in what a guest says; whether it was one, and nothing else follows from its words."""
        if peer.role != GUEST or isinstance(message, (m.Ping, m.Paused, m.Closed)):
            return False
        if isinstance(message, m.Planned):
            self._workers[peer.number] = tuple(str(name) for name, *_ in message.workers)
            self._tell(wording.guest_came(peer.name))
        return True

    def leave(self, peer: Peer, *, lost: bool) -> None:
        """Draw the conclusions from the end of a guest's connection."""
        gone = self._workers.pop(peer.number, ())
        if gone:
            self._out.tell_scheduler(m.Forget(gone))
            self._tell(wording.guest_left(peer.name, peer.node, lost=lost))

    def _tell(self, text: str) -> None:
        """Tell the user, once."""
        if text not in self._told:
            self._told.add(text)
            self._out.add(e.NoteLoss(text))
