"""The messages that the processes of a run exchange with the coordinator on rank 0: one dataclass each, one JSON object a line.

From whom each of them comes, and what follows, stands in `batchlet.control.state`. A line that is no message of ours, or whose
fields are not of the kind that its dataclass says, is `None` to who reads it; the connection is then at its end. Fields that
a dataclass does not have are ignored: a `Hello` of another version of Batchlet must be understood far enough to be refused.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import EndError

__all__ = [
    "Beat",
    "Begin",
    "BlockOver",
    "Closed",
    "Done",
    "Failed",
    "Finish",
    "Forget",
    "Gone",
    "Hello",
    "Message",
    "Orders",
    "Others",
    "Pause",
    "Paused",
    "Ping",
    "Planned",
    "Pong",
    "Ready",
    "Remaining",
    "ReportFailure",
    "SchedulerDied",
    "SchedulerStarted",
    "Serving",
    "Signalled",
    "SocketTaken",
    "Stop",
    "Stopping",
    "Terminate",
    "Timeline",
    "Told",
    "Welcome",
    "WorkerJoined",
    "decode",
    "decode_object",
    "encode",
    "name_of",
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
    """To everybody, at the start of each block: what rank 0 knows about the nodes, and what the user asks for this time.

    Parameters
    ----------
    facts : mapping of str to sequence
        By name of the node: its memory in bytes according to the launcher's controller, and the source of that figure.
    launch : str
        Options and more; see `batchlet.node.inputs.to_text`.
    """

    facts: Mapping[str, Sequence[Any]]
    launch: str = ""


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

    @classmethod
    def of(cls, error: EndError) -> ReportFailure:
        """Make the message from the error."""
        return cls(type(error).__name__, str(error))


@dataclass(frozen=True)
class Failed(Message):
    """To everybody: the run has failed, end at once; this is the root cause."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: EndError) -> Failed:
        """Make the message from the error."""
        return cls(type(error).__name__, str(error))


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
    """From an agent: the scheduler's process, which I have started for that block, has ended in this way."""

    how: str
    block: int = 1


@dataclass(frozen=True)
class SocketTaken(Message):
    """From an agent: another user holds the name of this node's socket (their number, where that is known).

    The ranks have met under another name.
    """

    user: int | None = None


@dataclass(frozen=True)
class Done(Message):
    """From the client: the user's code has left the ``with`` block."""


@dataclass(frozen=True)
class Pause(Message):
    """To the agents: the block is over; close its workers, and wait for another one."""


@dataclass(frozen=True)
class Paused(Message):
    """From an agent: there are no workers any more."""


@dataclass(frozen=True)
class BlockOver(Message):
    """To the client: the workers are gone, or had their time to.

    Parameters
    ----------
    timeline : mapping of str to marks
        The marks of all processes, by who they are.
    """

    timeline: Mapping[str, _Marks] = field(default_factory=dict)


@dataclass(frozen=True)
class Begin(Message):
    """From the client: the user's code has entered another block; `launch` is as in `Welcome`."""

    launch: str


@dataclass(frozen=True)
class Finish(Message):
    """From the client: its process is about to end, and with it the run."""


@dataclass(frozen=True)
class Stop(Message):
    """To everybody: the run is over, end in good order."""


@dataclass(frozen=True)
class Timeline(Message):
    """From everybody: when what happened while I started."""

    who: str
    marks: _Marks


@dataclass(frozen=True)
class Orders(Message):
    """To the agent of a submitted job: what it is to host, and for whom; see `batchlet.node.job_agent`."""

    launch: str


@dataclass(frozen=True)
class Others(Message):
    """To the agent of a submitted job: the ids of those jobs of its cluster that have no agent yet."""

    jobs: Sequence[str]


@dataclass(frozen=True)
class Serving(Message):
    """From the agent of a submitted job: all its workers are up."""


@dataclass(frozen=True)
class Remaining(Message):
    """From the agent of a submitted job: the batch system ends the job in so many seconds."""

    seconds: int


@dataclass(frozen=True)
class Told(Message):
    """From the agent of a submitted job: something that the user is to know."""

    text: str


@dataclass(frozen=True)
class Closed(Message):
    """In both directions, the last word: I am leaving, and that is as it should be."""


@dataclass(frozen=True)
class Ping(Message):
    """From everybody: a question whether rank 0 is still alive."""


@dataclass(frozen=True)
class Pong(Message):
    """To who has asked: it is."""


def name_of(cls: type[Message]) -> str:
    """Name of a kind of message on the wire: "report_failure"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


# What JSON makes of a field, by the first word of its annotation.
_SHAPES = {"str": str, "int": int, "Sequence": list, "Mapping": dict}


@dataclass(frozen=True)
class _Kind:
    """A kind of message, and for each of its fields what JSON makes of it."""

    cls: type[Message]
    shapes: Mapping[str, tuple[type, ...]]


def _kind(cls: type[Message]) -> _Kind:
    shapes: dict[str, tuple[type, ...]] = {}
    for entry in fields(cls):
        annotation = str(entry.type).replace("_Marks", "Sequence")
        shape = _SHAPES[re.split(r"\W", annotation)[0]]
        shapes[entry.name] = (shape, type(None)) if annotation.endswith("| None") else (shape,)
    return _Kind(cls, shapes)


_KINDS = types.MappingProxyType({name_of(cls): _kind(cls) for cls in Message.__subclasses__()})


def encode(message: Message, **more: Any) -> bytes:
    """Write a message as one line; `more` is for what the handshake adds to it."""
    return json.dumps({"op": name_of(type(message)), **asdict(message), **more}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """Read a message; `None` if the line is none, or not whole."""
    found = decode_object(line)
    kind = _KINDS.get(str(found.pop("op", ""))) if found is not None else None
    if found is None or kind is None:
        return None
    known = {name: value for name, value in found.items() if name in kind.shapes}
    if not all(isinstance(value, kind.shapes[name]) for name, value in known.items()):
        return None
    try:
        return kind.cls(**known)
    except TypeError:
        # A field is missing that must be there.
        return None


def decode_object(line: bytes) -> dict[str, Any] | None:
    """Read a line as a JSON object."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
