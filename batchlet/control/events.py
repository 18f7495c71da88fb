"""What can happen to the coordinator (events), and what it may do about it (actions); see `batchlet.control.state`.

A connection is known by its number, from 1 on. `OWN` stands for the scheduler where it lives in rank 0's own process: it says
the same as one in a process of its own, without a connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EndError
from .messages import Hello, Message

__all__ = [
    "OWN",
    "Action",
    "Close",
    "DeadlinePassed",
    "EndHard",
    "Event",
    "FactsKnown",
    "Fail",
    "Listening",
    "LocalSignal",
    "Mark",
    "MessageCame",
    "Met",
    "NoteLoss",
    "PeerEntered",
    "PeerLeft",
    "Report",
    "SchedulerGone",
    "Send",
    "StartTimer",
    "StopServing",
    "TellScheduler",
    "TimePassed",
    "TimerFired",
]

OWN = 0


@dataclass(frozen=True)
class Event:
    """Base class of all events."""


@dataclass(frozen=True)
class Listening(Event):
    """Others can connect: the first event."""


@dataclass(frozen=True)
class PeerEntered(Event):
    """Somebody has connected and proved that it belongs to this run."""

    peer: int
    hello: Hello


@dataclass(frozen=True)
class MessageCame(Event):
    """A connection has brought a message."""

    peer: int
    message: Message


@dataclass(frozen=True)
class PeerLeft(Event):
    """A connection has ended, in whatever way."""

    peer: int


@dataclass(frozen=True)
class TimerFired(Event):
    """The seconds of a `StartTimer` have passed."""

    name: str


@dataclass(frozen=True)
class DeadlinePassed(Event):
    """The cluster should be complete by now.

    Parameters
    ----------
    nodes : mapping of int to str
        The node on which each rank should be, as far as the launcher says; for the message.
    """

    nodes: Mapping[int, str]


@dataclass(frozen=True)
class TimePassed(Event):
    """So many seconds have passed in which this process could work; those in which it stood still do not count."""

    seconds: float


@dataclass(frozen=True)
class LocalSignal(Event):
    """Rank 0 was sent a signal."""

    number: int
    where: str


@dataclass(frozen=True)
class Fail(Event):
    """Rank 0 cannot go on."""

    error: EndError


@dataclass(frozen=True)
class FactsKnown(Event):
    """Rank 0 has asked the launcher's controller about the nodes; see `batchlet.control.messages.Welcome`."""

    facts: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class SchedulerGone(Event):
    """The scheduler's process has ended; somebody else may know how."""


@dataclass(frozen=True)
class Action:
    """Base class of all actions."""


@dataclass(frozen=True)
class Send(Action):
    """Send a message on these connections."""

    peers: tuple[int, ...]
    message: Message


@dataclass(frozen=True)
class Close(Action):
    """Send `batchlet.control.messages.Closed`, with this timeline and the marks of rank 0, which is called `who`."""

    peers: tuple[int, ...]
    who: str
    timeline: Mapping[str, Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class TellScheduler(Action):
    """Say this to the scheduler in rank 0's own process."""

    message: Message


@dataclass(frozen=True)
class StartTimer(Action):
    """Come back with `TimerFired` (of the deadline: `DeadlinePassed`) after so many seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Mark(Action):
    """Note in the timeline that this has happened."""

    event: str


@dataclass(frozen=True)
class Met(Action):
    """Nobody is expected any more: the coordinator record has done its work. Once at most."""


@dataclass(frozen=True)
class NoteLoss(Action):
    """Tell the user of something that is not as it should be, or lost, while the run goes on."""

    text: str


@dataclass(frozen=True)
class Report(Action):
    """Tell the user why the run has failed: the root cause. Once at most."""

    error: EndError


@dataclass(frozen=True)
class StopServing(Action):
    """The others have gone, or had their time: end the scheduler, and then this process. Once at most."""


@dataclass(frozen=True)
class EndHard(Action):
    """Rank 0 should have ended long since: end it, whatever it does. Once at most."""
