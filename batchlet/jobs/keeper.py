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
from ..control.messages import Others
from ..errors import InputError
from ..node import inputs
from ..rendezvous import CoordinatorRecord, FileRendezvous
from ..security import Credentials
from . import hub as h
from . import record as r
from .custodian import Custodian
from .desk import Desk
from .options import JobOptions
from .watch import Watch

__all__ = ["JobKeeper"]

_TICK = 1.0
_TAIL = 3


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
        self.book = r.JobBook(settings.max_restarts, settings.start_timeout)
        self.secret = secrets.token_hex(32)
        self.credentials = Credentials.generate() if settings.security is True else None
        self._system = options.system
        self._options = options
        self._given = settings.given
        self._cluster = cluster
        self._rendezvous = FileRendezvous(settings.rendezvous_dir, run_id, os.uname().nodename)
        self.record = str(self._rendezvous.directory / f"{run_id}.json")
        self.logs: str | None = None
        if not options.keywords.get("log_directory") and not any(map(str.isspace, str(self._rendezvous.directory))):
            self.logs = str(self._rendezvous.directory / f"{run_id}.logs")
        self._hub: h.Hub | None = None
        self._custodian: Custodian | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._ended: dict[str, asyncio.Event] = {}
        self._desk = Desk(options.system)
        self._closing = False

    @property
    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._closing

    @property
    def checked(self) -> bool:
        """Whether the batch system has looked at the script of a job."""
        return self._desk.checked

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of the batch system's commands."""
        return self._desk.environ

    # From the start to the end

    def prepare(self) -> None:
        """Make the directory of the record and of the logs.

        Raises
        ------
        RendezvousError
            If that cannot be.
        """
        self._rendezvous.check()
        if self.logs is not None:
            Path(self.logs).mkdir(mode=0o700, exist_ok=True)

    def open(self, host: str) -> None:
        """Let agents come: a port for them, the record, and the custodian; in the cluster's event loop."""
        self._loop = asyncio.get_running_loop()
        self._custodian = Custodian(self._desk.environ)
        self._custodian.files([self.record, *([self.logs] if self.logs else []), f"{self._rendezvous.directory}/"])
        self._hub = h.Hub(host, self.secret, self.credentials, self._orders, self._welcome, self._heard)
        certificate = self.credentials.certificate if self.credentials is not None else ""
        node, run_id = os.uname().nodename.split(".")[0], self._rendezvous.run_id
        self._published = CoordinatorRecord(
            run_id, secrets.token_hex(16), node, host, self._hub.port, self.secret, certificate
        )
        self._publish()
        self._watch = Watch(self._system, self._desk.environ, self.book, self._seen)
        self._tasks += [self._loop.create_task(self._watch.run()), self._loop.create_task(self._tick())]

    def _publish(self) -> None:
        """Write the record, if it is not there: an agent that has lost this client, for whatever reason, removes it."""
        self.prepare()
        if self._rendezvous.latest() is None:
            self._rendezvous.publish(self._published)

    async def dismiss_guests(self) -> None:
        """Have nodes of other jobs leave, while the scheduler is there."""
        if self._hub is not None:
            await self._loop.run_in_executor(None, self._hub.dismiss_guests, self._options.settings.stop_timeout)

    async def cancel_waiting(self) -> None:
        """Cancel the jobs that have not begun, before others end and make room for them."""
        waiting = [job for job in self.book.active if job.job_id and not job.hosts]
        for job in waiting:
            self.book.closes(job.name)
        if waiting:
            await self._desk.cancel(job.job_id for job in waiting)
            for job in waiting:
                self.book.ended(job.name)

    async def close(self) -> None:
        """End everything; what the batch system does not cancel now, the custodian goes on with."""
        self._closing = True
        self._desk.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = [job.job_id for job in self.book.active if job.job_id]
        if left:
            await self._desk.cancel(left)
        if self._hub is not None:
            await self._loop.run_in_executor(None, self._hub.close)
            self._rendezvous.withdraw()
        self.remove_files()
        if self._custodian is not None:
            if self._desk.uncancelled:
                report.note("jobs could not be cancelled; a process that stays on this machine goes on trying")
                self._custodian.abandon()
            else:
                self._custodian.dismiss()

    def remove_files(self) -> None:
        """Remove what `prepare` has made."""
        import shutil

        if self.logs is not None:
            shutil.rmtree(self.logs, ignore_errors=True)
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
        await self._desk.check(script, Path(self.logs or self._rendezvous.directory) / f".{self._rendezvous.run_id}.sh")

    async def submit(self, job: Any) -> None:
        """Submit a job."""
        self.book.asked(job.name, job.nodes, time.monotonic())
        try:
            self._publish()
            await self.check(job.job_script())
            await self._desk.submit(job)
        except InputError as error:
            self._follow(self.book.not_submitted(job.name, str(error).rstrip(".")))
            return
        self._follow(self.book.submitted(job.name, job.job_id))
        self._tell_custodian()

    async def close_job(self, name: str) -> None:
        """End a job: its results go to others first, unless the whole cluster ends."""
        job = self.book.records.get(name)
        if job is None or job.is_over or self._hub is None:
            return
        self.book.closes(name)
        ended = self._ended.setdefault(name, asyncio.Event())
        timeout = self._options.settings.stop_timeout
        whole = len(job.hosts) == job.nodes
        if whole and not self._cluster.is_ending:
            await self._cluster.retire(name, timeout)
        self._hub.stop(name)
        if whole:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(ended.wait(), timeout)
        if not job.is_over and job.job_id:
            await self._desk.cancel([job.job_id])
        self.book.ended(name)
        self._tell_custodian()

    def _tell_custodian(self) -> None:
        ids = [job.job_id for job in self.book.active if job.job_id]
        if self._custodian is not None:
            self._custodian.jobs(self._system.cancel(ids) if ids else [])
        if self._hub is not None:
            self._hub.broadcast(Others(ids))

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
                total=size.workers * max(1, len(self.book.records)),
                ways=self._system.name,
                others=[record.job_id for record in list(self.book.records.values())],
            )
        )

    def _welcome(self) -> tuple[str, str]:
        """Give what a node of another job is to know; in the hub's thread."""
        return inputs.to_text(inputs.for_agent(self._given, time.monotonic())), self._cluster.scheduler_contact

    def _heard(self, event: h.Event) -> None:
        """Take in what has happened; in the hub's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._advance, event)

    def _advance(self, event: h.Event) -> None:
        name, node, now = event.job, event.node, time.monotonic()
        title = self._title(name)
        match event:
            case h.Came():
                self.book.came(name, node)
            case h.Serves():
                self.book.serves(name, node)
            case h.News(_, _, text):
                report.note(f"{title} on node {node}: {text}")
            case h.Guest(_, _, gone, said):
                self._cluster.lose(list(gone))
                if said is not None:
                    report.note(said)
            case h.Failure(_, _, text):
                self._follow(self.book.failed(name, node, text))
            case h.Warned():
                self._tasks.append(self._loop.create_task(self._leave(name)))
            case h.Went(_, _, number, _):
                self._cluster.lose(self._options.size.names(name, number))
                self._follow(self.book.went(name, node, now))
                job = self.book.records.get(name)
                if job is not None and job.is_over and name in self._ended:
                    self._ended[name].set()

    async def _leave(self, name: str) -> None:
        """Bring the results of a job that the batch system is about to end to others, while there is time."""
        job = self.book.records.get(name)
        if job is not None and not job.closing and not job.is_over and self._hub is not None:
            await self._cluster.retire(name, self._options.settings.grace)
            self._hub.stop(name)

    def _seen(self, job_id: str, state: str, reason: str, ended: str) -> None:
        """Take in what the batch system says of a job."""
        self._follow(self.book.seen(job_id, state, reason, ended))

    def _title(self, name: str) -> str:
        job = self.book.records.get(name)
        return job.title if job is not None else name

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._follow(self.book.time_passed(time.monotonic()))

    def _follow(self, actions: Iterable[r.Action]) -> None:
        """Do what follows."""
        for action in actions:
            if self._closing:
                return
            match action:
                case r.Tell(text) | r.GiveUp(text):
                    report.note(text)
                case r.Ask():
                    self._watch.ask()
                case r.Drop(name, text, log):
                    report.note(text + (self._tail(self.book.records[name].job_id) if log else ""))
                    self._lost(name)
                case r.Replace():
                    self._cluster.replace_job()

    def _lost(self, name: str) -> None:
        """Forget a job; what may still run of it (some of its nodes) is ended."""
        job = self.book.records[name]
        if self._hub is not None:
            self._hub.stop(name)
        if job.job_id:
            self._tasks.append(self._loop.create_task(self._desk.cancel([job.job_id])))
        self._cluster.drop_job(name)
        self._tell_custodian()

    def _tail(self, job_id: str) -> str:
        """Give the last lines of a job's log, as part of a sentence."""
        directory = self.logs or self._options.keywords.get("log_directory")
        if not directory or not job_id:
            return ""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            for path in sorted(Path(directory).glob(f"*{job_id}*")):
                lines += [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return f"; its log ends: {' | '.join(lines[-_TAIL:])[-600:]}" if lines else ""
