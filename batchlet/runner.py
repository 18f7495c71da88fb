"""`BatchletRunner`, the public face. A rank that only waits never imports more of Batchlet than this and how to attach."""

from __future__ import annotations

import os

from .node.attach import attach_early, may_attach_early

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Any

    from .client.session import Session
    from .plan import Plan

__all__ = ["BatchletRunner"]


class BatchletRunner:
    """One Dask cluster out of the processes of a batch job; a context manager.

    Under ``srun -n 12 python script.py`` every process runs the script up to the ``with``. There, rank 0 becomes the
    scheduler, ranks 2 and up bring the workers, and rank 1 alone goes on with the script. When it leaves the block, all
    others end; nothing around the block is run by them. Without a launcher the same script gets a LocalCluster.

    Parameters
    ----------
    asynchronous : bool, default False
        Use with ``async with``, beside ``Client(runner, asynchronous=True)``.
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
        if not may_attach_early(os.environ, options):
            self._make()

    @property
    def _session(self) -> Session:
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
        """What this rank and its node do, every figure with its source."""
        return self._session.plan

    @property
    def n_workers(self) -> int:
        """Workers that had joined when the cluster was ready."""
        return self._session.started("n_workers").workers

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler, such as ``tls://10.0.0.1:40113``."""
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

    def __repr__(self) -> str:
        return repr(self._session)

    def __enter__(self) -> BatchletRunner:
        self._attach()
        self._session.enter()
        return self

    async def __aenter__(self) -> BatchletRunner:
        self._attach()
        await self._session.enter_async()
        return self

    def __await__(self) -> Generator[Any, None, BatchletRunner]:
        """Do nothing: `Client` awaits the cluster that it is given."""
        self._session.started("await")
        return self
        yield

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.leave(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.leave_async(error)
