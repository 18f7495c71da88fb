"""`BatchletRunner`, the public face. A rank that only waits never imports more of Batchlet than this and its seat."""

from __future__ import annotations

import os

from .node.attach import may_sit_quickly, sit_quickly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Any

    from .client.session import Run
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
        self._made: Run | None = None
        if not may_sit_quickly(os.environ, options):
            self._make()

    @property
    def _run(self) -> Run:
        return self._made or self._make()

    def _make(self) -> Run:
        from .client.session import Run

        self._made = Run(asynchronous=self._asynchronous, options=self._options)
        return self._made

    def _sit(self) -> None:
        """A worker rank waits for the end, if nobody has asked this runner anything before."""
        if self._made is None:
            sit_quickly(os.environ, self._options)

    def on_terminate(self, callback: Callable[[int], object]) -> None:
        """Call a function when the run is told to end (SIGTERM from scancel or a time limit, Ctrl-C).

        It is called in the main thread with the signal's number, while the cluster still works; then `TerminatedError` is
        raised there. All of that, `finally` blocks included, has ``grace`` seconds.

        Parameters
        ----------
        callback : callable
            Takes the signal's number.
        """
        self._run.on_terminate(callback)

    @property
    def mode(self) -> str:
        """How this process was started: "mpi", "slurm", "allocation", "local", or as another package calls it."""
        return self._run.mode

    @property
    def role(self) -> str:
        """What this process is: "scheduler", "client", "worker", or "local" for all in one."""
        return self._run.role

    @property
    def run_id(self) -> str:
        """Name of this run, the same on all its ranks."""
        return self._run.run_id

    @property
    def plan(self) -> Plan:
        """What this rank and its node do, every figure with its source."""
        return self._run.plan

    @property
    def n_workers(self) -> int:
        """Workers that had joined when the cluster was ready."""
        return self._run.n_workers

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler, such as ``tls://10.0.0.1:40113``."""
        return self._run.scheduler_address

    @property
    def dashboard_link(self) -> str | None:
        """Address of the dashboard, `None` if there is none."""
        return self._run.dashboard_link

    @property
    def security(self) -> Any:
        """Dask's security, with which `Client` connects."""
        return self._run.security

    @property
    def status(self) -> Any:
        """Dask's status of this cluster; `Client` asks for it."""
        return self._run.status

    def __repr__(self) -> str:
        return repr(self._run)

    def __enter__(self) -> BatchletRunner:
        self._sit()
        self._run.enter()
        return self

    async def __aenter__(self) -> BatchletRunner:
        self._sit()
        await self._run.enter_async()
        return self

    def __await__(self) -> Generator[Any, None, BatchletRunner]:
        """Do nothing: `Client` awaits the cluster that it is given."""
        self._run.must_run("await")
        return self
        yield

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run.leave(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._run.leave_async(error)
