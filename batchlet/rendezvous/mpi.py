"""The ranks meet through MPI: the record travels in memory, nothing touches a file system.

MPI lives in one thread of each process and, unless the user's script had started it before, only until all ranks have the
record: then it is finalised, and the ranks can end one by one as they like. No rank ever waits inside MPI without a
deadline: collectives are non-blocking and polled, and the two calls that may block, ``MPI_Init_thread`` and
``MPI_Finalize``, run without the GIL (mpi4py's own would freeze the whole process, seen with 4.1), so that the other threads
see the deadline pass.

A script that uses MPI itself must import ``mpi4py.MPI`` before the runner starts, or say ``rendezvous="file"``: MPI cannot
be started a second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import EndError, LauncherError, RendezvousError, StartTimeoutError
from .base import CoordinatorRecord, Rendezvous

__all__ = ["Layout", "MpiRendezvous", "MpiUnavailableError"]

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02
# Bytes of the message that carries the record; all ranks must agree on it beforehand.
_RECORD = 4096
_KEY = 16
# Seconds for the other ranks to take part in an exchange that this rank wants to leave.
_FAREWELL = 2.0
# Seconds by which the other ranks' Abort comes after rank 0's, which is the one that says why.
_SILENCE = 1.0
# Seconds until the thread that nobody talks to any more goes away.
_LINGER = 60.0
_HINT = 'To do without MPI: rendezvous="file" (BATCHLET_DASK_CLUSTER__RENDEZVOUS=file).'


class MpiUnavailableError(RendezvousError):
    """MPI cannot be used from Python here; another rendezvous may serve."""


class Layout(NamedTuple):
    """Which ranks are where.

    Parameters
    ----------
    local_ranks : tuple of int
        The ranks on this node, ascending.
    nodes : int
        Number of nodes.
    """

    local_ranks: tuple[int, ...]
    nodes: int


class _GivenUp(Exception):  # noqa: N818 - not an error, but the end of the thread's work
    """The deadline has passed, or the rank leaves."""


class MpiRendezvous(Rendezvous):
    """Meet through MPI.

    Parameters
    ----------
    rank, world_size : int
        Who this process is according to the launcher's variables; checked against MPI.
    node : str
        The node of this process.
    source : str
        The variable that told the rank, for messages.
    deadline : float
        In seconds of `time.monotonic`: until when all ranks must have come. Rank 0's should be a few seconds before the
        others', so that one message is printed.

    Notes
    -----
    Where mpi4py can be used on some nodes only, the ranks there wait for the others until the deadline: before MPI has
    started there is no way to agree on another rendezvous.
    """

    def __init__(self, *, rank: int, world_size: int, node: str, source: str, deadline: float) -> None:
        self._rank = rank
        self._size = world_size
        self._node = node
        self._source = source
        self._began = time.monotonic()
        self._deadline = deadline
        self._thread: threading.Thread | None = None
        self._doing = "to import mpi4py.MPI"
        self._initialised = False
        self._ours = False
        self._layout: Layout | None = None
        self._packed = b""
        self._record: CoordinatorRecord | None = None
        self._error: EndError | None = None
        self._code: int | None = None
        self._published = threading.Event()
        self._leaving = threading.Event()
        # Set one after the other; all of them when there is an error.
        self._ready = threading.Event()
        self._met = threading.Event()
        self._over = threading.Event()

    @classmethod
    def available(cls) -> str | None:
        """Say, at no cost, why MPI cannot be used from here; `None` if it may well be.

        The same on all ranks that run the same script in the same installation. That `check` succeeds is not promised.
        """
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is None:
            return None if importlib.util.find_spec("mpi4py") else "mpi4py is not installed"
        if mpi.Is_finalized():
            return "the script has used MPI and finalised it"
        if not mpi.Is_initialized():
            return "the script has imported mpi4py.MPI without initialising it"
        if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
            return "the script has initialised MPI for a single thread"
        return None

    @property
    def layout(self) -> Layout:
        """Which ranks are where, as MPI knows it; waits for all ranks as `check` does."""
        self.check()
        assert self._layout is not None
        return self._layout

    def check(self) -> None:
        """See the base class. Starts MPI and waits for all ranks.

        Raises
        ------
        MpiUnavailableError
            If mpi4py or its MPI library cannot be loaded.
        LauncherError
            If MPI and the launcher disagree on who this process is.
        StartTimeoutError
            If not all ranks came until the deadline.
        """
        if self._thread is None:
            reason = self.available()
            if reason is not None:
                raise MpiUnavailableError(f"The ranks cannot meet through MPI on node {self._node}: {reason}. {_HINT}")
            self._thread = threading.Thread(target=self._run, name="batchlet-mpi", daemon=True)
            self._thread.start()
        self._await(self._ready, self._deadline)

    def publish(self, record: CoordinatorRecord) -> None:
        """See the base class. Returns at once; the thread sends the record."""
        self.check()
        packed = record.to_json().encode()
        if len(packed) > _RECORD:
            raise RendezvousError(f"The coordinator record has {len(packed)} bytes, more than {_RECORD}. {_HINT}")
        self._packed = packed
        self._published.set()

    def wait(self, deadline: float) -> CoordinatorRecord:
        """See the base class. When it returns, MPI is finalised and its thread gone (unless MPI is the script's own)."""
        self.check()
        self._deadline = max(self._deadline, deadline)
        # Not only `_met`: a process that forks should not do so while MPI is being finalised.
        self._await(self._over, deadline)
        assert self._record is not None
        return self._record

    def withdraw(self, *, orphaned: bool = False) -> None:  # noqa: ARG002
        """See the base class. Gives an exchange that is under way a moment to complete."""
        if self._thread is not None and self._layout is not None and (self._rank or self._published.is_set()):
            self._over.wait(min(_FAREWELL, max(0.0, self._deadline - time.monotonic())))

    def abandon(self, code: int) -> None:
        """End the whole run if some ranks may be waiting in MPI for this one; the last thing before a failed rank exits.

        Parameters
        ----------
        code : int
            The exit code. Where MPI is still running, ``MPI_Abort`` ends this process and all others with it; where MPI is
            over, or has not even started, the method returns.
        """
        if self._thread is None or (self._over.is_set() and self._error is None):
            return
        if self._rank:
            time.sleep(_SILENCE)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        self._code = code
        self._leaving.set()
        self._thread.join(_FAREWELL)

    def _await(self, event: threading.Event, deadline: float) -> None:
        """Wait in the caller's thread until the MPI thread has come this far."""
        event.wait(max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error
        if not event.is_set():
            raise self._timeout()

    def _timeout(self) -> StartTimeoutError:
        return StartTimeoutError(
            f"Rank {self._rank} on node {self._node} tries {self._doing} since {time.monotonic() - self._began:.0f} s "
            f"(start_timeout): not all of the {self._size} ranks came. A rank that stopped before says why in its output; "
            f"on a node without mpi4py, or with another MPI, ranks never come. {_HINT}"
        )

    # In the thread

    def _run(self) -> None:
        mpi = None
        try:
            mpi = self._import()
            self._start(mpi)
            self._exchange_layout(mpi)
            self._ready.set()
            self._exchange_record(mpi)
            self._met.set()
            if self._ours:
                self._doing = "to leave MPI"
                self._poll(mpi.COMM_WORLD.Ibarrier())
                self._finalise(mpi)
            self._over.set()
            return
        except EndError as error:
            self._error = error
        except _GivenUp:
            self._error = self._timeout()
        except Exception as error:  # noqa: BLE001 - whatever MPI raises; the other threads must hear of it
            self._error = RendezvousError(
                f"MPI failed on node {self._node} while it tried {self._doing}: {error}. {_HINT}"
            )
        for event in (self._ready, self._met, self._over):
            event.set()
        self._leaving.wait(_LINGER)
        if self._code is not None and self._initialised:
            assert mpi is not None
            mpi.COMM_WORLD.Abort(self._code)

    def _import(self) -> Any:
        """Import mpi4py.MPI without letting it initialise or finalise MPI."""
        if "mpi4py.MPI" in sys.modules:
            return sys.modules["mpi4py.MPI"]
        try:
            import mpi4py

            before = mpi4py.rc.initialize, mpi4py.rc.finalize
            mpi4py.rc.initialize = mpi4py.rc.finalize = False
            try:
                from mpi4py import MPI
            finally:
                mpi4py.rc.initialize, mpi4py.rc.finalize = before
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            # Its first line: mpi4py lists every library that it looked for.
            text = (str(error).splitlines() or [""])[0]
            raise MpiUnavailableError(
                f"The ranks cannot meet through MPI on node {self._node}: mpi4py cannot be imported "
                f"({type(error).__name__}: {text}). {_HINT}"
            ) from None
        return MPI

    def _start(self, mpi: Any) -> None:
        """Initialise MPI if nobody has, and make sure that it is the MPI that started this process."""
        if not mpi.Is_initialized():
            self._doing = "to start MPI (MPI_Init)"
            start = _function(mpi, "MPI_Init_thread")
            if start is None:
                mpi.Init_thread(mpi.THREAD_FUNNELED)
            else:
                import ctypes

                # All calls come from this thread, which is all that "funneled" demands.
                problem = start(None, None, ctypes.c_int(mpi.THREAD_FUNNELED), ctypes.byref(ctypes.c_int()))
                if problem:
                    raise RendezvousError(f"MPI_Init_thread failed on node {self._node} (error {problem}). {_HINT}")
            self._ours = True
            mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_RETURN)
        self._initialised = True
        world = mpi.COMM_WORLD
        if (world.rank, world.size) == (self._rank, self._size):
            return
        library = " ".join(mpi.Get_library_version().split(",")[0].split()[:3])
        told = f"rank {world.rank} of {world.size}"
        if self._ours and world.size == 1:
            self._finalise(mpi)
        raise LauncherError(
            f"The launcher says rank {self._rank} of {self._size} ({self._source}), but mpi4py says {told}: mpi4py uses "
            f"{library}, which did not start these ranks. Start them with the mpirun that belongs to it (srun: with an --mpi= "
            f"that it knows), or install an mpi4py for the MPI that started them (pip install --no-binary mpi4py mpi4py). "
            + _HINT
        )

    def _exchange_layout(self, mpi: Any) -> None:
        """Find out which ranks share a node: tell all a short name of this one."""
        self._doing = "to reach all ranks"
        # Nodes of a badly kept cluster may share a host name, and containers on one machine its boot identifier.
        boot = Path("/proc/sys/kernel/random/boot_id")
        place = self._node + (boot.read_text() if boot.exists() else "")
        key = hashlib.blake2b(place.encode(), digest_size=_KEY).digest()
        keys = bytearray(_KEY * self._size)
        self._poll(mpi.COMM_WORLD.Iallgather([bytearray(key), mpi.BYTE], [keys, mpi.BYTE]))
        places = [bytes(keys[_KEY * rank : _KEY * (rank + 1)]) for rank in range(self._size)]
        self._layout = Layout(tuple(rank for rank, other in enumerate(places) if other == key), len(set(places)))

    def _exchange_record(self, mpi: Any) -> None:
        """Send the record, on rank 0 as soon as there is one; receive it on all others."""
        self._doing = "to get word from rank 0"
        if self._rank == 0:
            while not self._published.wait(_LONGEST_PAUSE):
                self._check_patience()
        buffer = bytearray(self._packed.ljust(_RECORD)) if self._rank == 0 else bytearray(_RECORD)
        self._poll(mpi.COMM_WORLD.Ibcast([buffer, mpi.BYTE], root=0))
        self._record = CoordinatorRecord.from_json(buffer.decode())

    def _poll(self, request: Any) -> None:
        """Wait for a non-blocking operation. Sleeps in between: the ranks may have to share CPUs with real work."""
        pause = _FIRST_PAUSE
        while not request.Test():
            self._check_patience()
            self._leaving.wait(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.4)

    def _check_patience(self) -> None:
        if self._leaving.is_set() or time.monotonic() > self._deadline:
            raise _GivenUp

    def _finalise(self, mpi: Any) -> None:
        finalise = _function(mpi, "MPI_Finalize")
        if finalise is None:
            mpi.Finalize()
        else:
            finalise()
        self._initialised = False


def _function(mpi: Any, name: str) -> Callable[..., int] | None:
    """A function of the MPI library that mpi4py is linked with, to be called without the GIL."""
    import ctypes

    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(mpi.__file__), name)
    except (OSError, AttributeError):
        return None
    return function
