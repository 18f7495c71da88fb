"""Rank 1 under `batchlet.early`: the one rank that goes on with the script, while rank 0 knows that it is there.

Whether the script makes a runner, and with what options, nobody can know yet. Its first block begins as any later one does:
the client asks rank 0 for it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import ClassVar

from ..errors import EndError, StartTimeoutError
from ..node.rank import PATIENCE, Rank, unexpected
from ..node.worker_rank import AgentBeside
from ..plan import CLIENT
from ..rendezvous import CoordinatorRecord, FileRendezvous
from ..settings import Settings
from ..versions import versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..control.presence import Presence

__all__ = ["EarlyClient"]


class EarlyClient:
    """What this process is from the import of `batchlet.early` to its first block, or to its end.

    Raises
    ------
    EndError
        If something in the environment is wrong; rank 0 runs into the same, and says so.

    Attributes
    ----------
    rendezvous : FileRendezvous
        Where the ranks meet, whatever the runner's options say later.
    beside : AgentBeside
        For workers of its own.
    """

    _current: ClassVar[EarlyClient | None] = None

    def __init__(self) -> None:
        settings = Settings.resolve({}, os.environ)
        self._rank = rank = Rank.identify(settings, os.environ, time.monotonic())
        self.rendezvous = FileRendezvous(settings.rendezvous_dir, rank.info.run_id, rank.info.node)
        self.rendezvous.check()
        self._until = rank.deadline + PATIENCE
        self._pid = os.getpid()
        self._presence: Presence | None = None
        self._problem: EndError | None = None
        self._handed_over = False
        self.beside = AgentBeside(self.rendezvous, early=True)
        self.beside.host(rank, {})
        # Rank 0 may be a moment late; the script need not wait for it.
        self._thread = threading.Thread(target=self._appear, name="batchlet-early-client", daemon=True)
        self._thread.start()
        EarlyClient._current = self
        atexit.register(self._at_exit)
        # A process that was forked from this one must not seem to be it.
        os.register_at_fork(after_in_child=self._forget)

    @classmethod
    def of_this_process(cls) -> EarlyClient | None:
        """Give that of this process; `None` if it has none."""
        found = cls._current
        return found if found is not None and found._pid == os.getpid() else None

    def _appear(self) -> None:
        """Connect to rank 0; in a thread, which ends with that."""
        from ..control.greeting import ProtocolError
        from ..control.messages import Hello
        from ..control.presence import Presence

        info = self._rank.info
        try:
            record = self.rendezvous.wait(self._until)
            hello = Hello(str(info.rank), CLIENT, info.node, info.local_ranks, (), versions())
            self._presence = Presence(record, hello, self._until, self.rendezvous.latest)
        except EndError as error:
            self._problem = error
        except (OSError, ProtocolError) as error:
            self._problem = StartTimeoutError(f"Rank 0 cannot be reached from node {info.node}: {error}.")
        except Exception as error:  # noqa: BLE001
            self._problem = unexpected(error, f"rank {info.rank} on node {info.node}")

    def record(self) -> CoordinatorRecord:
        """Give the coordinator's record, as soon as rank 0 knows of this process.

        Raises
        ------
        EndError
            What has ended the run meanwhile, or why rank 0 cannot be reached.
        """
        self._thread.join()
        self.check()
        assert self._presence is not None
        return self._presence.record

    def check(self) -> None:
        """Find out whether the run still goes on.

        Raises
        ------
        EndError
            If not.
        """
        problem = self._problem or (self._presence.failure() if self._presence is not None else None)
        if problem is not None:
            raise problem

    def latest(self) -> CoordinatorRecord | None:
        """Look for a newer record, as `batchlet.control.connection.Connection` wants it."""
        self.check()
        return self.rendezvous.latest()

    @property
    def told(self) -> bool:
        """Whether rank 0 has told the user why the run is over."""
        return self._presence is not None and self._presence.told

    def hand_over(self) -> None:
        """Leave the rest to the connection that this process has with rank 0 by now."""
        self._handed_over = True
        if self._presence is not None:
            self._presence.close(farewell=False)

    def _forget(self) -> None:
        if self._presence is not None:
            self._presence.close(farewell=False)

    def _at_exit(self) -> None:
        if self._handed_over or os.getpid() != self._pid:
            return
        # Rank 0 is to hear of this end, even if the script is over before rank 0 has begun.
        self._thread.join()
        lost = False
        if self._presence is not None:
            lost = self._presence.failure() is not None and not self._presence.told
            self._presence.close(farewell=True)
        self.beside.close()
        self.rendezvous.withdraw(orphaned=lost)
