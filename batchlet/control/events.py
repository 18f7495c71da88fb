"""What can happen to the coordinator (events), and what it may do about it (actions); see `batchlet.control.state`.

A connection is known by its number, from 1 on. `OWN` stands for the scheduler where it lives in rank 0's own process: it says
the same as one in a process of its own, without a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EndError
from .messages import Hello, Message

__all__ = [
    "OWN",
    "Action",
    "Awaited",
    "Began",
    "BeginBlock",
    "DeadlinePassed",
    "EndBlock",
    "EndHard",
    "Event",
    "FactsKnown",
    "Fail",
    "LocalSignal",
    "Mark",
    "MessageCame",
    "Met",
    "NoteLoss",
    "PeerEntered",
    "PeerLeft",
    "Report",
    "Rules",
    "SayOver",
    "SchedulerGone",
    "Send",
    "StartTimer",
    "StopServing",
    "TellScheduler",
    "TimePassed",
    "TimerFired",
]

OWN = 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a block is like.

    Parameters
    ----------
    participants : iterable of str
        Who must come: the ranks, "0w" for the workers of head rank 0, "client" for a client that is not one of the ranks.
    start_timeout, stop_timeout, grace, scheduler_timeout : float
        Seconds; see `batchlet.settings.Settings`.
    patience : float
        Seconds that are left of `start_timeout`.
    quorum : callable
        From the number of planned workers to the number that is enough at the deadline; `None` where all are needed.
    """

    participants: Iterable[str]
    start_timeout: float
    patience: float
    stop_timeout: float
    grace: float
    scheduler_timeout: float
    quorum: Callable[[int], int | None]


@dataclass(frozen=True)
class Event:
    """Base class of all events."""


@dataclass(frozen=True)
class Began(Event):
    """Rank 0 begins a block, the first one or another.

    Parameters
    ----------
    rules : Rules
        What it is like; see `batchlet.control.state`.
    launch : str
        What the user asks for; see `batchlet.control.messages.Welcome`.
    """

    rules: Rules
    launch: str = ""


@dataclass(frozen=True)
class Awaited(Event):
    """Rank 0 waits for the client, which is to come within so many seconds, and to begin a block whenever it likes."""

    seconds: float


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
    """A connection has ended, in whatever way; `cut_off` if the network does not reach the other side any more."""

    peer: int
    cut_off: bool = False


@dataclass(frozen=True)
class TimerFired(Event):
    """The seconds of a `StartTimer` have passed, which was set in that block."""

    name: str
    block: int


@dataclass(frozen=True)
class DeadlinePassed(Event):
    """The cluster should be complete by now.

    Parameters
    ----------
    nodes : mapping of int to str
        The node on which each rank should be, as far as the launcher says; for the message.
    block : int
        Of which block.
    """

    nodes: Mapping[int, str]
    block: int


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
class SayOver(Action):
    """Send `batchlet.control.messages.BlockOver`, with this timeline and the marks of rank 0, which is called `who`."""

    peers: tuple[int, ...]
    who: str
    timeline: Mapping[str, Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class TellScheduler(Action):
    """Say this to the scheduler in rank 0's own process."""

    message: Message


@dataclass(frozen=True)
class StartTimer(Action):
    """Come back with `TimerFired` (of the deadline: `DeadlinePassed`) of this block after so many seconds."""

    name: str
    seconds: float
    block: int = 1


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
class EndBlock(Action):
    """The block is over: end its scheduler, and wait for another one."""


@dataclass(frozen=True)
class BeginBlock(Action):
    """The client has entered another block: begin it, with `Began`."""

    launch: str


@dataclass(frozen=True)
class Conclude(Action):
    """All hosts of workers have gone, and the client waits for `Closed`: bring the report to its end before it gets that."""


@dataclass(frozen=True)
class StopServing(Action):
    """The others have gone, or had their time: end the scheduler, and then this process. Once at most."""


@dataclass(frozen=True)
class EndHard(Action):
    """Rank 0 should have ended long since: end it, whatever it does. Once at most."""
