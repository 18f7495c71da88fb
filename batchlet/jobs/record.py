"""What becomes of submitted jobs: from what happens to what is to be done, without clock, batch system or Dask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Ask", "Drop", "GiveUp", "JobBook", "JobRecord", "Replace", "Tell"]

# Failures of the same kind in a row after which no job is replaced.
_EQUAL = 3
#: States of a job.
SUBMITTED, PENDING, RUNNING, JOINED, LOST, ENDED = "submitted", "pending", "running", "joined", "lost", "ended"


@dataclass
class JobRecord:
    """One job.

    Parameters
    ----------
    name : str
        The cluster's name for it, with which those of its workers begin.
    nodes : int
        How many nodes it has.
    job_id : str
        The batch system's; empty until it is submitted.
    state : str
        "submitted", "pending", "running", "joined" (its workers are up), "lost" or "ended" (because the cluster wanted it).
    reason : str
        Why it pends, or was lost, in the batch system's words.
    since : float
        When it was asked for, in seconds of `time.monotonic`.
    hosts : dict of str to bool
        Names of the nodes on which it is, and whether the workers of each are up.
    """

    name: str
    nodes: int = 1
    job_id: str = ""
    state: str = SUBMITTED
    reason: str = ""
    since: float = 0.0
    hosts: dict[str, bool] = field(default_factory=dict)
    closing: bool = False
    left: float | None = None
    waited: bool = False

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"job {self.job_id or self.name}"

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be expected of it any more."""
        return self.state in (LOST, ENDED)

    def __str__(self) -> str:
        where = f" on {', '.join(sorted(self.hosts))}" if self.hosts else ""
        return f"{self.title}: {self.state}{where}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Tell:
    """Say this to the user."""

    text: str


@dataclass(frozen=True)
class Ask:
    """Ask the batch system soon: something is unexplained."""


@dataclass(frozen=True)
class Drop:
    """Forget a job that is lost; `text` is for the user, with the tail of its log if `log` says so."""

    name: str
    text: str
    log: bool = True


@dataclass(frozen=True)
class Replace:
    """Submit another job."""


@dataclass(frozen=True)
class GiveUp:
    """Submit nothing any more on your own."""

    text: str


Action = Tell | Ask | Drop | Replace | GiveUp


class JobBook:
    """All jobs of a cluster.

    Parameters
    ----------
    max_restarts : int
        How many lost jobs are replaced before one has come up.
    start_timeout : float
        Seconds after which a job that still pends is worth a line.
    patience : float
        Seconds to wait for the batch system's explanation why a job has gone.
    """

    def __init__(self, max_restarts: int, start_timeout: float, patience: float = 20.0) -> None:
        self.records: dict[str, JobRecord] = {}
        self.gave_up: str | None = None
        self._max_restarts = max_restarts
        self._start_timeout = start_timeout
        self._patience = patience
        self._restarts = 0
        self._failures: list[str] = []

    # What is there

    @property
    def active(self) -> list[JobRecord]:
        """Those from which something is to be expected."""
        return [record for record in self.records.values() if not record.is_over]

    @property
    def unexplained(self) -> list[JobRecord]:
        """Those of which only the batch system knows more: they are submitted and no agent of theirs is there."""
        return [
            record
            for record in self.active
            if record.job_id and not record.closing and (record.left is not None or len(record.hosts) < record.nodes)
        ]

    def by_id(self, job_id: str) -> JobRecord | None:
        """Find a job by the batch system's id."""
        return next((record for record in self.records.values() if record.job_id == job_id), None)

    def by_use(self, names: Iterable[str]) -> list[str]:
        """Sort jobs by the use that they are: those that wait first, the newest first."""
        order = {name: number for number, name in enumerate(self.records)}

        def use(name: str) -> tuple[bool, bool, int]:
            job = self.records.get(name)
            return (bool(job and job.hosts), bool(job and job.state == RUNNING), -order.get(name, len(order)))

        return sorted(names, key=use)

    # What happens

    def asked(self, name: str, nodes: int, now: float) -> None:
        """Note that the cluster wants a job."""
        self.records[name] = JobRecord(name, nodes, since=now)

    def fresh(self) -> None:
        """Note that the user has asked for jobs anew: earlier failures count no more."""
        self.gave_up = None
        self._restarts = 0
        self._failures.clear()

    def submitted(self, name: str, job_id: str) -> Iterator[Action]:
        """Note that a job has an id."""
        self.records[name].job_id = job_id
        yield Ask()

    def not_submitted(self, name: str, text: str) -> Iterator[Action]:
        """Note that a job was refused, with the words of the batch system."""
        yield from self._lose(self.records[name], text, f"a job was not submitted: {text}")

    def seen(self, job_id: str, state: str, reason: str, ended: str = "") -> Iterator[Action]:
        """Note what the batch system says of a job.

        Parameters
        ----------
        job_id : str
            Which one.
        state : str
            "pending", "running", or anything else for one that is over.
        reason : str
            Why it pends, or what has become of it.
        ended : str
            How it has ended: exit code, node.
        """
        record = self.by_id(job_id)
        if record is None or record.is_over:
            return
        if state in (PENDING, RUNNING):
            if state == PENDING and record.left is not None and not record.hosts:
                # Back in the queue, because of its node for example. Of its waiting nothing more is said.
                record.left, record.waited = None, True
                yield Tell(
                    f"{record.title} waits again, as the batch system has requeued it" + f": {reason}" * bool(reason)
                )
            if record.left is None and record.state != JOINED:
                record.state, record.reason = state, reason if state == PENDING else ""
            return
        if record.closing:
            self.ended(record.name)
            return
        how = ", ".join(part for part in (reason, ended) if part) or "it is gone, and the batch system does not say why"
        yield from self._lose(record, reason or "gone", f"{record.title} {self._place(record)}is lost: {how}")

    def came(self, name: str, host: str) -> None:
        """Note that an agent of a job has come."""
        record = self.records.get(name)
        if record is not None and not record.is_over:
            record.hosts.setdefault(host, False)
            if len(record.hosts) == record.nodes:
                # Those that had gone are back: the batch system has requeued the job.
                record.left = None
            if record.state != JOINED:
                record.state, record.reason = RUNNING, ""

    def serves(self, name: str, host: str) -> None:
        """Note that the workers of a node of a job are up."""
        record = self.records.get(name)
        if record is not None and not record.is_over:
            record.hosts[host] = True
            if len(record.hosts) == record.nodes and all(record.hosts.values()):
                record.state = JOINED
                self._failures.clear()
                self._restarts = 0

    def went(self, name: str, host: str, now: float, reason: str = "") -> Iterator[Action]:
        """Note that an agent of a job has gone, or is about to."""
        record = self.records.get(name)
        if record is None or record.is_over:
            return
        record.hosts.pop(host, None)
        if record.closing:
            if not record.hosts:
                self.ended(name)
            return
        if record.left is None:
            record.left, record.state = now, RUNNING
        record.reason = record.reason or reason
        yield Ask()

    def failed(self, name: str, host: str, text: str) -> Iterator[Action]:
        """Note that an agent could not start its workers."""
        record = self.records.get(name)
        if record is not None and not record.is_over and not record.closing:
            yield from self._lose(
                record, text.rstrip("."), f"{record.title} on node {host} is of no use: {text.rstrip('.')}", log=False
            )

    def closes(self, name: str) -> None:
        """Note that the cluster does not want a job any more."""
        if name in self.records:
            self.records[name].closing = True

    def ended(self, name: str) -> None:
        """Note that such a job is over."""
        record = self.records.get(name)
        if record is not None and not record.is_over:
            record.state, record.reason = ENDED, ""

    def time_passed(self, now: float) -> Iterator[Action]:
        """Note that time passes."""
        for record in self.active:
            if record.closing:
                continue
            if record.left is not None and now - record.left > self._patience:
                how = record.reason or "its agent is gone, and the batch system does not say why"
                yield from self._lose(record, how, f"{record.title} {self._place(record)}is lost: {how}")
        yield from self._waiting(now)

    # What follows

    def _waiting(self, now: float) -> Iterator[Action]:
        """Say once of each job that it waits, in one line for all those of a moment, with the reasons if there are any."""
        late = [
            record
            for record in self.active
            if not (record.closing or record.waited)
            and now - record.since > self._start_timeout + (self._patience if record.state == SUBMITTED else 0)
            and record.state in (SUBMITTED, PENDING)
        ]
        if not late:
            return
        for record in late:
            record.waited = True
        whose = f"{late[0].title} has" if len(late) == 1 else f"{len(late)} jobs have"
        reasons = sorted({record.reason for record in late if record.reason}) or ["the batch system does not say why"]
        longest = max(now - record.since for record in late)
        yield Tell(f"{whose} been waiting for {longest:.0f} s (start_timeout): {', '.join(reasons)}")

    @staticmethod
    def _place(record: JobRecord) -> str:
        return f"on {', '.join(sorted(record.hosts))} " if record.hosts else ""

    def _lose(self, record: JobRecord, kind: str, text: str, *, log: bool = True) -> Iterator[Action]:
        record.state, record.reason = LOST, kind
        yield Drop(record.name, text, log)
        # The same on other nodes, under other numbers, is the same.
        self._failures.append(re.sub(r"\d+", "#", kind))
        if self.gave_up is not None:
            return
        if len(self._failures) >= _EQUAL and len(set(self._failures[-_EQUAL:])) == 1:
            yield from self._give_up(f"{_EQUAL} jobs in a row were lost in the same way")
        elif self._restarts >= self._max_restarts:
            yield from self._give_up(f"{self._restarts} jobs were replaced already (max_restarts)")
        else:
            self._restarts += 1
            yield Replace()

    def _give_up(self, why: str) -> Iterator[Action]:
        self.gave_up = why
        yield GiveUp(f"no job is submitted anew: {why}. cluster.scale() starts over")
