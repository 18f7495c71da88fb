"""The run's clock, on the client: when the time ends, who has to be told before that, and that it is told at that moment.

The batch system is asked when somebody first wants to know, and once more shortly before the moment: a limit may be changed
while the job runs.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Mapping

from .. import report
from ..environments.allocation_end import AllocationEnd, allocation_end, answer_of, job_started, questions
from ..errors import SettingsError, TimeIsUpError
from ..settings import Settings
from ..values import seconds as parse_seconds
from ..walltime import TIME_LIMIT, at_clock, check_lead, default_lead, end_of_run, room_for_script, time_is_up

__all__ = ["RunClock"]

# Seconds for which the clock is not looked at: it may be set meanwhile.
_LOOK = 30.0
# Seconds before the moment at which the system is asked again, if it was last asked longer ago than the second number says.
_CONFIRM, _OLD = 15.0, 60.0

Callback = Callable[[], object]


class RunClock:
    """When a run ends, and what is to happen before.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    environ : mapping of str to str
        The process's environment.
    asks : bool
        Whether this process may ask the batch system: one of all ranks does.
    began : float
        When the run began, in seconds since the epoch.

    Attributes
    ----------
    callbacks : list of callable
        What the user wants to be called when the time is up.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], *, asks: bool, began: float) -> None:
        self.callbacks: list[Callback] = []
        self._settings = settings
        self._environ = environ
        self._asks = asks
        self._began = began
        self._changed = threading.Condition()
        self._answer: str | None = None
        self._asked = 0.0
        self._end: AllocationEnd | None = None
        # Seconds before the end, each as somebody has asked for it; the largest one counts. And what counts without any.
        self._leads: list[float] = []
        self._otherwise: float | None = None
        self._checked = False
        self._deliver: Callable[[TimeIsUpError, float], None] | None = None
        self._over = False

    @property
    def answer(self) -> str:
        """What the batch system has said of the job; asks it if nobody has yet."""
        self.end()
        return self._answer or ""

    @property
    def in_job(self) -> bool:
        """Whether there is a job of a batch system that can be asked."""
        return bool(questions(self._environ))

    def end(self) -> AllocationEnd | None:
        """Give the end of the run; asks the batch system if nobody has yet."""
        with self._changed:
            if self._answer is None:
                now = time.time()
                self._answer = answer_of(questions(self._environ), self._environ) if self._asks else ""
                self._end, self._asked = self._read(now), time.monotonic()
            return self._end

    def _read(self, now: float) -> AllocationEnd | None:
        started = job_started(self._environ, now)
        found = allocation_end(self._environ, self._answer or "", now=now, started=started)
        return end_of_run(found, self._settings.time_limit, self._began)

    def left(self) -> float | None:
        """Seconds that are left, at least 0; `None` if no end is known."""
        end = self.end()
        return None if end is None else max(0.0, end.at - time.time())

    def ends_at(self) -> datetime.datetime | None:
        """Give the end as a time in the local time zone; `None` if none is known."""
        end = self.end()
        return None if end is None else _at(end.at)

    def check(self) -> None:
        """Find out whether the script can be stopped when the user wants it to be, if anything was said of that.

        Raises
        ------
        PlanError
            If that moment is over.
        """
        settings = self._settings
        self._checked = True
        if not (self._leads or settings.stop_before or settings.requeue or settings.time_limit):
            return
        end = self.end()
        if end is None:
            return
        now = time.time()
        for lead in self._leads:
            check_lead(lead, end, now, "before_end")
        if settings.requeue:
            self._otherwise = default_lead(end.at - now)
        elif end.source == TIME_LIMIT:
            # There is nobody else who ends the run then.
            self._otherwise = 0.0
        if settings.stop_before is not None:
            check_lead(settings.stop_before, end, now, "stop_before")
            self._leads.append(settings.stop_before)

    def notes(self) -> list[str]:
        """Say what of the user's wishes has no effect here; a run without any job around it has no end, as everybody knows."""
        if self._settings.stop_before is None or self.end() is not None or not self.in_job:
            return []
        return [
            "stop_before has no effect: this job has no time limit, or its batch system does not tell it; time_limit= sets one"
        ]

    def before_end(self, lead: object, callback: Callback | None) -> datetime.datetime | None:
        """See the runner.

        Raises
        ------
        SettingsError
            If `lead` is no time, or nothing and ``stop_before`` is not given either.
        PlanError
            If that moment is over.
        """
        found = self._seconds(lead)
        if callback is not None and not callable(callback):
            raise SettingsError(f"before_end: {callback!r} cannot be called. Needed: a function without arguments.")
        end = self.end()
        # Above the block all ranks may be here, and none hears of another one's error: the run is refused when they have met.
        if found is not None and end is not None and self._checked:
            check_lead(found, end, time.time(), "before_end")
        with self._changed:
            if callback is not None:
                self.callbacks.append(callback)
            if found is not None:
                self._leads.append(found)
            self._changed.notify_all()
        self._watch()
        moment = self._moment()
        return None if moment is None else _at(moment)

    def _seconds(self, lead: object) -> float | None:
        """Read a time; `None` where the settings have one."""
        if lead is None:
            if self._settings.stop_before is None and not self._settings.requeue:
                raise SettingsError(
                    "before_end was given no time, and neither stop_before nor requeue was asked for. "
                    'Needed: how long before the end, such as before_end("5min", save).'
                )
            return None
        if isinstance(lead, datetime.timedelta):
            lead = lead.total_seconds()
        try:
            return parse_seconds(lead)
        except (ValueError, TypeError, OverflowError):
            needed = (parse_seconds.__doc__ or "").rstrip(".")
            raise SettingsError(
                f"before_end({lead!r}) cannot be used. Needed: {needed[:1].lower()}{needed[1:]}."
            ) from None

    # While the user's code runs

    def start(self, deliver: Callable[[TimeIsUpError, float], None]) -> None:
        """Have the script stopped at the moment that was asked for.

        Parameters
        ----------
        deliver : callable
            Stops it; gets the error, and the seconds that the script has from then on. Called in another thread.
        """
        self._deliver = deliver
        self._watch()

    def stop(self) -> None:
        """Stop nobody any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _watch(self) -> None:
        """Begin to wait, if there is something to wait for and nobody does."""
        with self._changed:
            if self._deliver is None or self._over or self._moment() is None:
                return
            deliver, self._deliver = self._deliver, None
        threading.Thread(target=self._wait, args=(deliver,), name="batchlet-clock", daemon=True).start()

    def _wait(self, deliver: Callable[[TimeIsUpError, float], None]) -> None:
        while True:
            with self._changed:
                moment = self._moment()
                if self._over or moment is None:
                    return
                wait = moment - time.time()
                confirmed = time.monotonic() - self._asked < _OLD
                if wait > 0 and (confirmed or wait > _CONFIRM):
                    # The clock may be set, and another moment may be added.
                    self._changed.wait(min(wait if confirmed else wait - _CONFIRM, _LOOK) or 0.01)
                    continue
                end, lead = self._end, self._lead()
                assert end is not None
                assert lead is not None
            if wait > 0:
                self._confirm()
                continue
            settings = self._settings
            error = time_is_up(lead, end)
            report.note(str(error))
            deliver(error, room_for_script(lead, settings.stop_timeout, settings.grace))
            return

    def _lead(self) -> float | None:
        """How long before the end the script is to be stopped."""
        return max(self._leads, default=self._otherwise)

    def _moment(self) -> float | None:
        """When that is, in seconds since the epoch; `None` if it is not to be stopped."""
        lead = self._lead()
        return None if self._end is None or lead is None else self._end.at - lead

    def _confirm(self) -> None:
        """Ask once more; a system that says nothing now has said it before."""
        now = time.time()
        answer = answer_of(questions(self._environ), self._environ)
        with self._changed:
            self._asked = time.monotonic()
            before, kept = self._end, self._answer
            self._answer = answer
            found = self._read(now)
            if before is None or found is None or found.source != before.source:
                self._answer = kept
                return
            if abs(found.at - before.at) > 1:
                self._end = found
        if abs(found.at - before.at) > 1:
            report.note(f"the time limit has been changed: the run ends at {at_clock(found.at)} ({found.source})")


def _at(moment: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(moment).astimezone()
