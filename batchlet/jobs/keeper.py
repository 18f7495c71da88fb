"""The keeper of a cluster's jobs: has them submitted, hears their agents, asks the batch system, and ends them all.

All of it is in the cluster's event loop; what is decided stands in `batchlet.jobs.record`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import report
from ..control.messages import Others, SchedulerStarted
from ..dask_backend.scheduler import dashboard_place
from ..errors import RendezvousError
from ..node import inputs
from ..rendezvous import CoordinatorRecord, FileRendezvous, register
from ..security import Credentials
from . import hub as h
from . import record as r
from .account import ClusterAccount
from .custodian import Custodian
from .desk import Desk
from .job_logs import JobLogs
from .leaving import Departures
from .lifetime import Lifetime
from .options import JobOptions
from .submitter import Submitter
from .watch import Watch

__all__ = ["JobKeeper"]

_TICK = 1.0
# Seconds in which jobs that end come together for one word to the custodian.
_TOGETHER = 0.1


class JobKeeper:
    """Keeps the jobs of one cluster.

    Parameters
    ----------
    options : JobOptions
        What each of them is like, and where they are submitted.
    run_id : str
        Name of the cluster.
    cluster : BatchletCluster
        Is told which of them are lost.
    """

    def __init__(self, options: JobOptions, run_id: str, cluster: Any) -> None:
        settings = options.settings
        lifetime = Lifetime(settings.retire_before, settings.job_lifetime)
        self.book = r.JobBook(settings.max_restarts, settings.start_timeout, lifetime=lifetime)
        self.secret = secrets.token_hex(32)
        self.credentials = Credentials.generate() if settings.security is True else None
        self._system = options.system
        self._options = options
        self._given = settings.given
        self._cluster = cluster
        self._rendezvous = FileRendezvous(settings.rendezvous_dir, run_id, os.uname().nodename)
        self.record = str(self._rendezvous.directory / f"{run_id}.json")
        self.logs = JobLogs(options.keywords.get("log_directory"), self._rendezvous.directory, run_id)
        self.account = ClusterAccount(settings, run_id, options.system.name, self._heard)
        self._hub: h.Hub | None = None
        self._custodian: Custodian | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self.desk = Desk(options.system)
        self._submitter: Submitter | None = None
        self._closing = False
        self._telling = False
        self._others: list[str] = []
        self._said_once: set[str] = set()

    @property
    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._closing

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of the batch system's commands."""
        return self.desk.environ

    # From the start to the end

    def prepare(self) -> None:
        """Make the directory of the record and of the logs.

        Raises
        ------
        RendezvousError
            If that cannot be.
        """
        self._rendezvous.check()
        try:
            self.logs.make()
        except RendezvousError:
            self.remove_files()
            raise

    def open(self, host: str) -> None:
        """Let agents come: a port for them, the record, and the custodian; in the cluster's event loop."""
        self._loop = asyncio.get_running_loop()
        self._custodian = Custodian(self.desk.environ)
        self._hub = h.Hub(host, self.secret, self.credentials, self._orders, self._welcome, self.account.heard)
        where = (self._rendezvous.run_id, f"{self._system.name} jobs", host, self._hub.port)
        self._published = _new_record(*where, self.secret, self.credentials)
        entry = str(register.entry_of(self._published) or self.record)
        self._custodian.files([entry, self.record, *self.logs.files, f"{self._rendezvous.directory}/"])
        self._watch = Watch(
            self._system, self.desk.environ, self.book, lambda *seen: self._follow(self.book.seen(*seen))
        )
        self._departures = Departures(
            self.book, self.desk, self._cluster, self._hub.stop, self._options.settings.stop_timeout
        )
        most = self._options.settings.max_pending
        self._submitter = Submitter(
            self._system, self.book, self.desk, most, self._prepare, self._follow, self._tell_custodian
        )
        self._publish()
        self._tasks += [
            self._loop.create_task(task) for task in (self._watch.run(), self._tick(), self._submitter.run())
        ]

    def _publish(self) -> None:
        """Write the record, if it is not there: an agent that has lost this client, for whatever reason, removes it."""
        self.prepare()
        if self._rendezvous.latest() is None:
            self._rendezvous.publish(self._published)
            register.enter(self._published, self._rendezvous.file)

    async def dismiss_guests(self) -> None:
        """Have nodes of other jobs leave, while the scheduler is there."""
        if self._hub is not None:
            await self._loop.run_in_executor(None, self._hub.dismiss_guests, self._options.settings.stop_timeout)

    async def cancel_waiting(self) -> None:
        """Cancel the jobs that have not begun, before others end and make room for them."""
        if self._submitter is None:
            return
        await self._submitter.close()
        leaving = self._loop.create_task(self._departures.close())
        waiting = [job for job in self.book.active if not job.hosts]
        for job in waiting:
            self.book.closes(job.name)
        if waiting:
            await self.desk.cancel(job.job_id for job in waiting if job.job_id)
            for job in waiting:
                self.book.ended(job.name)
        await leaving

    async def close(self) -> None:
        """End everything; what the batch system does not cancel now, the custodian goes on with."""
        self._closing = True
        self.desk.close()
        if self._hub is not None:
            await self._departures.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = [job.job_id for job in self.book.active if job.job_id]
        if left:
            await self.desk.cancel(left)
        if self._hub is not None:
            await self._loop.run_in_executor(None, self._hub.close)
            self._rendezvous.withdraw()
            register.leave(self._published)
        self.remove_files()
        if self._custodian is not None and self.desk.uncancelled:
            report.note("jobs could not be cancelled; a process that stays on this machine goes on trying")
            self._custodian.abandon()
        elif self._custodian is not None:
            self._custodian.dismiss()

    def remove_files(self) -> None:
        """Remove what `prepare` has made."""
        self.logs.remove()
        with contextlib.suppress(OSError):
            self._rendezvous.directory.rmdir()

    # Jobs

    async def check(self, script: str) -> None:
        """Have the batch system look at the script of a job, once.

        Raises
        ------
        SubmitError
            If such a job can never start.
        """
        await self.desk.check(
            script, Path(self.logs.own or self._rendezvous.directory) / f".{self._rendezvous.run_id}.sh"
        )

    def submit(self, job: Any) -> None:
        """Have a job submitted."""
        self.book.asked(job.name, job.nodes, time.monotonic())
        if self._submitter is not None:
            self._submitter.add(job)

    async def _prepare(self, job: Any) -> None:
        self._publish()
        await self.check(job.job_script())

    async def close_job(self, name: str) -> None:
        """End a job: its results go to others first, unless the whole cluster ends."""
        if self._hub is not None:
            await self._departures.close_job(name)
            self._tell_custodian_soon()

    def let_succeeded_go(self, names: Iterable[str] | None = None) -> None:
        """Have jobs that count no more, these or all, retire before their time."""
        if self._hub is not None:
            self._departures.let_go(
                job.name for job in self.book.active if job.succeeded and (names is None or job.name in names)
            )

    def _tell_custodian(self) -> None:
        """Say which jobs there are; to be told of each of a thousand jobs that end, would take long."""
        self._telling = False
        ids = [job.job_id for job in self.book.active if job.job_id]
        if self._custodian is not None:
            self._custodian.jobs(self._system.cancel(ids) if ids else [])

    def _tell_custodian_soon(self) -> None:
        if not self._telling:
            self._telling = True
            self._loop.call_later(_TOGETHER, self._tell_custodian)

    def _tell_agents(self) -> None:
        """Say which jobs have nobody else who would end them if this client were gone."""
        others, self._others = self._others, self.book.waiting
        if self._hub is not None and others != self._others:
            self._hub.broadcast(Others(self._others))

    # What happens

    def _orders(self, name: str, number: int) -> str | None:
        """Give the orders for a node of a job; in the hub's thread."""
        job, size = self.book.records.get(name), self._options.size
        if job is None or job.closing or job.is_over or number >= size.nodes:
            return None
        return inputs.to_text(
            inputs.for_agent(
                self._given,
                time.monotonic(),
                scheduler=self._cluster.scheduler_contact,
                names=size.names(name, number),
                threads=list(size.threads),
                limit=size.limit,
                total=size.workers * max(1, len(self._cluster.worker_spec)),
                ways=self._system.name,
                others=self._others,
            )
        )

    def _welcome(self) -> tuple[str, SchedulerStarted]:
        """Give what a node of another job, or a visitor, is to know; in the hub's thread."""
        started = SchedulerStarted(self._cluster.scheduler_contact, dashboard_place(self._cluster.scheduler))
        return inputs.to_text(inputs.for_agent(self._given, time.monotonic())), started

    def _heard(self, event: h.Event) -> None:
        """Take in what has happened; in the hub's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._advance, event)

    def _advance(self, event: h.Event) -> None:
        name, node, now = event.job, event.node, time.monotonic()
        title = self.book.records[name].title if name in self.book.records else name
        match event:
            case h.Came():
                self.book.came(name, node)
            case h.Serves():
                self.book.serves(name, node, now)
            case h.Ends(_, _, seconds):
                self.book.ends(name, now + seconds)
            case h.News(_, _, text, once):
                if text not in self._said_once:
                    self.account.say(f"{title} on node {node}: {text}")
                if once:
                    self._said_once.add(text)
            case h.Guest(_, _, gone, said):
                self._cluster.lose(list(gone), wanted=True)
                if said is not None:
                    self.account.say(said)
            case h.Failure(_, _, text):
                self._follow(self.book.failed(name, node, text))
            case h.Warned():
                self._departures.hurry(name, self._options.settings.grace)
            case h.Went(_, _, number, _):
                job = self.book.records.get(name)
                self._cluster.lose(self._options.size.names(name, number), wanted=job is None or not job.closing)
                self._follow(self.book.went(name, node, now))
                if job is not None and job.is_over:
                    self._departures.went(name)
                    self._tell_custodian_soon()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._follow(self.book.time_passed(time.monotonic()))
            self._tell_agents()
            if self._submitter is not None:
                self._submitter.look()

    def _follow(self, actions: Iterable[r.Action]) -> None:
        """Do what follows."""
        for action in actions:
            if self._closing:
                return
            match action:
                case r.Tell(text) | r.GiveUp(text):
                    self.account.say(text)
                case r.Ask():
                    self._watch.ask()
                case r.Drop(name, text, log):
                    if text:
                        self.account.say(text + (self.logs.end_of(self.book.records[name].job_id) if log else ""))
                    self._lost(name)
                case r.Replace():
                    self._cluster.replace_job()
                case r.Succeed(name):
                    self._cluster.part_with(name)
                    self._cluster.replace_job()
                case r.Retire(name, until):
                    self._departures.retire(name, until)

    def _lost(self, name: str) -> None:
        """Forget a job; what may still run of it (some of its nodes) is ended."""
        job = self.book.records[name]
        if self._hub is not None:
            self._hub.stop(name)
        if job.job_id:
            self._tasks.append(self._loop.create_task(self.desk.cancel([job.job_id])))
        self._cluster.part_with(name)
        self._tell_custodian_soon()


def _new_record(
    run_id: str, job: str, host: str, port: int, secret: str, credentials: Credentials | None
) -> CoordinatorRecord:
    node, nonce = os.uname().nodename.split(".")[0], secrets.token_hex(16)
    certificate = credentials.certificate if credentials is not None else ""
    return CoordinatorRecord(run_id, nonce, node, host, port, secret, certificate, job, time.time())
