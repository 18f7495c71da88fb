"""Where a cluster lives, as the client sees it: one small protocol, and what passes through it.

A backend is chosen by the environment: *ranks* (the processes that a launcher has started, or that Batchlet has started in an
allocation) or *local* (this process). Its methods block; where the user's code is asynchronous, the session calls them in a
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import EndError
from ..node.rank import Rank
from ..plan import Plan

__all__ = ["Backend", "News", "Outcome", "StartInfo"]


@dataclass(frozen=True)
class StartInfo:
    """A cluster that is ready.

    Parameters
    ----------
    address : str
        Of the scheduler.
    dashboard : tuple of str and int, optional
        Address and port of the dashboard; `None` where there is none.
    token : str, optional
        The secret part of the dashboard's address.
    node : str
        The scheduler's.
    security : distributed.Security
        With which Dask's client connects.
    plan : Plan
        Of the client's node.
    workers, nodes : int
        How many.
    threads, memory : tuple of int
        The least and the most of one worker; memory in bytes.
    run_id : str, optional
        Name of the run, by which others can join it; `None` where nobody can.
    """

    address: str
    dashboard: tuple[str, int] | None
    token: str | None
    node: str
    security: Any
    plan: Plan
    workers: int
    nodes: int
    threads: tuple[int, int]
    memory: tuple[int, int]
    run_id: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What is known of a cluster that has ended in good order.

    Parameters
    ----------
    timelines : mapping of str to marks
        When what happened while it started, by the process.
    use : mapping
        What it did with what it was granted; `use` in the schema of reports.
    """

    timelines: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    use: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class News:
    """Whom a backend tells what happens while the user's code runs, in a thread of its own.

    Parameters
    ----------
    terminate : callable
        Another process of the run was sent this signal; number, and where that was.
    fail : callable
        The run has failed; the root cause, and whether anybody else tells the user.
    """

    terminate: Callable[[int, str], None]
    fail: Callable[[EndError, bool], None]


class Backend(Protocol):
    """Where a cluster lives."""

    @property
    def rank(self) -> Rank:
        """Who this process is, as far as that is known."""

    def check(self) -> None:
        """Find out, before anything is started, whether the cluster can be.

        Raises
        ------
        EndError
            If not.
        """

    def start(self, check: Callable[[], None]) -> StartInfo:
        """Start the cluster, or take part in it; only the client comes back.

        Parameters
        ----------
        check : callable
            Called on the client alone, before anything is started or as soon as the other ranks can hear of it; raises what
            forbids the run.

        Raises
        ------
        EndError
            The root cause, if the cluster cannot start.
        SystemExit
            On all ranks but the client's, at the end of the run.
        """

    def for_report(self, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Tell something for the report; see `batchlet.run_report.told.Told.take`."""

    def listen(self, news: News) -> None:
        """Tell of what happens from here on, and of what has happened since the start."""

    @property
    def connected(self) -> bool:
        """Whether this process has been in touch with rank 0."""

    def root_cause(self, seconds: float = 0.0) -> EndError | None:
        """What has ended the run, if it has failed; waits so many seconds for the news."""

    def note(self, text: str) -> Path:
        """Leave a text for the run's owner alone, until the run is over; gives the file.

        Raises
        ------
        EndError
            If that is not possible.
        """

    def stop(self) -> Outcome:
        """End the cluster in good order: the user's code has left the block."""

    def let_go(self) -> None:
        """Tell the others that the run is over, since this process is about to be ended the hard way."""

    def close(self) -> None:
        """Leave nothing behind; called at the end, whatever has happened, and twice does no harm."""

    def give_up(self, error: EndError) -> bool:
        """Leave the run because of an error while starting, and see that all others do.

        Returns
        -------
        bool
            Whether somebody else has told the user of it.
        """

    def abandon(self, code: int) -> None:
        """Free processes that may wait for this one; the last thing before it exits with this code."""
