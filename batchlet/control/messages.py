"""The messages that the processes of a run exchange with the coordinator on rank 0: one dataclass each.

From whom each of them comes, and what follows, stands in `batchlet.control.state`; how they are written, in
`batchlet.control.wire`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import EndError

__all__ = [
    "AskLogs",
    "Beat",
    "Begin",
    "BlockOver",
    "Closed",
    "Done",
    "Failed",
    "Finish",
    "ForReport",
    "Forget",
    "Gone",
    "Hello",
    "KeptLogs",
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
    "Replaces",
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
        "scheduler", "client" or "worker"; of those from outside "guest" or "visitor".
    node : str
        Where I am.
    local_ranks : sequence of int
        The ranks of this node.
    brings : sequence of str
        Participants that come with me, whose workers the coordinator has to wait for.
    versions : mapping of str to str
        Versions of Python and packages, which must be rank 0's.
    replaceable_within : int
        Of an agent: if I die, there will be another one within so many seconds; 0 if there will be none.
    """

    name: str
    role: str
    node: str
    local_ranks: Sequence[int] = ()
    brings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    replaceable_within: int = 0


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
class Replaces(Message):
    """From an agent, first of all: I am in the place of one that has died.

    Parameters
    ----------
    how : str
        How that one has ended, as far as anybody here knows; for people.
    agents : sequence of str
        The names of those that were here, of whom rank 0 may not have heard.
    """

    how: str = ""
    agents: Sequence[str] = ()


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
    """To the agents: the block is over; close its workers, and wait for another one. To visitors: no cluster is there now."""


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
    use : mapping
        What the block did with what it was granted; `use` in the schema of reports.
    """

    timeline: Mapping[str, _Marks] = field(default_factory=dict)
    use: Mapping[str, Any] = field(default_factory=dict)


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
class ForReport(Message):
    """From everybody: something for the report; see `batchlet.run_report.told.Told.take`."""

    told: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class AskLogs(Message):
    """From the client: a question for the lines of logs that are kept, from this one on."""

    start: int


@dataclass(frozen=True)
class KeptLogs(Message):
    """To who has asked: the first of these lines, how many there are in all, and how many were left out before.

    Their form is that of `batchlet.run_report.log_lines`.
    """

    lines: Sequence[Sequence[Any]]
    count: int
    dropped: int


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
    """From an agent: something that the user is to know.

    Parameters
    ----------
    text : str
        A line.
    once : int
        1 where one such line is enough, whoever says it.
    """

    text: str
    once: int = 0


@dataclass(frozen=True)
class Closed(Message):
    """In both directions, the last word: I am leaving, and that is as it should be."""


@dataclass(frozen=True)
class Ping(Message):
    """From everybody: a question whether rank 0 is still alive."""


@dataclass(frozen=True)
class Pong(Message):
    """To who has asked: it is."""
