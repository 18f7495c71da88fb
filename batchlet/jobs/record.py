"""What becomes of submitted jobs: from what happens to what is to be done, without clock, batch system or Dask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .job_record import ENDED, HELD, JOINED, LOST, PENDING, RETIRING, RUNNING, SUBMITTED, JobRecord
from .lifetime import JoinTimes, Lifetime

__all__ = ["Ask", "Drop", "GiveUp", "JobBook", "JobRecord", "Replace", "Retire", "Succeed", "Tell"]

# Failures of the same kind in a row after which no job is replaced.
_EQUAL = 3
# Seconds after which a job is there to stay, and the batch system may be asked when it ends: it is asked seldom, and what
# goes wrong at the start is to be known first.
_SETTLED = 5.0


@dataclass(frozen=True)
class Tell:
    """Say this to the user."""

    text: str


@dataclass(frozen=True)
class Ask:
    """Ask the batch system soon: something is unexplained."""


@dataclass(frozen=True)
class Drop:
    """Forget a job that is lost; `text` is for the user, if there is one, with the tail of its log if `log` says so."""

    name: str
    text: str
    log: bool = True


@dataclass(frozen=True)
class Replace:
    """Submit another job."""


@dataclass(frozen=True)
class Succeed:
    """Count a job no more, for it will retire, and ask for another in its place."""

    name: str


@dataclass(frozen=True)
class Retire:
    """Have the workers of a job retire, until this moment at the latest (in seconds of `time.monotonic`)."""

    name: str
    until: float


@dataclass(frozen=True)
class GiveUp:
    """Submit nothing any more on your own."""

    text: str


Action = Tell | Ask | Drop | Replace | Succeed | Retire | GiveUp


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
    lifetime : Lifetime
        For how long jobs are used.
    """

    def __init__(
        self, max_restarts: int, start_timeout: float, patience: float = 30.0, lifetime: Lifetime | None = None
    ) -> None:
        self.records: dict[str, JobRecord] = {}
        self.join_times = JoinTimes()
        self.gave_up: str | None = None
        self._max_restarts = max_restarts
        self._start_timeout = start_timeout
        self._patience = patience
        self._lifetime = lifetime or Lifetime()
        self._names: dict[str, str] = {}
        self._restarts = 0
        self._failures: list[str] = []

    # What is there

    @property
    def active(self) -> list[JobRecord]:
        """Those from which something is to be expected."""
        return [record for record in self.records.values() if not record.is_over]

    @property
    def unexplained(self) -> list[JobRecord]:
        """Those of which only the batch system knows more: no agent of theirs is there, or nobody has said when they end."""
        return [
            record
            for record in self.active
            if record.job_id
            and not record.closing
            and (record.left is not None or len(record.hosts) < record.nodes or record.wants_limit)
        ]

    @property
    def waiting(self) -> list[str]:
        """Ids of those that may have to be cancelled because nobody else ends them: none of their agents is there."""
        return [record.job_id for record in self.active if record.job_id and not record.hosts]

    @property
    def queued(self) -> int:
        """How many wait in the batch system's queue."""
        return sum(record.is_queued for record in self.records.values())

    def by_id(self, job_id: str) -> JobRecord | None:
        """Find a job by the batch system's id."""
        return self.records.get(self._names.get(job_id, ""))

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

    def held(self, name: str, reason: str) -> None:
        """Note that a job is held back for a while."""
        record = self.records.get(name)
        if record is not None and not record.is_over:
            record.state, record.reason = HELD, reason

    def submitted(self, name: str, job_id: str, now: float | None = None) -> Iterator[Action]:
        """Note that a job has an id."""
        record = self.records[name]
        record.job_id = job_id
        self._names[job_id] = name
        if record.state == HELD:
            record.state, record.reason = SUBMITTED, ""
        if now is not None:
            record.since = now
        yield Ask()

    def not_submitted(self, names: Sequence[str], text: str) -> Iterator[Action]:
        """Note that jobs were refused, with the words of the batch system; it is told in one line."""
        told = (
            f"a job was not submitted: {text}" if len(names) == 1 else f"{len(names)} jobs were not submitted: {text}"
        )
        for name in names:
            yield from self._lose(self.records[name], text, told, log=False)
            told = ""

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
        serves = record.state in (JOINED, RETIRING)
        if state in (PENDING, RUNNING):
            if state == PENDING and record.left is not None and not record.hosts:
                # Back in the queue, because of its node for example. Of its waiting nothing more is said.
                if record.succeeded:
                    self.ended(record.name)
                    yield Drop(record.name, "", log=False)
                    return
                record.start_over()
                record.waited, serves = True, False
                yield Tell(
                    f"{record.title} waits again, as the batch system has requeued it" + f": {reason}" * bool(reason)
                )
            if record.left is None and not serves:
                record.state, record.reason = state, reason if state == PENDING else ""
            return
        if serves and record.left is None:
            # Its agents are there, and know better.
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
            if record.left is not None and len(record.hosts) == record.nodes:
                # Those that had gone are back: the batch system has requeued the job.
                record.start_over()
            if record.state not in (JOINED, RETIRING):
                record.state, record.reason = RUNNING, ""

    def serves(self, name: str, host: str, now: float) -> None:
        """Note that the workers of a node of a job are up."""
        record = self.records.get(name)
        if record is not None and not record.is_over:
            record.hosts[host] = True
            if record.joined is None and len(record.hosts) == record.nodes and all(record.hosts.values()):
                record.joined = now
                if record.state != RETIRING:
                    record.state = JOINED
                if not record.requeued:
                    self.join_times.add(now - record.since)
                self._failures.clear()
                self._restarts = 0

    def answered(self, job_ids: Iterable[str]) -> None:
        """Note that the batch system was asked about these, and has answered."""
        for job_id in job_ids:
            record = self.by_id(job_id)
            if record is not None and record.state == JOINED:
                record.asked += 1

    def ends(self, name: str, at: float) -> None:
        """Note when the batch system ends a job, in seconds of `time.monotonic`."""
        record = self.records.get(name)
        if record is not None and not record.is_over:
            record.limit = at if record.limit is None else min(at, record.limit)

    def retires(self, name: str) -> bool:
        """Note that a job retires, and say whether it had not yet."""
        record = self.records.get(name)
        if record is None or record.is_over or record.closing or record.state == RETIRING:
            return False
        record.state, record.succeeded = RETIRING, True
        return True

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
            record.left = now
            record.state = RUNNING if record.state != RETIRING else RETIRING
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
                continue
            yield from self._end_in_time(record, now)
        yield from self._waiting(now)

    # What follows

    def _end_in_time(self, record: JobRecord, now: float) -> Iterator[Action]:
        """Have a job that comes to its end replaced, and then retire."""
        if record.joined is None or record.state == RETIRING or record.left is not None:
            return
        if not record.settled and now - record.joined > _SETTLED:
            record.settled = True
            if record.wants_limit:
                yield Ask()
        schedule = self._lifetime.schedule(record.joined, record.limit, record.number, self.join_times.lead)
        if schedule is None:
            return
        if now >= schedule.succeed and not record.succeeded and self.gave_up is None:
            record.succeeded = True
            yield Succeed(record.name)
        if now >= schedule.retire:
            yield Retire(record.name, schedule.stop)

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
        yield Tell(_late(late, now))

    @staticmethod
    def _place(record: JobRecord) -> str:
        return f"on {', '.join(sorted(record.hosts))} " if record.hosts else ""

    def _lose(self, record: JobRecord, kind: str, text: str, *, log: bool = True) -> Iterator[Action]:
        record.state, record.reason = LOST, kind
        yield Drop(record.name, text, log)
        # The same on other nodes, under other numbers, is the same.
        self._failures.append(re.sub(r"\d+", "#", kind))
        if self.gave_up is not None or record.succeeded:
            return
        if len(self._failures) >= _EQUAL and len(set(self._failures[-_EQUAL:])) == 1:
            yield from self._give_up(f"{_EQUAL} jobs in a row were lost in the same way")
        elif self._restarts >= self._max_restarts:
            replaced = {0: "", 1: "; 1 job was replaced already"}.get(
                self._restarts, f"; {self._restarts} jobs were replaced already"
            )
            yield from self._give_up(f"max_restarts={self._max_restarts}{replaced}")
        else:
            self._restarts += 1
            yield Replace()

    def _give_up(self, why: str) -> Iterator[Action]:
        self.gave_up = why
        yield GiveUp(f"no job is submitted anew: {why}. cluster.scale() starts over")


def _late(late: Sequence[JobRecord], now: float) -> str:
    whose = f"{late[0].title} has" if len(late) == 1 else f"{len(late)} jobs have"
    reasons = sorted({record.reason for record in late if record.reason}) or ["the batch system does not say why"]
    longest = max(now - record.since for record in late)
    return f"{whose} been waiting for {longest:.0f} s (start_timeout): {', '.join(reasons)}"
