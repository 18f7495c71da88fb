"""How long a run has: from the end of its allocation and what the user asked for to the moment at which the script is stopped.

Nothing here reads the clock, the environment or the machine.
"""

from __future__ import annotations

import time

from . import report
from .environments.allocation_end import AllocationEnd
from .errors import PlanError, TimeIsUpError

__all__ = ["TIME_LIMIT", "at_clock", "check_lead", "default_lead", "end_of_run", "room_for_script", "time_is_up"]

#: The source of an end that the user has set.
TIME_LIMIT = "time_limit"
# Seconds: what stop_before is with requeue, where it is not given; a tenth of the time in between.
_LEAST_LEAD, _MOST_LEAD, _SHARE = 30.0, 300.0, 0.1
# Seconds for the last words after `stop_timeout`, and for the batch system to be told.
_FAREWELL = 5.0


def end_of_run(allocation: AllocationEnd | None, time_limit: float | None, began: float) -> AllocationEnd | None:
    """Give the end of a run: that of its allocation, or an earlier one that the user has asked for.

    Parameters
    ----------
    allocation : AllocationEnd, optional
        As the batch system has it.
    time_limit : float, optional
        Seconds from the start of the run.
    began : float
        When the run began, in seconds since the epoch.
    """
    if time_limit is None:
        return allocation
    own = AllocationEnd(began + time_limit, TIME_LIMIT)
    return own if allocation is None or own.at < allocation.at else allocation


def default_lead(left: float) -> float:
    """Seconds before the end at which a run that is to be requeued stops, where nobody has said; `left` seconds are left."""
    return min(_MOST_LEAD, max(_LEAST_LEAD, left * _SHARE), left / 2)


def check_lead(lead: float, end: AllocationEnd, now: float, called: str) -> None:
    """Refuse a moment that is over.

    Parameters
    ----------
    lead : float
        Seconds before the end.
    end : AllocationEnd
        It.
    now : float
        Seconds since the epoch.
    called : str
        What the user has given the lead as.

    Raises
    ------
    PlanError
        If fewer seconds than that are left.
    """
    left = end.at - now
    if lead < left:
        return
    ends = f"ends in {report.duration(left)}, at" if left > 0 else "was to end at"
    advice = "raise time_limit" if end.source == TIME_LIMIT else "ask for more time (in Slurm with --time)"
    raise PlanError(
        f"{called} ({report.duration(lead)}) is more than the time that is left: the run {ends} {at_clock(end.at)} "
        f"({end.source}). Give a shorter one, or {advice}."
    )


def room_for_script(lead: float, stop_timeout: float, grace: float) -> float:
    """Seconds that the script has from the moment on to save its work and end, before its process is ended."""
    if lead == 0:
        return grace
    return max(lead / 2, lead - stop_timeout - _FAREWELL)


def time_is_up(lead: float, end: AllocationEnd) -> TimeIsUpError:
    """Make the error for a moment so many seconds before the end."""
    return TimeIsUpError(
        f"time is up: the run ends at {at_clock(end.at)} ({end.source})"
        + (f", and is stopped {report.duration(lead)} before that" if lead else "")
    )


def at_clock(at: float) -> str:
    """Write a time of day for people, in the local time zone."""
    return time.strftime("%H:%M:%S", time.localtime(at))
