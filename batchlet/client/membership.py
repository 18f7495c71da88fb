"""What ties the client's process to a run of ranks: from its first block to its own end, through all blocks in between."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from ..control.messages import BlockOver, Closed, Finish, Message, Ready, SchedulerStarted, Terminate, Welcome
from ..errors import EndError, UsageError
from ..rendezvous import CoordinatorRecord, Rendezvous

if TYPE_CHECKING:
    from ..control.connection import Connection

__all__ = ["Membership"]

# Seconds for the last words after `stop_timeout`.
_FAREWELL = 3.0


class Membership:
    """The connection to the coordinator, and what goes with it.

    When the process ends, the run does: in good order, before the process itself has ended, unless it was killed.

    Parameters
    ----------
    rendezvous : Rendezvous
        How the ranks have met.
    stop_timeout : float
        Seconds; see `batchlet.settings.Settings`.

    Attributes
    ----------
    stack : ExitStack
        What ends with it.
    open_block : callable, optional
        Called at the end of the process if a block is open, before the cluster goes.
    """

    current: ClassVar[Membership | None] = None

    def __init__(self, rendezvous: Rendezvous, stop_timeout: float) -> None:
        self.stack = contextlib.ExitStack()
        self._rendezvous = rendezvous
        self._stop_timeout = stop_timeout
        self._pid = os.getpid()
        self._connection: Connection | None = None
        self._hear: Callable[[Message], None] | None = None
        # What to do at the end of the process if a block is still open.
        self.open_block: Callable[[], None] | None = None
        self._over = False
        Membership.current = self
        atexit.register(self._at_exit)

    @classmethod
    def of_this_process(cls) -> Membership | None:
        """Give the membership of this process; `None` if it has none yet.

        Raises
        ------
        EndError
            If its run is over, for good: the root cause, if there is one.
        """
        found = cls.current
        if found is None or found._pid != os.getpid():
            return None
        if found._connection is not None and (failure := found._connection.failure) is not None:
            raise failure
        if found._over or found._connection is None:
            raise UsageError(
                "The run of these ranks is over: it has failed before, and its processes have ended. Start the script again."
            )
        return found

    @property
    def connection(self) -> Connection | None:
        """The connection to the coordinator, once there is one."""
        return self._connection

    @property
    def record(self) -> CoordinatorRecord | None:
        """The coordinator's record, once it is known."""
        return self._connection.record if self._connection is not None else None

    def connected(self, connection: Connection) -> None:
        """Take the connection."""
        self._connection = connection
        self.stack.callback(connection.close)
        connection.listen(self._pass_on)

    def new_block(self) -> None:
        """Forget what the coordinator has said of the block before."""
        if self._connection is not None:
            self._connection.forget(Welcome, SchedulerStarted, Ready, BlockOver, Terminate)
        self._hear = None

    def listen(self, hear: Callable[[Message], None]) -> None:
        """Have a function hear what the coordinator says of this block."""
        self._hear = hear
        if self._connection is not None:
            for message in self._connection.heard():
                hear(message)

    def _pass_on(self, message: Message) -> None:
        hear = self._hear
        if hear is not None:
            hear(message)

    def finish(self) -> None:
        """End the run in good order: the other processes end now."""
        connection = self._connection
        if not self._over and connection is not None and connection.failure is None:
            connection.send(Finish())
            with contextlib.suppress(EndError):
                connection.wait(Closed, time.monotonic() + self._stop_timeout + _FAREWELL)

    def close(self) -> None:
        """Leave the run, whatever becomes of it; twice does no harm."""
        if not self._over:
            self._over = True
            self.stack.close()
            connection = self._connection
            self._rendezvous.withdraw(orphaned=connection is not None and not connection.coordinator_is_alive)

    def _at_exit(self) -> None:
        # A process that was forked from this one is none of the run.
        if os.getpid() == self._pid:
            if self.open_block is not None and not self._over:
                with contextlib.suppress(Exception):
                    self.open_block()
            self.finish()
            self.close()
