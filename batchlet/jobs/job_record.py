"""One submitted job, as the cluster knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ENDED", "HELD", "JOINED", "LOST", "PENDING", "RETIRING", "RUNNING", "SUBMITTED", "JobRecord"]

#: States of a job.
HELD, SUBMITTED, PENDING, RUNNING = "held", "submitted", "pending", "running"
JOINED, RETIRING, LOST, ENDED = "joined", "retiring", "lost", "ended"
# How often the batch system is asked when a job ends, where the job's own variables do not say.
_ASKED = 2


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
        "held" (back, by `max_pending`), "submitted", "pending", "running", "joined" (its workers are up), "retiring" (its end
        is near), "lost" or "ended" (because the cluster wanted it).
    reason : str
        Why it pends, or was lost, in the batch system's words.
    since : float
        When it was handed in, and before that when it was asked for, in seconds of `time.monotonic`.
    hosts : dict of str to bool
        Names of the nodes on which it is, and whether the workers of each are up.
    joined : float, optional
        When its workers were up.
    limit : float, optional
        When the batch system ends it, in seconds of `time.monotonic`, as far as that is known.
    succeeded : bool
        Whether it does not count any more: it will retire, and another was asked for in its place if there is need.
    """

    name: str
    nodes: int = 1
    job_id: str = ""
    state: str = SUBMITTED
    reason: str = ""
    since: float = 0.0
    hosts: dict[str, bool] = field(default_factory=dict)
    joined: float | None = None
    limit: float | None = None
    succeeded: bool = False
    closing: bool = False
    left: float | None = None
    waited: bool = False
    requeued: bool = False
    settled: bool = False
    asked: int = 0

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"job {self.job_id or self.name}"

    @property
    def number(self) -> int:
        """Which of the cluster's jobs it is."""
        digits = self.name.rpartition("-")[2]
        return int(digits) if digits.isdecimal() else 0

    @property
    def is_queued(self) -> bool:
        """Whether it waits in the batch system's queue, as far as is known."""
        return bool(self.job_id) and not self.hosts and self.state in (SUBMITTED, PENDING) and not self.closing

    @property
    def wants_limit(self) -> bool:
        """Whether the batch system is to be asked when it ends."""
        return self.settled and self.state == JOINED and self.limit is None and self.asked < _ASKED

    def start_over(self) -> None:
        """Note that the batch system has put it back into its queue: what was known of its time holds no more."""
        self.left = self.joined = self.limit = None
        self.asked, self.requeued, self.settled = 0, True, False
        if self.state != RETIRING:
            self.state = RUNNING

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be expected of it any more."""
        return self.state in (LOST, ENDED)

    def __str__(self) -> str:
        where = f" on {', '.join(sorted(self.hosts))}" if self.hosts else ""
        return f"{self.title}: {self.state}{where}" + (f" ({self.reason})" if self.reason else "")
