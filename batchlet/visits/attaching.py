"""`batchlet.attach()`: a Dask client of a run that is under way, in any process of the same user."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

from .. import report
from ..client.announce import dashboard_at
from ..errors import EndError, UsageError
from ..node import inputs
from ..versions import versions
from .probe import Cluster, security_of
from .visit import Visit, visit

__all__ = ["AttachedRun", "attach", "client_of"]

# Seconds for a client to close at the end of its cluster.
_CLOSING = 5.0


def attach(run: str | None = None, *, asynchronous: bool = False, **options: Any) -> Any:
    """Give a Dask client of a run of yours that is under way, in a notebook on the login node for example.

    The run must have been started with ``attach=True`` (or ``join=True``); clusters of jobs can always be attached to.

    Leaving (``client.close()``, the end of the process, its death) does nothing to the run, but that results which nobody else
    wants are forgotten. When the cluster goes, at the end of the run or of its ``with`` block, the client is closed.

    Parameters
    ----------
    run : str, optional
        The run's name, the beginning of that, the number of its job, or the path of its record; without it the only run that
        there is.
    asynchronous : bool
        As for Dask's `Client`.
    **options
        Of Dask's `Client`, such as ``set_as_default=False``.

    Returns
    -------
    distributed.Client
        Its ``cluster`` has the run's name and the dashboard's address.

    Raises
    ------
    UsageError
        If there is no such run, or more than one, or it has no cluster at this moment. At a prompt and in a notebook a
        `RuntimeError`, which, unlike the others of Batchlet, is no `SystemExit`; so for the one below.
    VersionMismatchError
        If this process has other versions of Python, Dask or Batchlet than the run.

    Examples
    --------
    >>> with batchlet.attach("4242") as client:  # doctest: +SKIP
    ...     print(client.ncores())
    """
    from ..client.refusal import refuse_alone

    try:
        return client_of(visit(run, versions()), asynchronous=asynchronous, **options)
    except EndError as error:
        refuse_alone(error)


def client_of(visit: Visit, **options: Any) -> Any:
    """Make the client of a visit; the visit ends with it.

    Raises
    ------
    UsageError
        If the run has no cluster at this moment.
    """
    cluster = visit.cluster
    if cluster is None:
        visit.close()
        raise UsageError(
            f"{visit.last_word[:1].upper()}{visit.last_word[1:]}."
            + ("" if visit.is_over else " Its script is starting, or between two `with` blocks: try again in a while.")
        )
    from ..dask_backend.compat.visiting import VisitingClient

    _find_modules(cluster)
    attached = AttachedRun(visit, cluster)
    # Not in the client's event loop, which must not wait for the end of a connection.
    leave = threading.Thread(target=visit.close, name="batchlet-leaving", daemon=True).start
    once: list[Callable[[], object]] = [leave]
    client = VisitingClient(attached, lambda: once and once.pop()(), **options)

    def changed() -> None:
        if visit.cluster is not cluster and not attached.closed:
            attached.closed = True
            report.note(f"{visit.last_word}; its client is closed")
            _close(client)

    visit.listen(changed)
    # It may have gone while the client connected.
    changed()
    return client


def _find_modules(cluster: Cluster) -> None:
    """Have what the run's results are made of be found where the run's script finds it; after all else."""
    path = inputs.from_text(cluster.launch)["sys_path"]
    sys.path += [place for place in path if place and place not in sys.path]


def _close(client: Any) -> None:
    """Close a client whose cluster has gone; in a thread of ours."""
    with contextlib.suppress(Exception):
        if client.asynchronous:
            client.loop.add_callback(client.close)
        else:
            client.close(timeout=_CLOSING)


class AttachedRun:
    """A run as the cluster of a visitor's client: to close it, as ``client.shutdown()`` does, leaves the run alone.

    Parameters
    ----------
    visit : Visit
        To the run.
    cluster : Cluster
        The run's.

    Attributes
    ----------
    closed : bool
        Whether it is no more, for this client at least.
    """

    def __init__(self, visit: Visit, cluster: Cluster) -> None:
        self.closed = False
        self.name = visit.run_id
        self.security = security_of(cluster)
        self._cluster = cluster
        self._job = visit.record.job

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler."""
        return self._cluster.address

    @property
    def dashboard_link(self) -> str | None:
        """Address of the dashboard, on the loopback of the scheduler's node; `None` if there is none."""
        cluster = self._cluster
        return None if cluster.dashboard is None else dashboard_at(cluster.dashboard, cluster.token)

    @property
    def status(self) -> Any:
        """Dask's status of this cluster."""
        from distributed.core import Status

        return Status.closed if self.closed else Status.running

    def close(self, timeout: object = None) -> AttachedRun:  # noqa: ARG002 - as Dask's clusters have it
        """Do nothing to the run: whoever visits it cannot end it. Can be awaited."""
        if not self.closed:
            self.closed = True
            report.note(f"run {self.name} goes on: only its own script ends it")
        return self

    def __await__(self) -> Generator[Any, None, AttachedRun]:
        return self
        yield

    def __repr__(self) -> str:
        return f"<run {self.name}{f' ({self._job})' if self._job else ''}, attached to>"
