"""When the workers of a job retire before its end, and when its successor is asked for: so that it is up by then."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["JoinTimes", "Lifetime", "Schedule"]

# Part of a job's time that its workers have for retiring, and its bounds in seconds.
_PART, _LEAST, _MOST = 10, 15.0, 300.0
# Part of the job's time over which jobs that began together are spread.
_SPREAD = 10
# Seconds before the end by which the agents are told to stop: they end processes and remove files.
_MARGIN = 5.0
# The golden ratio's fraction: multiples of it lie evenly between 0 and 1, however many there are.
_GOLDEN = 0.6180339887498949
# Seconds that a job takes to join, as long as none was seen; and how many of the latest are looked at.
_FLOOR, _SEEN = 5.0, 8


@dataclass(frozen=True)
class Schedule:
    """The last moments of a job, in seconds of `time.monotonic`.

    Parameters
    ----------
    succeed : float
        When another job is asked for in its place.
    retire : float
        When its workers take no new tasks, finish what they are at, and have their results brought to others.
    stop : float
        When its agents are told to end, whatever is left.
    """

    succeed: float
    retire: float
    stop: float


@dataclass(frozen=True)
class Lifetime:
    """For how long a job is used.

    Parameters
    ----------
    retire_before : float, optional
        Seconds before its end at which a job begins to retire; `None` for a tenth of its time, 15 s at least, 5 min at most.
        It is never more than half of the job's time.
    job_lifetime : float, optional
        Seconds after which a job is at its end even if the batch system would leave it longer. Nothing is cut short by it:
        what is computing then, or has nobody to take over its results, may take as long again.
    """

    retire_before: float | None = None
    job_lifetime: float | None = None

    def end(self, joined: float, limit: float | None) -> float | None:
        """Give the end of a job, by the batch system's limit or the user's; `None` where it has none."""
        ends = [limit, None if self.job_lifetime is None else joined + self.job_lifetime]
        return min((end for end in ends if end is not None), default=None)

    def schedule(self, joined: float, limit: float | None, number: int, lead: float) -> Schedule | None:
        """Plan the last moments of a job; `None` where it has no end.

        Parameters
        ----------
        joined : float
            When its workers were up.
        limit : float, optional
            When the batch system ends it.
        number : int
            Which of the cluster's jobs it is: jobs that began at one moment do not retire at one moment.
        lead : float
            Seconds that a job takes to join.
        """
        end = self.end(joined, limit)
        if end is None:
            return None
        # The batch system's word is the last, the user's is not.
        last = min(math.inf if limit is None else limit, end + (self.job_lifetime or 0.0))
        length = max(0.0, end - joined)
        usual = min(max(length / _PART, _LEAST), _MOST)
        reserve = min(usual if self.retire_before is None else self.retire_before, length / 2)
        retire = end - reserve - min(reserve, length / _SPREAD) * (number * _GOLDEN % 1.0)
        return Schedule(retire - min(lead, (retire - joined) / 2), retire, last - min(_MARGIN, reserve / 3))


class JoinTimes:
    """How long jobs have taken to join, from when they were handed in."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_SEEN)

    def add(self, seconds: float) -> None:
        """Note that a job has taken so long."""
        self._seen.append(seconds)

    @property
    def lead(self) -> float:
        """Seconds to allow for the next job: the longest that was seen of late, and never too few."""
        return max(_FLOOR, *self._seen, 0.0)
