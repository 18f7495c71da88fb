"""A visit: the connection by which somebody outside of a run hears what becomes of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..command_line import Parser
from ..control.connection import Connection
from ..control.messages import Failed, Hello, Message, Pause, SchedulerStarted, Stop, Welcome
from ..control.visitors import VISITOR
from ..errors import ClusterLostError, EndError, UsageError, VersionMismatchError
from ..rendezvous import CoordinatorRecord
from ..settings import PREFIX
from . import find
from .find import Run
from .probe import Cluster, Life, Seen, cluster_of, probe

__all__ = ["Visit", "choose", "run_parser", "visit"]

# Seconds in which a coordinator that is alive lets a visitor in.
_CONNECT = 10.0
# Seconds without a word after which the run counts as lost, as `scheduler_timeout` has it.
_PATIENCE = 60.0


def choose(word: str | None) -> tuple[Run, Seen]:
    """Find the run that somebody means, and see that it is alive; what is left of dead ones is removed.

    Parameters
    ----------
    word : str, optional
        Its name, the beginning of that, the number of its job, or the path of its record; without it the only run that
        there is.

    Raises
    ------
    UsageError
        If there is no such run, or more than one.
    """
    if word is not None and ("/" in word or word.endswith(".json")):
        known = found = [find.by_path(word)]
    else:
        known = find.runs()
        found = find.matching(word, known)
    seen = dict(zip(found, probe(found), strict=True))
    for run, life in seen.items():
        if life.life is Life.DEAD:
            find.forget(run)
    alive = [run for run in found if seen[run].life is Life.ALIVE]
    if len(alive) == 1:
        return alive[0], seen[alive[0]]
    if len(alive) > 1:
        raise find.several(word, alive)
    if len(found) == 1:
        raise UsageError(_why_not(found[0], seen[found[0]].life))
    raise find.none_found(word, [] if word is None else [run for run in known if run.record is not None])


def _why_not(run: Run, life: Life) -> str:
    record = run.record
    if record is None:
        what = run.problem or f"there is no record {run.file}"
        return f"Run {run.name} is over, or cannot be attached to from here: {what}."
    where = f"at {record.host}:{record.port}, node {record.node}"
    if life is Life.DEAD:
        return f"Run {run.name} is over: {where}, there is nobody of it any more. Its record, {run.file}, is removed."
    if life is Life.OVER:
        return f"Run {run.name} is over, or about to be."
    if life is Life.ELSEWHERE:
        return (
            f"Run {run.name} can be attached to from node {record.node} alone: it listens on the loopback there. "
            "Other machines reach a run that is in a job of a batch system, or has interface=; where it begins with "
            f"batchlet.early, {PREFIX}ATTACH=true has to be set before its start."
        )
    return (
        f"Run {run.name} does not answer {where}: it, its node or the network between is not there, or very slow. "
        f"If it is over, remove {run.file}."
    )


def run_parser(word: str, description: str, **more: Any) -> Parser:
    """Make the parser of a command that is about a run.

    Parameters
    ----------
    word : str
        The command.
    description : str
        What it does.
    **more
        As for `argparse.ArgumentParser`.
    """
    parser = Parser(prog=f"python -m batchlet {word}", description=description, allow_abbrev=False, **more)
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="its name, how that begins, or its job (default: the only run)"
    )
    return parser


def visit(word: str | None, versions: Mapping[str, str]) -> Visit:
    """Begin a visit to the run that somebody means; see `choose` and `Visit`.

    Raises
    ------
    EndError
        If that is not possible.
    """
    found, _ = choose(word)
    assert found.record is not None
    return Visit(found.record, versions)


class Visit:
    """A visit to a run.

    Parameters
    ----------
    record : CoordinatorRecord
        The run's.
    versions : mapping of str to str
        Of this process; without any it may look only.

    Raises
    ------
    EndError
        If the run does not let this process in.
    """

    def __init__(self, record: CoordinatorRecord, versions: Mapping[str, str]) -> None:
        self.record = record
        self.run_id = record.run_id
        self._changed = threading.Condition()
        self._cluster: Cluster | None = None
        self._known = False
        self._end: EndError | None = None
        self._over = False
        self._listeners: list[Callable[[], object]] = []
        self._welcome: Welcome | None = None
        hello = Hello(VISITOR, VISITOR, socket.gethostname().split(".")[0], versions=versions)
        self._connection = Connection(record, hello, time.monotonic() + _CONNECT, _PATIENCE)
        self._connection.listen(self._hear)
        with self._changed:
            self._changed.wait_for(lambda: self._known or self._over, _CONNECT)
        if isinstance(self._end, (UsageError, VersionMismatchError)):
            self.close()
            raise self._end

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that there is at this moment."""
        return self._cluster

    @property
    def is_over(self) -> bool:
        """Whether the run is over."""
        return self._over

    @property
    def last_word(self) -> str:
        """What became of the run, for people."""
        if self._end is None:
            return f"run {self.run_id} is over" if self._over else f"run {self.run_id} has no cluster at the moment"
        if isinstance(self._end, ClusterLostError) and not self._connection.coordinator_is_alive:
            return f"run {self.run_id} is lost: nothing is heard any more from node {self.record.node}"
        return f"run {self.run_id} has failed: {self._end}"

    def listen(self, listener: Callable[[], object]) -> None:
        """Call a function whenever the cluster goes or another one comes, and at the end of the run; in a thread."""
        self._listeners.append(listener)

    def wait(self, seconds: float) -> None:
        """Wait for the next news, so long at most."""
        with self._changed:
            if not self._over:
                self._changed.wait(seconds)

    def close(self) -> None:
        """Leave; twice does no harm."""
        self._listeners.clear()
        self._connection.close()

    def _hear(self, message: Message) -> None:
        """Take in what the coordinator says; in the connection's thread."""
        cluster, over, end = self._cluster, False, None
        match message:
            case Welcome():
                self._welcome = message
                return
            case SchedulerStarted() if self._welcome is not None:
                cluster = cluster_of(self.record, self._connection.credentials, self._welcome, message)
            case Pause():
                cluster = None
            case Stop():
                cluster, over = None, True
            case Failed():
                cluster, over, end = None, True, self._connection.failure
            case _:
                return
        with self._changed:
            if self._over:
                # The connection ends, which is no news.
                return
            self._cluster, self._over, self._end, self._known = cluster, over, end, True
            self._changed.notify_all()
        for listener in list(self._listeners):
            listener()
