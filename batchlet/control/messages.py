"""The messages that the processes of a run exchange with the coordinator on rank 0: one dataclass each, one JSON object a line.

From whom each of them comes, and what follows, stands in `batchlet.control.state`. A line that is no message of ours, or has
fields that its dataclass does not have, is `None` to who reads it; the connection is then at its end.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = [
    "Beat",
    "Closed",
    "Done",
    "Failed",
    "Forget",
    "Gone",
    "Hello",
    "Message",
    "Ping",
    "Planned",
    "Pong",
    "Ready",
    "ReportFailure",
    "SchedulerDied",
    "SchedulerStarted",
    "Signalled",
    "Stop",
    "Stopping",
    "Terminate",
    "Timeline",
    "Welcome",
    "WorkerJoined",
    "decode",
    "encode",
]

# Event and seconds since the epoch, as `batchlet.timeline` gives them.
_Marks = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Message:
    """Base class of all messages."""


@dataclass(frozen=True)
class Hello(Message):
    """From everybody, once: who I am.

    Parameters
    ----------
    name : str
        Of this connection: the rank, "agent-2", "scheduler" or "client".
    role : str
        "scheduler", "client" or "worker".
    node : str
        Where I am.
    local_ranks : sequence of int
        The ranks of this node.
    brings : sequence of str
        Participants that come with me, whose workers the coordinator has to wait for.
    versions : mapping of str to str
        Versions of Python and packages, which must be rank 0's.
    """

    name: str
    role: str
    node: str
    local_ranks: Sequence[int] = ()
    brings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Welcome(Message):
    """To everybody: what rank 0 knows about the nodes.

    Parameters
    ----------
    facts : mapping of str to sequence
        By name of the node: its memory in bytes according to the launcher's controller, and the source of that figure.
    """

    facts: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Planned(Message):
    """From an agent: a participant is here, with these workers (name, threads, bytes of memory)."""

    participant: str
    workers: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Gone(Message):
    """From an agent: that participant is no longer here, and its workers are not either."""

    participant: str


@dataclass(frozen=True)
class SchedulerStarted(Message):
    """From the scheduler, and then to everybody: it listens at this address; the dashboard at this address and port."""

    address: str
    dashboard: Sequence[Any] | None = None


@dataclass(frozen=True)
class Ready(Message):
    """To everybody: all workers have joined, or as many as the user wants to wait for.

    Parameters
    ----------
    workers, nodes : int
        How many.
    threads, memory : sequence of int
        The least and the most of one worker; memory in bytes.
    """

    workers: int
    threads: Sequence[int]
    memory: Sequence[int]
    nodes: int


@dataclass(frozen=True)
class ReportFailure(Message):
    """From everybody: I cannot take part; the run ends with this error (name of its class, message)."""

    kind: str
    message: str


@dataclass(frozen=True)
class Failed(Message):
    """To everybody: the run has failed, end at once; this is the root cause."""

    kind: str
    message: str


@dataclass(frozen=True)
class Signalled(Message):
    """From everybody but the client: this participant was sent a signal, which is meant for the client."""

    number: int
    participant: str


@dataclass(frozen=True)
class Terminate(Message):
    """To the client: another rank was sent a signal."""

    number: int
    where: str


@dataclass(frozen=True)
class Beat(Message):
    """From the scheduler: my event loop runs."""


@dataclass(frozen=True)
class WorkerJoined(Message):
    """From the scheduler: I know this worker."""

    worker: str


@dataclass(frozen=True)
class Stopping(Message):
    """To the scheduler: the workers are about to leave."""


@dataclass(frozen=True)
class Forget(Message):
    """To the scheduler: these workers are lost."""

    workers: Sequence[str]


@dataclass(frozen=True)
class SchedulerDied(Message):
    """From an agent: the scheduler's process, which I have started, has ended in this way."""

    how: str


@dataclass(frozen=True)
class Done(Message):
    """From the client: the user's code has left the ``with`` block."""


@dataclass(frozen=True)
class Stop(Message):
    """To everybody: the run is over, end in good order."""


@dataclass(frozen=True)
class Timeline(Message):
    """From everybody: when what happened while I started."""

    who: str
    marks: _Marks


@dataclass(frozen=True)
class Closed(Message):
    """In both directions, the last word: I am leaving, and that is as it should be.

    Parameters
    ----------
    timeline : mapping of str to marks
        From rank 0 to the client: the marks of all processes, by who they are.
    """

    timeline: Mapping[str, _Marks] = field(default_factory=dict)


@dataclass(frozen=True)
class Ping(Message):
    """From everybody: a question whether rank 0 is still alive."""


@dataclass(frozen=True)
class Pong(Message):
    """To who has asked: it is."""


def _name(cls: type[Message]) -> str:
    """Name of a kind of message on the wire: "report_failure"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


_KINDS = types.MappingProxyType({_name(cls): cls for cls in Message.__subclasses__()})


def encode(message: Message, **more: Any) -> bytes:
    """Write a message as one line; `more` is for what the handshake adds to it."""
    return json.dumps({"op": _name(type(message)), **asdict(message), **more}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """Read a message; `None` if the line is none, or not whole."""
    found = decode_object(line)
    if found is None:
        return None
    cls = _KINDS.get(str(found.pop("op", "")))
    if cls is None:
        return None
    known = {entry.name for entry in fields(cls)}
    try:
        return cls(**{name: value for name, value in found.items() if name in known})
    except TypeError:
        return None


def decode_object(line: bytes) -> dict[str, Any] | None:
    """Read a line as a JSON object."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
