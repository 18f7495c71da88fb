"""Guests: nodes of other jobs, which host workers for a run or a cluster while they last (``python -m batchlet join``).

The run neither waits for them nor fails with them; all that it wants to know is which workers are gone when one of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import events as e
from . import messages as m
from . import wording
from .outbox import Outbox
from .roster import Peer, Roster

__all__ = ["GUEST", "GuestBook", "Guests"]

#: Role of a guest, in its hello.
GUEST = "guest"


class GuestBook:
    """The workers of all guests, and what has been said of them: of each job one line when it comes, one when it goes."""

    def __init__(self) -> None:
        self._workers: dict[int, tuple[str, ...]] = {}
        self._told: set[str] = set()

    @property
    def workers(self) -> int:
        """How many workers they have."""
        return sum(map(len, self._workers.values()))

    def came(self, number: int, job: str, workers: Sequence[Sequence[object]]) -> str | None:
        """Note the workers of a guest.

        Parameters
        ----------
        number : int
            Of its connection.
        job : str
            What a person calls its job.
        workers : sequence
            Name, threads and bytes of memory of each.

        Returns
        -------
        str or None
            What the user is to know.
        """
        self._workers[number] = tuple(str(name) for name, *_ in workers)
        return self._once(f"came {job}", wording.guest_came(job))

    def left(self, number: int, job: str, node: str, *, lost: bool) -> tuple[tuple[str, ...], str | None]:
        """Note that a guest has gone.

        Returns
        -------
        gone : tuple of str
            The workers that have gone with it.
        text : str or None
            What the user is to know.
        """
        gone = self._workers.pop(number, ())
        return gone, self._once(f"left {job}", wording.guest_left(job, node, lost=lost)) if gone else None

    def _once(self, what: str, text: str) -> str | None:
        """Give a line, unless there was one of this before: a job may have hundreds of nodes."""
        if what in self._told:
            return None
        self._told.add(what)
        return text


class Guests:
    """The guests of a run.

    Parameters
    ----------
    roster : Roster
        Who belongs to the run itself.
    out : Outbox
        Gets the actions.
    """

    def __init__(self, roster: Roster, out: Outbox) -> None:
        self._book = GuestBook()
        self._roster = roster
        self._out = out

    @property
    def and_all_others(self) -> int:
        """How many workers there are, those of guests and those of the run itself."""
        return self._book.workers + len(self._roster.workers())

    def hear(self, peer: Peer, message: m.Message) -> bool:
        """Take in what a guest says; whether it was one, and nothing else follows from its words."""
        if peer.role != GUEST or isinstance(message, (m.Ping, m.Paused, m.Closed)):
            return False
        if isinstance(message, m.Planned):
            peer.paused = False
            self._tell(self._book.came(peer.number, peer.name, message.workers))
        return True

    def leave(self, peer: Peer, *, lost: bool) -> None:
        """Draw the conclusions from the end of a guest's connection."""
        gone, text = self._book.left(peer.number, peer.name, peer.node, lost=lost)
        if gone:
            self._out.tell_scheduler(m.Forget(gone))
        self._tell(text)

    def _tell(self, text: str | None) -> None:
        if text is not None:
            self._out.add(e.NoteLoss(text))
