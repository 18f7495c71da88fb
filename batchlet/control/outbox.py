"""The actions that an event leads to, in their order."""

from __future__ import annotations

from collections.abc import Iterable

from ..plan import SCHEDULER
from . import events as e
from .messages import Message
from .roster import Peer, Roster

__all__ = ["Outbox"]


class Outbox:
    """Collects actions; messages go to those alone who are still there.

    Parameters
    ----------
    roster : Roster
        Who is there.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._actions: list[e.Action] = []
        self._once: set[tuple[type[e.Action], str]] = set()

    def take(self) -> tuple[e.Action, ...]:
        """Give the actions that have come together since the last time."""
        actions, self._actions = tuple(self._actions), []
        return actions

    def add(self, action: e.Action) -> None:
        """Add an action."""
        self._actions.append(action)

    def add_once(self, action: e.Action, what: str = "") -> None:
        """Add an action unless there was one of its kind before, and for the same thing."""
        key = (type(action), what)
        if key not in self._once:
            self._once.add(key)
            self.add(action)

    def send(self, peers: Iterable[Peer], message: Message) -> None:
        """Send a message to those of these that are there."""
        numbers = tuple(peer.number for peer in peers if not peer.left and peer.number != e.OWN)
        if numbers:
            self.add(e.Send(numbers, message))

    def broadcast(self, message: Message, but: str | None = None) -> None:
        """Send a message to everybody, but to those of one role."""
        self.send(self._roster.connected(but=but), message)

    def tell_scheduler(self, message: Message) -> None:
        """Send a message to the scheduler, wherever it lives."""
        schedulers = self._roster.connected(SCHEDULER)
        if schedulers:
            self.send(schedulers, message)
        else:
            self.add(e.TellScheduler(message))
