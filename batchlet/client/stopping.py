"""When a run is to be stopped, and what becomes of its job then; costs a run nothing that has asked for neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import report
from ..errors import ClusterLostError
from ..node.rank import Rank
from ..plan import CLIENT, LOCAL

if TYPE_CHECKING:
    from ..control.signals import ClientGuard
    from .requeue import Requeue
    from .run_clock import RunClock

__all__ = ["Stopping"]

# Seconds: a job that has no more left than that was ended by its limit.
_OVER = 5.0


class Stopping:
    """The run's clock, and its job's return to the queue.

    Parameters
    ----------
    rank : Rank
        This process.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        settings = rank.settings
        self._wanted = bool(settings.stop_before or settings.requeue or settings.time_limit)
        self._clock: RunClock | None = None
        self._guard: ClientGuard | None = None
        self._requeue: Requeue | None = None

    @property
    def clock(self) -> RunClock:
        """The run's clock, made when somebody first looks at it."""
        if self._clock is None:
            from .run_clock import RunClock

            rank = self._rank
            # All ranks may run the script up to the block; that each of them asked the batch system would be too much for it.
            asks = rank.role in (CLIENT, LOCAL) or rank.environment.launcher(rank.environ) is not None
            began = time.time() - (time.monotonic() - rank.began)
            self._clock = RunClock(rank.settings, rank.environ, asks=asks, began=began)
            if self._guard is not None:
                self._clock.start(self._guard.deliver)
        return self._clock

    @property
    def attempt(self) -> int:
        """How many times the job has been started."""
        from ..environments.slurm_job import attempt

        return attempt(self._rank.environ)

    def check(self) -> None:
        """Refuse a run that would be stopped before it begins.

        Raises
        ------
        PlanError
            If ``stop_before`` is longer than the time that is left.
        """
        if self._wanted or self._clock is not None:
            self.clock.check()

    def callbacks(self) -> list[Callable[[], object]]:
        """Give what the user wants to be called before the end."""
        return list(self._clock.callbacks) if self._clock is not None else []

    def start(self, guard: ClientGuard | None) -> None:
        """Watch the clock from here on, and say which wishes have no effect.

        Parameters
        ----------
        guard : ClientGuard, optional
            Who brings the error to the user's code.
        """
        self._guard = guard
        if guard is None:
            return
        if self._wanted:
            notes = self.clock.notes()
            if self._rank.settings.requeue:
                self._requeue = self._make_requeue()
                notes += self._requeue.notes(self.clock.answer, in_job=self.clock.in_job)
            for text in notes:
                report.note(text)
        if self._clock is not None:
            self._clock.start(guard.deliver)

    def _make_requeue(self) -> Requeue:
        from .requeue import Requeue

        return Requeue(self._rank.environ, self._rank.settings.max_attempts)

    def after_start(self, error: BaseException) -> None:
        """Do as `after` where the run was stopped while it started.

        One that could not start will hardly do so the next time.
        """
        rank = self._rank
        if rank.settings.requeue and rank.role in (CLIENT, LOCAL) and not isinstance(error, ClusterLostError):
            self._requeue = self._requeue or self._make_requeue()
            self.after(error, lambda: None)

    def after(self, error: BaseException | None, let_go: Callable[[], object]) -> None:
        """Have the job started again, if the user's code has ended with an error for which that was asked for.

        Parameters
        ----------
        error : BaseException, optional
            What has ended it.
        let_go : callable
            Ends the other processes of the run.
        """
        if self._clock is not None:
            self._clock.stop()
        if self._requeue is not None:
            left = self.clock.left()
            self._requeue.after(error, let_go, time_over=left is not None and left <= _OVER)
