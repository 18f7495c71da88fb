"""`BatchletCluster`: a Dask cluster whose workers come with jobs that are submitted to a batch system."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import secrets
import socket
import weakref
from collections.abc import Generator
from typing import Any

import dask.config
from dask.utils import parse_bytes
from distributed import Scheduler
from distributed.core import Status
from distributed.deploy import Cluster
from distributed.utils import NoOpAwaitable

from .. import report
from ..client.announce import dashboard_at
from ..client.cluster_view import warnings_of
from ..client.refusal import refuse_alone as refuse
from ..dask_backend import dashboard, tls, tuning
from ..dask_backend.log_tap import LogTap
from ..dask_backend.logs import configure_logging, hush
from ..dask_backend.scheduler import dashboard_place
from ..dask_backend.scheduler import options as scheduler_options
from ..dask_backend.worker_logs import all_in_one
from ..environments import detected
from ..errors import EndError, SettingsError
from ..network import reachable_host
from ..protocols import security_off
from ..security import dashboard_token
from ..settings import describe_bytes
from . import job as jobs_of_dask
from .adaptive import JobAdaptive
from .keeper import JobKeeper
from .kept_cluster import KeptCluster
from .options import JobOptions, resolve
from .record import JobRecord
from .table import table

__all__ = ["BatchletCluster"]


class BatchletCluster(KeptCluster):
    """A Dask cluster that grows and shrinks by jobs of a batch system; the scheduler is in this process.

    Parameters
    ----------
    system : str
        The batch system: "slurm", and those that `batchlet.jobs.systems` knows besides.
    jobs : int, default 0
        Jobs to submit at once; `scale` and `adapt` submit more.
    asynchronous : bool, default False
        Use with ``async with``, or ``await cluster`` and ``await cluster.close()``.
    **options
        The fields of `batchlet.settings.Settings` (``cores`` and ``memory`` are those of one node of a job), each also
        as a variable ``BATCHLET_DASK_CLUSTER__<NAME>``; all others are those of dask-jobqueue's jobs (``queue``,
        ``account``, ``job_extra_directives``, ...), whose configuration files ``jobqueue.<system>.*`` hold.
        For gridengine also ``pe`` (the parallel environment that grants the job's slots, by default "smp"; "" for none),
        and ``h_vmem`` or ``mem_free`` (memory for each slot, such as "4G"; True for the job's memory by its slots).

    Raises
    ------
    SettingsError
        If an option is unknown or cannot have that value.
    PlanError
        If more workers were asked for than fit.
    SubmitError
        If the batch system does not take the first jobs.

    Examples
    --------
    >>> with BatchletCluster("slurm", jobs=2, cores=8, memory="16GiB") as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    def __init__(
        self,
        system: str | None = None,
        jobs: int | None = None,
        *,
        n_workers: int | None = None,
        name: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        **options: Any,
    ) -> None:
        self.status = Status.created
        run_id = name or f"jobs-{secrets.token_hex(4)}"
        try:
            self._job = job = resolve({"submit": system, "jobs": jobs, **options})
            self._host = job.settings.scheduler_options.get("host") or reachable_host(
                socket.gethostname().split(".")[0], 2, job.scheduler_interface
            )
            self.keeper = keeper = JobKeeper(job, run_id, weakref.proxy(self))
            keeper.prepare()
        except EndError as error:
            self.status = Status.closed
            refuse(error)
        settings = job.settings
        self._first = max(settings.jobs, math.ceil((n_workers or 0) / job.size.workers))
        self._problem: EndError | None = None
        self._opened = False
        self._tap: LogTap | None = None
        self._numbers = itertools.count()
        self._token = dashboard_token(keeper.secret) if settings.security is not False else None
        security = tls.security_for(settings, keeper.credentials)
        keywords = scheduler_options(settings, self._host, security, self._token)
        configure_logging()
        try:
            super().__init__(
                job_cls=jobs_of_dask.job_class(job.system, keeper, job.size.nodes),
                loop=loop,
                security=security,
                silence_logs=False,
                name=run_id,
                asynchronous=asynchronous,
                scheduler_options={**keywords, "interface": None},
                scheduler_cls=self._make_scheduler,
                protocol="tls://" if security.require_encryption else settings.protocol or "tcp://",
                **job.for_record(keeper.record, keeper.logs.own),
            )
        except BaseException as error:
            keeper.remove_files()
            if not self._opened and (isinstance(error, ValueError) or (isinstance(error, OSError) and error.filename)):
                refuse(SettingsError(_words_of_dask(error)))
            raise
        if self._problem is not None:
            self.close()
            refuse(self._problem)

    def _make_scheduler(self, **keywords: Any) -> Any:
        with dask.config.set(tuning.for_jobs()):
            scheduler = Scheduler(**keywords)
        if self._token is not None:
            dashboard.guard(scheduler, self._token)
        return scheduler

    async def _start(self) -> None:
        await super()._start()
        if self._opened:
            return
        self._opened = True
        logs = self.keeper.account.logs
        self._tap = LogTap(lambda line: logs.log(*line), os.uname().nodename.split(".")[0], all_in_one, warn=False)
        self.new_spec["group"] = [f"-{number}" for number in range(self._job.size.workers)]
        try:
            self.keeper.open(self._host)
            self.keeper.account.begin(self.scheduler)
            if self._first:
                await self.keeper.check(self.job_script())
        except EndError as error:
            # A SystemExit, as our errors are, must not leave a task: it would end the event loop.
            self._problem = error
            return
        _announce(self._job, self.dashboard_link, secure=self._token is not None)
        self._scale_to(self._first)

    def __await__(self) -> Generator[Any, Any, BatchletCluster]:
        yield from super().__await__()
        if self._problem is not None:
            yield from self._close().__await__()
            refuse(self._problem)
        return self

    async def _close(self) -> None:
        if self.status != Status.closed and not self.keeper.is_closing:
            hush()
            await self.keeper.cancel_waiting()
            await self.keeper.dismiss_guests()
            self.keeper.account.end()
            await super()._close()
            await self.keeper.close()
            await asyncio.to_thread(self.keeper.account.close)
        else:
            await super()._close()
        if self._tap is not None:
            self._tap.close()

    def __enter__(self) -> BatchletCluster:
        super().__enter__()
        self.keeper.account.enter(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> Any:
        self.keeper.account.leave(error)
        return super().__exit__(kind, error, traceback)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> Any:
        self.keeper.account.leave(error)
        return await super().__aexit__(kind, error, traceback)

    # Jobs

    @property
    def jobs(self) -> list[JobRecord]:
        """All jobs of this cluster, each with its state and, where it pends or is lost, the reason."""
        return sorted(self.keeper.book.records.values(), key=lambda job: job.number)

    def scale(
        self, n: int | None = None, jobs: int = 0, memory: str | int | None = None, cores: int | None = None
    ) -> Any:
        """Ask for as many jobs as it takes.

        Parameters
        ----------
        n : int, optional
            Workers.
        jobs : int
            Jobs.
        memory : str or int, optional
            Memory of all jobs together.
        cores : int, optional
            CPUs of all jobs together.

        Raises
        ------
        SubmitError
            If the batch system would never start such a job; in synchronous mode only.
        """
        wanted = math.ceil(max(jobs, *self._job.size.jobs(n or 0, cores or 0, parse_bytes(memory or 0))))
        self.keeper.book.fresh()
        if self._adaptive is not None:
            self._adaptive.stop()
        if wanted and not self.keeper.desk.checked and not self.called_from_running_loop:
            problem = self.sync(self._find_problem)
            if problem is not None:
                refuse(problem)
        self._scale_to(wanted)
        return NoOpAwaitable() if self.asynchronous else None

    async def _find_problem(self) -> EndError | None:
        try:
            await self.keeper.check(self.job_script())
        except EndError as error:
            return error
        return None

    def adapt(
        self,
        *,
        minimum_jobs: int = 0,
        maximum_jobs: float = math.inf,
        minimum: int = 0,
        maximum: float = math.inf,
        minimum_cores: int = 0,
        maximum_cores: float = math.inf,
        minimum_memory: str | int = 0,
        maximum_memory: str | int | None = None,
        **options: Any,
    ) -> Any:
        """Have as many jobs as there is work for, in whole jobs.

        Parameters
        ----------
        minimum_jobs, maximum_jobs : int
            How many jobs at least and at most.
        minimum, maximum : int
            The same in workers.
        minimum_cores, maximum_cores : int
            The same in CPUs.
        minimum_memory, maximum_memory : int or str
            The same in memory.
        **options
            Of Dask's `distributed.deploy.Adaptive`: ``interval``, ``wait_count``, ``target_duration``.

        Returns
        -------
        JobAdaptive
            What does it; its ``log`` tells what it has decided.
        """
        size = self._job.size
        least = math.ceil(max(minimum_jobs, *size.jobs(minimum, minimum_cores, parse_bytes(minimum_memory))))
        memory = math.inf if maximum_memory is None else parse_bytes(maximum_memory)
        most = min(maximum_jobs, *size.jobs(maximum, maximum_cores, memory))
        self.keeper.book.fresh()
        most = most if math.isinf(most) else max(least, math.floor(most))
        return Cluster.adapt(self, Adaptive=JobAdaptive, minimum=least, maximum=most, **options)

    # What people see

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Any:
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
            As Dask's clusters give it. Where anything was said at level "warning" or above and all workers are asked for, also
            "Warnings": what the scheduler, any worker, be it gone by now, and their hosts have said, by any logger, each line
            with its process and node.
        """
        return self.sync(self._find_logs, cluster, scheduler, workers)

    async def _find_logs(self, cluster: bool, scheduler: bool, workers: Any) -> Any:
        found = await super().get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
        if workers is True:
            kept = self.keeper.account.logs
            found.update(warnings_of(kept.lines(), kept.dropped))
        return found

    @property
    def dashboard_link(self) -> str:
        """Address of the dashboard, on this machine's loopback and under a secret path; empty if there is none."""
        place = dashboard_place(self.scheduler) if self.scheduler is not None else None
        return dashboard_at(place, self._token) if place is not None else ""

    def _repr_html_(self, cluster_status: Any = None) -> str:
        return str(super()._repr_html_(cluster_status)) + table(self.jobs)


def _announce(job: JobOptions, link: str, *, secure: bool) -> None:
    """Say what each job will bring."""
    size = job.size
    hidden = secure and report.others_may_read(shared=detected(os.environ).output_is_shared(os.environ))
    place = "cluster.dashboard_link has the dashboard's address" if hidden else f"dashboard {link}"
    report.note(
        f"{job.system.name}: each job {f'{size.nodes} nodes x ' if size.nodes > 1 else ''}"
        f"{report.count(size.workers_per_node, 'worker')} x {report.count(size.threads[0], 'thread')} x "
        f"{describe_bytes(size.limit)}"
        + ("" if secure else f", {security_off(job.settings.protocol)}")
        + (f", {place}" if link else "")
    )


def _words_of_dask(error: ValueError | OSError) -> str:
    """Say what dask-jobqueue has against the options of a job, most often one that it does not know."""
    if isinstance(error, OSError):
        return f"{error.filename} cannot be used: {error.strerror}."
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is not None:
        return f"Unknown keyword {unknown[1]}: neither Batchlet nor dask-jobqueue's jobs of this batch system have it."
    return str(error).splitlines()[0]
