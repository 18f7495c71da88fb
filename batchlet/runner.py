"""`BatchletRunner`, the public face. A rank that only waits never imports more of Batchlet than this and how to attach."""

from __future__ import annotations

import os

from .node.attach import attach_early, may_attach_early

TYPE_CHECKING = False
if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType
    from typing import Any

    from .client.cluster_view import ClusterView
    from .client.session import Session
    from .plan import Plan

__all__ = ["BatchletRunner"]


class _Timed:
    """What a runner tells of its time."""

    _session: Session

    @property
    def time_left(self) -> float | None:
        """Seconds until the allocation ends, or ``time_limit`` does; at least 0, and `None` where no limit is known.

        The batch system is asked when this is first looked at, by the client alone: other ranks have what their variables tell.
        """
        return self._session.stopping.clock.left()

    @property
    def ends_at(self) -> datetime.datetime | None:
        """When that is, with the local time zone."""
        return self._session.stopping.clock.ends_at()

    @property
    def attempt(self) -> int:
        """How many times Slurm has started this job, this time included; 1 without a job."""
        return self._session.stopping.attempt

    def before_end(
        self, lead: float | str | datetime.timedelta | None = None, callback: Callable[[], object] | None = None
    ) -> datetime.datetime | None:
        """Stop the script so long before the end of its time: the callback, then `TimeIsUpError`, in the main thread.

        The cluster still works then. Several calls make one stop: at the earliest of their moments and that of ``stop_before``
        all callbacks are called, in the order in which they were given. What a callback raises is raised instead of
        `TimeIsUpError`. With ``requeue`` they are called for SIGTERM as well. Where no end is known, nothing happens.

        Parameters
        ----------
        lead : float, str or timedelta, optional
            Seconds before the end, or a text such as ``"5min"``; not needed with ``stop_before`` or ``requeue``.
        callback : callable, optional
            Saves the work; takes no arguments. It has until shortly before the end.

        Returns
        -------
        datetime or None
            When that will be; `None` where no end is known.

        Raises
        ------
        SettingsError
            If `lead` is no time.
        PlanError
            If that moment is over already.
        """
        from .errors import EndError

        session = self._session
        try:
            return session.stopping.clock.before_end(lead, callback)
        except EndError as error:
            session.refuse(error)


class BatchletRunner(_Timed):
    """One Dask cluster out of the processes of a batch job; a context manager, and a cluster object for Dask's client.

    Under ``srun -n 12 python script.py`` every process runs the script up to the ``with``. There, rank 0 becomes the
    scheduler, ranks 2 and up bring the workers, and rank 1 alone goes on with the script. When it leaves the block, all
    others end; nothing around the block is run by them. Without a launcher the same script gets a LocalCluster.

    In a notebook or at a prompt, `start` and `close` do what the two ends of the ``with`` do.

    Parameters
    ----------
    asynchronous : bool, default False
        Use with ``async with``, or ``await runner`` and ``await runner.close()``, beside
        ``Client(runner, asynchronous=True)``.
    **options
        The fields of `batchlet.settings.Settings`; each can also be given as an environment variable
        ``BATCHLET_DASK_CLUSTER__<NAME>``.

    Raises
    ------
    SettingsError
        If an option is unknown or cannot have that value.
    LauncherError
        If a launcher's variable is missing or malformed.
    PlanError
        If more was asked for than the allocation holds.

    Examples
    --------
    >>> with BatchletRunner() as runner:  # doctest: +SKIP
    ...     with Client(runner) as client:
    ...         print(client.submit(sum, [1, 2, 3]).result())
    """

    def __init__(self, *, asynchronous: bool = False, **options: Any) -> None:
        self._asynchronous = asynchronous
        self._options = options
        self._made: Session | None = None
        self._viewed: ClusterView | None = None
        if not may_attach_early(os.environ, options):
            self._make()

    @property
    def _view(self) -> ClusterView:
        if self._viewed is None:
            from .client.cluster_view import ClusterView

            self._viewed = ClusterView(self._session, self)
        return self._viewed

    @property
    def _session(self) -> Session:  # type: ignore[override]
        return self._made or self._make()

    def _make(self) -> Session:
        from .client.session import Session

        self._made = Session(asynchronous=self._asynchronous, options=self._options)
        return self._made

    def _attach(self) -> None:
        """A worker rank waits for the end, if nobody has asked this runner anything before."""
        if self._made is None:
            attach_early(os.environ, self._options)

    def on_terminate(self, callback: Callable[[int], object]) -> None:
        """Call a function when the run is told to end (SIGTERM from scancel or a time limit, Ctrl-C).

        It is called in the main thread with the signal's number, while the cluster still works; then `TerminatedError` is
        raised there. All of that, `finally` blocks included, has ``grace`` seconds.

        Parameters
        ----------
        callback : callable
            Takes the signal's number.
        """
        self._session.on_terminate(callback)

    def start(self) -> Any:
        """Start the cluster, as the ``with`` does; `close` ends it.

        For notebooks and prompts: where somebody types the code, an interrupt raises `KeyboardInterrupt` in what was typed
        and leaves the cluster alone. A process that ends without `close` ends its cluster too.

        Returns
        -------
        BatchletRunner
            Itself; in asynchronous mode something to ``await``. On ranks that are not the client's it never returns.

        Raises
        ------
        UsageError
            If this runner is running already, or is closed. At a prompt and in a notebook a `RuntimeError`, which, unlike the
            others of Batchlet, is no `SystemExit`; so for all that is refused before anything starts.
        StartTimeoutError
            If the cluster is not complete in time.
        """
        if self._asynchronous:
            return self._start_async()
        self._enter(by_hand=True)
        return self

    async def _start_async(self) -> BatchletRunner:
        await self._enter_async(by_hand=True)
        return self

    def _enter(self, *, by_hand: bool) -> None:
        self._attach()
        self._session.begin(started_by_hand=by_hand)
        self._session.enter()

    async def _enter_async(self, *, by_hand: bool) -> None:
        self._attach()
        self._session.begin(started_by_hand=by_hand)
        await self._session.enter_async()

    def close(self, timeout: float | None = None) -> Any:  # noqa: ARG002
        """End the cluster; does nothing if it is not running.

        Parameters
        ----------
        timeout : float, optional
            Not used, there because Dask's clusters have it: ``stop_timeout`` says how long the end may take.

        Returns
        -------
        None
            In asynchronous mode something to ``await``.
        """
        return self._session.close()

    @property
    def mode(self) -> str:
        """How this process was started: "mpi", "slurm", "allocation", "local", or as another package calls it."""
        return self._session.rank.info.mode

    @property
    def role(self) -> str:
        """What this process is: "scheduler", "client", "worker", or "local" for all in one."""
        return self._session.rank.role

    @property
    def run_id(self) -> str:
        """Name of this run, the same on all its ranks."""
        return self._session.rank.info.run_id

    @property
    def plan(self) -> Plan:
        """What this rank and its node do, every figure with its source (in Dask's own clusters: a set of workers' names)."""
        return self._session.plan

    @property
    def n_workers(self) -> int:
        """Workers that had joined when the cluster was ready."""
        return self._session.started("n_workers").workers

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler, such as ``tls://10.0.0.1:40113``; after the end Dask's word "<Not Connected>"."""
        if self._session.state == "closed":
            return "<Not Connected>"
        return self._session.started("scheduler_address").address

    @property
    def dashboard_link(self) -> str | None:
        """Address of the dashboard, `None` if there is none."""
        return self._session.dashboard_link

    @property
    def security(self) -> Any:
        """Dask's security, with which `Client` connects."""
        return self._session.started("security").security

    @property
    def status(self) -> Any:
        """Dask's status of this cluster; `Client` asks for it."""
        return self._session.status

    # What else Dask's cluster objects have

    @property
    def name(self) -> str:
        """Name of the cluster: that of the run."""
        return self.run_id

    @property
    def asynchronous(self) -> bool:
        """Whether it is started and closed with ``await``."""
        return self._asynchronous

    @property
    def loop(self) -> Any:
        """The event loop that the clients of this cluster share; `None` before there is one, and in asynchronous mode."""
        return self._view.loop()

    @property
    def scheduler_info(self) -> Any:
        """What the scheduler says of itself and all its workers; each time it is asked. After the end there are no workers."""
        return self._view.scheduler_info()

    @property
    def workers(self) -> dict[Any, Any]:
        """What the scheduler knows of each worker, by the worker's name."""
        return self._view.workers()

    @property
    def observed(self) -> set[Any]:
        """Names of the workers that are there; all that the launcher has started are asked for (`requested`)."""
        return set(self._view.workers())

    requested = observed

    def get_client(self) -> Any:
        """Give a client of this cluster: the current one if it is one, else a new one."""
        return self._view.client()

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until the cluster has so many workers.

        Parameters
        ----------
        n_workers : int
            How many.
        timeout : float or str, optional
            Seconds, or a text such as "2 minutes".

        Raises
        ------
        TimeoutError
            If they are not there in time.
        """
        return self._view.wait_for_workers(n_workers, timeout)

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool | Iterable[str] = True) -> Any:
        """Give what scheduler and workers have logged.

        Parameters
        ----------
        cluster, scheduler : bool
            Whether that of the cluster object and of the scheduler is wanted.
        workers : bool or iterable of str
            Whether that of the workers is wanted, or the addresses of those whose is.

        Returns
        -------
        mapping of str to str
            "Cluster", "Scheduler" and the addresses of living workers. "Warnings", where there are any and all workers are
            asked for: what was said anywhere at level "warning" and above, each line with its rank and node.
        """
        return self._view.logs(cluster=cluster, scheduler=scheduler, workers=workers)

    logs = get_logs

    def scale(self, *_: Any, **__: Any) -> Any:
        """Refuse: the launcher has settled how many workers there are.

        Raises
        ------
        UsageError
            Always; the message says which clusters grow.
        """
        self._view.refuse_to_scale("scale")

    def adapt(self, *_: Any, **__: Any) -> Any:
        """Refuse, as `scale` does."""
        self._view.refuse_to_scale("adapt")

    # How it shows itself, starts and ends

    def __repr__(self) -> str:
        return repr(self._session)

    def _repr_html_(self) -> str:
        from .client.cluster_view import html

        return html(self._session)

    def __enter__(self) -> BatchletRunner:
        self._enter(by_hand=False)
        return self

    async def __aenter__(self) -> BatchletRunner:
        await self._enter_async(by_hand=False)
        return self

    def __await__(self) -> Generator[Any, None, BatchletRunner]:
        """Start it unless it runs: `Client` awaits the cluster that it is given."""
        if self._made is None or self._made.state != "running":
            yield from self._start_async().__await__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.leave(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.leave_async(error)
