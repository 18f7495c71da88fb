"""Rank 0: the coordinator, the record by which all others find it, and the scheduler of each block."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import report
from ..control.coordinator import Coordinator, CoordinatorConfig
from ..control.signals import handled
from ..errors import EndError, NetworkError
from ..network import LOOPBACK, reachable_host
from ..rendezvous import CoordinatorRecord, FileRendezvous, Rendezvous, register
from ..run_report.book import Book
from ..security import Credentials
from ..settings import PREFIX
from ..timeline import mark
from ..versions import versions
from . import inputs
from .rank import PATIENCE, Rank, unexpected
from .resolve import resolve
from .scheduler_block import SchedulerBlock, import_scheduler
from .worker_rank import AgentBeside, Options, layout_of

__all__ = ["CoordinatorRank"]


class CoordinatorRank:
    """Rank 0 at work.

    Parameters
    ----------
    rank : Rank
        It, as far as it is known when others may come.
    rendezvous : Rendezvous
        How the ranks meet.
    beside : AgentBeside
        For workers of its own.
    early : bool
        Whether what the user asks for is still to come.
    """

    def __init__(self, rank: Rank, rendezvous: Rendezvous, beside: AgentBeside, *, early: bool = False) -> None:
        self._beside = beside
        self._rank = rank
        self._rendezvous = rendezvous
        # Whether a runner that comes later wants them is not known early.
        secure = early or rank.settings.security is not False
        self._credentials = Credentials.generate() if secure else None
        host, self._problem = _host(rank)
        secret = secrets.token_hex(32)
        self._coordinator = coordinator = Coordinator(
            CoordinatorConfig(
                host=host,
                secret=secret,
                credentials=self._credentials,
                node=rank.info.node,
                ranks=rank.info.world_size,
                versions=versions(),
                stop_timeout=rank.settings.stop_timeout,
                scheduler_timeout=rank.settings.scheduler_timeout,
            ),
            self,
        )
        certificate = self._credentials.certificate if self._credentials is not None else ""
        self._record = CoordinatorRecord(
            rank.info.run_id,
            secrets.token_hex(8),
            rank.info.node,
            host,
            coordinator.listen(),
            secret,
            certificate,
            f"{rank.info.mode} {rank.info.job}".strip(),
            time.time(),
        )
        self._failure: EndError | None = None
        self._block: SchedulerBlock | None = None
        # The record for those who join later, where the ranks have none in a file.
        self._kept: FileRendezvous | None = None
        self._registered = False
        self._over = threading.Event()
        self._book = Book(versions())
        # What the user asks for in the next block, as `batchlet.node.inputs.to_text` has it; `None` at the end of the run.
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        try:
            rendezvous.publish(self._record)
        except BaseException:
            coordinator.close()
            raise
        mark("record published")

    def run(self, options: Options | None = None) -> int:
        """Coordinate until the run is over.

        Parameters
        ----------
        options : mapping of str to object, optional
            What the user asked for, as it was given; for a first block that begins now. Without them it begins when the client
            says so, with the options that it brings.

        Returns
        -------
        int
            The exit code.
        """
        rank, coordinator = self._rank, self._coordinator
        where = f"rank {rank.info.rank} on node {rank.info.node}"
        # To the very end: a launcher that ends all ranks because the client's code is not 0 has nothing to add to that.
        with handled(lambda number, _: coordinator.signalled(number, where)):
            try:
                with contextlib.closing(self._beside):
                    if options is None:
                        coordinator.await_client(rank.settings.start_timeout)
                        self._prepare()
                    else:
                        launch = inputs.for_agent(options, rank.deadline, layout=layout_of(self._rendezvous))
                        self._asked.put(inputs.to_text(launch))
                    number = 0
                    while asked := self._asked.get():
                        number += 1
                        self._serve(number, asked)
            except EndError:
                raise
            except Exception as error:  # noqa: BLE001
                coordinator.fail(unexpected(error, where))
                self._over.wait(PATIENCE)
            finally:
                self._tidy_up()
                coordinator.close()
                self.conclude()
        return self._failure.exit_code if self._failure is not None else 0

    def _serve(self, number: int, launch: str) -> None:
        """Serve one block."""
        layout = layout_of(self._rendezvous)
        words = inputs.from_text(launch)
        # Where the script has found its modules, what it gives to the runner is found too.
        sys.path[:] = words["sys_path"]
        try:
            self._rank = rank = resolve({**words, "layout": layout}, self._rank.environ, from_elsewhere=True)
        except EndError as error:
            self._coordinator.fail(error)
            return
        self._begin_book(rank)
        self._block = block = SchedulerBlock(number, rank, words, self._record, self._credentials, self._coordinator)
        block.announce(launch)
        self._beside.host(rank, inputs.unpack_options(words)[0], self._record)
        block.serve(self._problem, layout)

    def _prepare(self) -> None:
        """Use the time until the first block, where no agent of this node could run the scheduler."""
        if not self._rank.local_worker_ranks:
            import_scheduler()

    @property
    def has_served(self) -> bool:
        """Whether there was any block."""
        return self._block is not None

    # What the coordinator has its owner do, in its own thread

    def met(self) -> None:
        """All have read the record: whatever ends the run, it will not be left behind, unless others are to come later."""
        settings, alone = self._rank.settings, self._record.host == LOOPBACK
        if settings.join and alone:
            # `batchlet.early` has listened before the script could say so.
            report.note(
                f"other jobs cannot join this run of one node: that takes {PREFIX}JOIN=true, set before the start"
            )
        if not (settings.attach or (settings.join and not alone)):
            self._rendezvous.withdraw()
            return
        place = self._rendezvous
        if not isinstance(place, FileRendezvous):
            # The ranks have met in another way; those who come have a file alone.
            place = self._kept = self._rank.notes(self._record)
            try:
                place.publish(self._record)
            except EndError as error:
                report.note(f"nobody can join this run, or attach to it: {error}")
                return
        self._registered, problem = True, register.enter(self._record, place.file)
        if settings.attach and alone:
            report.note(
                f"this run of one node can be attached to from node {self._record.node} alone: from elsewhere that takes "
                f"{PREFIX}ATTACH=true, set before the start"
            )
        if problem and settings.attach:
            report.note(f"python -m batchlet ps will not find this run, but for {place.directory}: {problem}")

    def lost(self, text: str) -> None:
        """Tell the user that something was lost and the run goes on."""
        report.note(text)
        self._book.event("note", text)

    def keep(self, told: Sequence[Sequence[Any]], node: str | None) -> None:
        """Keep something for the report."""
        self._book.take(told, node)

    def logs(self, start: int) -> tuple[Sequence[Sequence[Any]], int, int]:
        """Give lines of logs that are kept, how many there are, and how many are not."""
        return self._book.logs.part(start)

    def use_of_block(self) -> Mapping[str, Any]:
        """Say what the block did with what it was granted."""
        return self._book.use()

    def failed(self, error: EndError) -> None:
        """Tell the user why the run has failed."""
        self._failure = error
        report.failure(error, time.monotonic() - self._rank.began)
        self._book.failed(type(error).__name__, str(error), error.exit_code)

    def expected_nodes(self) -> Mapping[int, str]:
        """Give the node on which each rank should be."""
        return self._rank.environment.expected_nodes(self._rank.environ)

    def begin_block(self, launch: str) -> None:
        """Begin another block."""
        self._asked.put(launch)

    def end_block(self) -> None:
        """End the scheduler of this block."""
        if self._block is not None:
            self._block.end()

    def conclude(self) -> None:
        """Write the report for the last time; a client that has not said how its block ended did not live to."""
        if self._block is not None:
            self._book.failed("ClientLost", "The client's process ended within the block.", None)
        self._book.close(self._rank.settings.stop_timeout)

    def stop_serving(self) -> None:
        """End the scheduler, and then this rank."""
        self._over.set()
        self._asked.put(None)
        self.end_block()

    def end_hard(self) -> None:
        """End this process although the scheduler's event loop does not."""
        if self._block is not None:
            self._block.kill()
        self._tidy_up()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(self._failure.exit_code if self._failure is not None else 0)

    def _begin_book(self, rank: Rank) -> None:
        """Begin the report of a block; the client, if it comes, tells more of it."""
        info, settings = rank.info, rank.settings
        run = {"id": self._record.run_id, "mode": info.mode, "job": info.job, "ranks": info.world_size}
        self._book.about(**run)
        self._book.files(settings.path("report"), settings.path("metrics"))
        self._book.began()

    def _tidy_up(self) -> None:
        self._rendezvous.withdraw()
        if self._kept is not None:
            self._kept.withdraw()
        if self._registered:
            register.leave(self._record)
        # The note of a client that was killed.
        with contextlib.suppress(EndError):
            self._rank.notes(self._record).remove_note()


def _host(rank: Rank) -> tuple[str, EndError | None]:
    """Address to listen on, and what is wrong with it; the other ranks hear of that through the coordinator."""
    try:
        return rank.reachable_host(), None
    except NetworkError as error:
        return reachable_host(rank.info.node, rank.info.nodes, None), error
