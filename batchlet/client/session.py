"""What a `BatchletRunner` does: from the processes that a launcher has started to one Dask cluster, and back to exit codes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from .. import report, timeline
from ..errors import EndError, TerminatedError, UsageError, terminated
from ..node.rank import Rank
from ..plan import CLIENT, LOCAL, Plan
from ..settings import Settings
from . import by_hand, dask_clients, status
from .account import Account
from .announce import advice, announce, dashboard_link
from .backend import Backend, News, Outcome, StartInfo
from .membership import Membership
from .refusal import give_up, refuse
from .stopping import Stopping
from .telling import ending

if TYPE_CHECKING:
    from ..control.signals import ClientGuard

__all__ = ["Session"]

# Seconds within which all connections to a dead process break.
_MOMENT = status.MOMENT


class Session:
    """What a `BatchletRunner` does; the runner itself says what its attributes mean.

    Parameters
    ----------
    asynchronous : bool
        Whether it will be entered with ``async with``.
    options : mapping of str to object
        What the user asked for.
    """

    active: ClassVar[Session | None] = None

    def __init__(self, *, asynchronous: bool, options: Mapping[str, object]) -> None:
        self._began = time.monotonic()
        # `python -m batchlet` has started the run that this process is in already: this is another name for that.
        self._outer = Session.active
        self.asynchronous = asynchronous
        self._closed = False
        # Started by `start`, not by a ``with``; and in a session in which somebody types the code: an interrupt is for that.
        self._by_hand = self._typed = False
        self._start: StartInfo | None = None
        self._stack = contextlib.ExitStack()
        self._account = Account()
        self._made: Backend | None = None
        self._known: Rank | None = None
        # When the run is to be stopped, and what becomes of its job then.
        self.stopping: Stopping
        self._guard: ClientGuard | None = None
        self._callbacks: list[Callable[[int], object]] = []
        try:
            settings = Settings.resolve(options, os.environ)
            if self._outer is not None:
                self._known, self._made = self._outer.rank, self._outer._backend
                self.stopping = self._outer.stopping
                if options:
                    _without_effect(options, by_hand=self._outer._by_hand)
                return
            self._known = Rank.identify(settings, os.environ, self._began)
            self.stopping = Stopping(self._known)
            self._made = _backend(self._known, options)
            if Membership.of_this_process() is None:
                # In a later block the ranks have been waiting since the first one.
                self._account.advice = advice(self._known)
        except EndError as error:
            self.refuse(error)

    def on_terminate(self, callback: Callable[[int], object]) -> None:
        """See the runner."""
        (self._outer or self)._callbacks.append(callback)

    # What the user can ask of a runner

    @property
    def plan(self) -> Plan:
        """See the runner. Before the start, what can be known without rank 0."""
        start = (self._outer or self)._start
        if start is not None:
            return start.plan
        try:
            return self._backend.rank.plan()
        except EndError as error:
            self.refuse(error)

    def started(self, what: str) -> StartInfo:
        """Give the cluster; refuse what makes sense only while the run is under way."""
        if self.state == "closed":
            self.refuse(UsageError(f"This BatchletRunner is closed ({what} was asked for). Make a new one."))
        if self._start is None:
            self.refuse(
                UsageError(
                    f"BatchletRunner has not been started ({what} was asked for). Use it in a with statement: "
                    "`with BatchletRunner() as runner, Client(runner) as client:`, or call runner.start() first."
                )
            )
        return self._start

    @property
    def start_info(self) -> StartInfo | None:
        """The cluster, if it was started."""
        return self._start

    @property
    def dashboard_link(self) -> str | None:
        """See the runner. A client that has survived its cluster asks for it too, to show itself."""
        return None if self.state == "closed" else dashboard_link(self.started("dashboard_link"))

    @property
    def state(self) -> str:
        """Either "not started", "running" or "closed"."""
        closed = self._closed or (self._outer is not None and self._outer._closed)
        return "closed" if closed else "running" if self._start is not None else "not started"

    @property
    def status(self) -> Any:
        """See the runner."""
        return status.status_of(self.state, self._start, self._guard, self._backend.root_cause)

    def __repr__(self) -> str:
        return f"<BatchletRunner {self.rank.info.run_id}: {self.rank.info.mode}, {self.rank.role}, {self.state}>"

    # Entering

    def begin(self, *, started_by_hand: bool) -> None:
        """Note how the run is started: by `BatchletRunner.start`, or by a ``with``."""
        if self.state == "not started":
            self._by_hand, self._typed = started_by_hand, started_by_hand and by_hand.is_interactive()

    def enter(self) -> None:
        """Take part in the run. Only the client comes back."""
        if self.asynchronous:
            self.refuse(UsageError("BatchletRunner(asynchronous=True) needs `async with` or `await runner`."))
        with self._entering():
            self._running(self._outer._start if self._outer is not None else self._backend.start(self.stopping.check))

    async def enter_async(self) -> None:
        """Do as `enter`, in an event loop."""
        import asyncio

        if not self.asynchronous:
            self.refuse(UsageError("`async with` and `await runner` need BatchletRunner(asynchronous=True)."))
        with self._entering():
            self._running(
                self._outer._start
                if self._outer is not None
                else await asyncio.to_thread(self._backend.start, self.stopping.check)
            )

    @contextlib.contextmanager
    def _entering(self) -> Any:
        """What stands around the start of the cluster."""
        if self.state == "closed":
            self.refuse(UsageError("This BatchletRunner was used before, and is closed. Make a new one."))
        if self._start is not None:
            self.refuse(UsageError("This BatchletRunner is running already. Use it, or close it and make a new one."))
        if self._outer is not None:
            yield
            return
        try:
            self._backend.check()
        except EndError as error:
            self.refuse(error)
        self._watch()
        try:
            yield
        except EndError as error:
            self._closed = True
            self._stack.close()
            give_up(error, self._backend, time.monotonic() - self._began, self.stopping.after_start)
        except BaseException:
            self._closed = True
            self._stack.close()
            self._backend.close()
            raise

    def _running(self, start: StartInfo | None) -> None:
        self._start = start
        timeline.mark("ready")
        if self._outer is not None or start is None:
            return
        Session.active = self
        if self._by_hand:
            self._stack.callback(by_hand.ends_with_process(self.leave, typed=self._typed))
        self._account.begin(self._backend, start)
        self._backend.listen(News(self._on_terminate_elsewhere, self._on_failure))
        announce(self._backend, start)
        self.stopping.start(self._guard)

    def _on_terminate_elsewhere(self, number: int, where: str) -> None:
        if self._guard is not None:
            self._guard.terminate(number, where)

    def _on_failure(self, error: EndError, told: bool) -> None:
        """Bring the news that the run has failed to the user's code; in a thread of the backend."""
        if self._guard is None:
            return
        from ..dask_backend.logs import hush

        hush()
        if not told:
            # Else rank 0 has said it, and a notebook shows that where the cell of the moment is.
            report.failure(error, time.monotonic() - self._began)
        if not self._typed:
            self._guard.deliver(error)
        # In a session that goes on, Dask's client finds the cluster closed (`status`), and what waits for results ends.

    def _watch(self) -> None:
        """Handle signals from here on, where the user's code is or will be."""
        from ..control.signals import ClientGuard, handled

        if self.rank.role not in (CLIENT, LOCAL):
            # Until it has met the others, this rank can only end.
            self._stack.enter_context(handled(_end_by_signal))
            return
        settings = self.rank.settings
        self._guard = ClientGuard(
            grace=settings.grace,
            stop_timeout=settings.stop_timeout,
            callbacks=self._callbacks,
            leave=self._let_go,
            at_end=self.stopping.callbacks,
            checkpoints=settings.requeue,
            interactive=self._typed,
            after=by_hand.after_cell(self.leave) if self._typed else None,
        )
        self._stack.enter_context(self._guard.watch())

    def _let_go(self) -> None:
        """Let the others know that this process is about to be ended the hard way; in a thread of the guard."""
        self._keep_exit_code()
        self._backend.for_report(ending(self._guard.error if self._guard is not None else None))
        self._backend.let_go()
        self.stopping.after(self._guard.error if self._guard is not None else None, lambda: None)

    def _keep_exit_code(self) -> None:
        if self._guard is not None and isinstance(self._guard.error, TerminatedError):
            self.rank.environment.keep_exit_code(os.environ)

    # Leaving

    def close(self) -> Any:
        """End the run that `start` has started; another name for it will do."""
        return by_hand.close(self._outer if self._outer is not None and self._outer._by_hand else self)

    def leave(self, error: BaseException | None) -> None:
        """End the run: the user's code has left the block, with an exception or without one."""
        if self._is_left():
            return
        lost = _loss(error, self._guard, self._backend)
        self._keep_exit_code()
        self._account.end(self._backend, lost or error)
        dask_clients.close(self.started("the end").address, self.rank.settings.stop_timeout)
        outcome = None
        try:
            outcome = self._backend.stop()
        finally:
            self._finish(lost or error, outcome)
        if lost is not None:
            raise lost from None

    async def leave_async(self, error: BaseException | None) -> None:
        """Do as `leave`, in an event loop."""
        import asyncio

        if self._is_left():
            return
        lost = _loss(error, self._guard, self._backend)
        self._keep_exit_code()
        await asyncio.to_thread(self._account.end, self._backend, lost or error)
        await dask_clients.close_async(self.started("the end").address, self.rank.settings.stop_timeout)
        outcome = None
        try:
            outcome = await asyncio.to_thread(self._backend.stop)
        finally:
            self._finish(lost or error, outcome)
        if lost is not None:
            raise lost from None

    def _is_left(self) -> bool:
        """Whether nothing is left to end: `close` came before the end of the block, or it is another one's run."""
        if self._outer is not None:
            self._closed = True
        return self._closed

    def _finish(self, error: BaseException | None, outcome: Outcome | None) -> None:
        start = self.started("the end")
        self._closed = True
        Session.active = None
        self._account.show_timeline(self.rank, outcome)
        self._stack.close()
        self._backend.close()
        if self._backend.root_cause() is None:
            report.ended(
                seconds=time.monotonic() - self._began,
                workers=start.workers,
                error=None if type(error) in (type(None), SystemExit) else _called(error),
                advice=self._account.advice,
                use=self._account.line(outcome),
            )
        self.stopping.after(error, self._backend.let_go)

    # Errors

    @property
    def rank(self) -> Rank:
        """Who this process is."""
        if self._made is not None:
            return self._made.rank
        assert self._known is not None
        return self._known

    @property
    def _backend(self) -> Backend:
        assert self._made is not None
        return self._made

    def refuse(self, error: EndError) -> NoReturn:
        """End with an error that nothing was started for."""
        refuse(error, self._known, self._made)


def _without_effect(options: Mapping[str, object], *, by_hand: bool) -> None:
    """Tell that a second runner changes nothing about the run that is under way."""
    within = "another BatchletRunner is running" if by_hand else "this script runs inside `python -m batchlet`"
    report.note(f"{', '.join(options)}: without effect here, since {within}")


def _backend(rank: Rank, options: Mapping[str, object]) -> Backend:
    """Choose where the cluster lives."""
    if rank.role == LOCAL:
        from .local import LocalBackend

        return LocalBackend(rank)
    from .ranks import RanksBackend

    return RanksBackend(rank, options)


def _loss(error: BaseException | None, guard: ClientGuard | None, backend: Backend) -> EndError | None:
    """Say whether the cluster is lost and `error` only what Dask made of that; the guard's watch ends here."""
    assert guard is not None
    module = type(error).__module__.split(".")[0]
    from_dask = module in ("distributed", "asyncio", "concurrent", "tornado") or isinstance(error, OSError)
    # Dask may notice that its scheduler is gone a moment before we do.
    cause_elsewhere = backend.root_cause(_MOMENT) if from_dask else None
    guard.end()
    if error is None or isinstance(error, (EndError, SystemExit)):
        return None
    # Raised in the midst of a library, the guard's error may come out as the cause of another one.
    return guard.error if _caused(error, guard.error) else cause_elsewhere


def _caused(error: BaseException | None, by: BaseException | None) -> bool:
    """Whether one exception is another one, or was raised because of it."""
    while error is not None:
        if error is by:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_by_signal(number: int, _frame: object) -> NoReturn:
    raise terminated(number)


def _called(error: BaseException | None) -> str:
    """Name what has ended the ``with`` block: a signal, or an exception."""
    if isinstance(error, TerminatedError):
        return str(error).replace(" ended the run", "").rstrip(".")
    return type(error).__name__
