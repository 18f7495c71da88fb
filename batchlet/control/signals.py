"""Signals: who gets them, and what becomes of them.

``scancel`` and a time limit send SIGTERM to every rank, Ctrl-C sends SIGINT to every process of the terminal. Only the client
may act on them, since only there is code of the user's that wants to save its work; the others pass the word on and keep
working until the client has left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .. import report
from ..errors import EndError, TerminatedError, TimeIsUpError, terminated

__all__ = ["ClientGuard", "handled"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Wakes the main thread from whatever it waits for. The default action of this signal is to do nothing, so that one that
# comes too late does no harm; hardly any program uses it.
_WAKE = signal.SIGURG
# Seconds after which the main thread is woken again, and how often that is of use: the handler may be the user's own.
_AGAIN, _TRIES = 0.2, 5
Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def handled(handler: Handler, *signals: int) -> Iterator[None]:
    """Handle signals (SIGTERM and SIGINT unless others are named) and put back what was there before.

    Does nothing in a thread other than the main one, where Python allows no handlers. Where it is left in another thread (a
    client may end the cluster from its event loop), what was there before is put back by the next signal, which then gets it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = False

    def handle(number: int, frame: FrameType | None) -> Any:
        if not left:
            return handler(number, frame)
        signal.signal(number, before[number] or signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return None

    before = {number: signal.getsignal(number) for number in signals or _SIGNALS}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        left = True
        if threading.current_thread() is threading.main_thread():
            for number, old in before.items():
                # None: a handler that was not installed from Python, which cannot be put back from here.
                if old is not None:
                    signal.signal(number, old)


class ClientGuard:
    """Brings bad news to the user's code: an exception in its main thread, and an end if that does not help.

    Parameters
    ----------
    grace : float
        Seconds that the user's code has to end after a signal.
    stop_timeout : float
        Seconds that it has to end once the cluster is lost.
    callbacks : list of callable
        Each gets the signal's number in the main thread, before the exception is raised there.
    at_end : callable
        Gives functions that are called in the main thread before `TimeIsUpError` is raised there. What one of them raises is
        raised instead.
    checkpoints : bool
        Whether they are called before the error for SIGTERM as well.
    leave : callable
        Called before the process is ended the hard way: tells rank 0 that the run is over.
    interactive : bool
        Whether somebody types the user's code. SIGINT is then not for the run: it interrupts what was typed, by whatever
        handler the session has for it.
    after : callable, optional
        Called in the main thread before an error is raised there.
    """

    def __init__(
        self,
        *,
        grace: float,
        stop_timeout: float,
        callbacks: list[Callable[[int], object]],
        leave: Callable[[], None],
        at_end: Callable[[], list[Callable[[], object]]] = list,
        checkpoints: bool = False,
        interactive: bool = False,
        after: Callable[[EndError], None] | None = None,
    ) -> None:
        self._signals = (signal.SIGTERM,) if interactive else _SIGNALS
        self._after = after
        self._grace = grace
        self._stop_timeout = stop_timeout
        self._leave = leave
        self._callbacks = callbacks
        self._at_end = at_end
        self._checkpoints = checkpoints
        self._error: EndError | None = None
        # What was raised because of it.
        self._raised: BaseException | None = None
        self._delivered = threading.Event()
        self._over = threading.Event()

    @property
    def error(self) -> EndError | None:
        """The bad news, if there is any."""
        return self._error

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Watch over the user's code."""
        with handled(self._on_signal, *self._signals), handled(self._on_wake, _WAKE), self._insisting(), self._heard():
            try:
                yield
            finally:
                self._over.set()

    def end(self) -> None:
        """Stop watching: the user's code has come back."""
        self._over.set()

    def wait_delivered(self, seconds: float) -> None:
        """Wait a moment until the news has reached the main thread, in another thread."""
        self._delivered.wait(seconds)

    def deliver(self, error: EndError, seconds: float | None = None) -> None:
        """Raise `error` in the main thread; may be called from any thread. Only the first error counts.

        Parameters
        ----------
        error : EndError
            What to raise.
        seconds : float, optional
            What the user's code has to end; `stop_timeout` unless given.
        """
        if self._error is not None or self._over.is_set():
            return
        self._error = error
        self._expire(error, self._stop_timeout if seconds is None else seconds)

    def terminate(self, number: int, where: str) -> None:
        """Bring a signal that another rank got; may be called from any thread."""
        if number in self._signals and self._error is None and not self._over.is_set():
            self._error = terminated(number, where)
            self._expire(self._error, self._grace)

    @contextlib.contextmanager
    def _insisting(self) -> Iterator[None]:
        """See that the main thread handles its signals at once.

        Python runs a handler when the main thread comes to its next instruction. A signal that comes a microsecond before
        that thread begins to wait, or that the system hands to another thread, does not end the waiting.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        if before != -1:
            # An event loop's, which never waits for anything else.
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            os.close(writer)
            os.close(reader)
            yield
            return

        def listen() -> None:
            while numbers := os.read(reader, 64):
                if set(numbers) & set(self._signals):
                    self._wake()
            os.close(reader)

        listener = threading.Thread(target=listen, name="batchlet-signals", daemon=True)
        listener.start()
        try:
            yield
        finally:
            # Elsewhere it cannot be changed: the system goes on writing into the pipe, which has to stay.
            if threading.current_thread() is threading.main_thread():
                last = signal.set_wakeup_fd(-1)
                if last not in (-1, writer):
                    signal.set_wakeup_fd(last, warn_on_full_buffer=False)
                os.close(writer)
                # What follows the block finds nothing left of it.
                listener.join(_AGAIN)

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """See that what is raised in a finalizer comes to the user's code: Python says of it that it was ignored, and goes on.

        A script that works with Dask's futures is in one rather often.
        """
        before = sys.unraisablehook

        def hook(lost: Any) -> None:
            if lost.exc_value is None or lost.exc_value is not self._raised:
                before(lost)
            elif not self._over.is_set():
                threading.Thread(target=again, name="batchlet-again", daemon=True).start()

        def again() -> None:
            # Not in this very hook, nor in the finalizer if that is short.
            time.sleep(_AGAIN / 2)
            self._delivered.clear()
            self._wake()

        sys.unraisablehook = hook
        try:
            yield
        finally:
            if sys.unraisablehook is hook:
                sys.unraisablehook = before

    def _wake(self) -> None:
        """Interrupt the main thread until it has heard; not to be called by itself."""
        for _ in range(_TRIES):
            if self._delivered.is_set() or self._over.is_set():
                break
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)
            self._delivered.wait(_AGAIN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._over.is_set() or self._delivered.is_set():
            return
        if self._error is None:
            self._error = terminated(number)
            self._expire(self._error, self._grace)
        self._raise()

    def _on_wake(self, _number: int, _frame: FrameType | None) -> None:
        if self._error is not None and not self._delivered.is_set() and not self._over.is_set():
            self._raise()

    def _raise(self) -> None:
        error = self._error
        assert error is not None
        self._delivered.set()
        if self._raised is None:
            try:
                self._call_back(error)
            except BaseException as problem:
                self._raised = problem
                raise
            self._raised = error
        raise self._raised

    def _call_back(self, error: EndError) -> None:
        """Call all who want to know before it is raised."""
        if error.exit_code > 128:
            for callback in self._callbacks:
                try:
                    callback(error.exit_code - 128)
                except Exception as problem:  # noqa: BLE001
                    report.note(f"on_terminate callback failed: {type(problem).__name__}: {problem}")
        if isinstance(error, TimeIsUpError) or (self._checkpoints and _is_sigterm(error)):
            self._save_work()
        if self._after is not None:
            self._after(error)

    def _save_work(self) -> None:
        """Call all who want to be; what the first that fails has raised, the user sees."""
        first: BaseException | None = None
        for save in self._at_end():
            try:
                save()
            except BaseException as problem:  # noqa: BLE001
                first = first or problem
        if first is not None:
            raise first

    def _expire(self, error: EndError, seconds: float) -> None:
        """End the process if the user's code has not come back by then; it may be stuck in compiled code."""

        def wait() -> None:
            until = time.monotonic() + seconds
            self._wake()
            if self._over.wait(max(0.0, until - time.monotonic())):
                return
            report.note(f"the script did not end within {seconds:g} s; its process is ended")
            with contextlib.suppress(Exception):
                self._leave()
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(error.exit_code)

        threading.Thread(target=wait, name="batchlet-deadline", daemon=True).start()


def _is_sigterm(error: EndError) -> bool:
    return isinstance(error, TerminatedError) and error.exit_code == 128 + signal.SIGTERM
