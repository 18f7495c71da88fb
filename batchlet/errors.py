"""The errors that Batchlet raises, and the exit codes they end a process with.

::

    EndError                             a SystemExit; never raised itself
    ├── BatchletError                1   an Exception as well
    │   ├── InputError               2   something that the user, the script or the site can change
    │   │   ├── SettingsError            a keyword, flag or BATCHLET_* variable
    │   │   ├── LauncherError            a launcher's variable is missing or malformed
    │   │   ├── PlanError                more was asked for than the allocation holds
    │   │   ├── NetworkError             the interface or address cannot be used
    │   │   ├── UsageError               the runner was used in a way that cannot work
    │   │   ├── RendezvousError          the directory in which the ranks meet cannot be used
    │   │   └── RefusedError             another rank has refused the run, and said why
    │   ├── StartTimeoutError       80   the cluster was not complete at the deadline
    │   ├── ClusterLostError        81   the scheduler, or too many workers, died under the client
    │   ├── ClientLostError         82   the client died without a word (what the other ranks see)
    │   └── VersionMismatchError    83   the ranks run different versions of Python or Dask
    ├── TimeIsUpError               84   the moment that `before_end` or ``stop_before`` has named
    └── TerminatedError        128 + n   signal number n (SIGTERM 143: scancel, preemption, time limit)
        └── InterruptedRunError    130   SIGINT (Ctrl-C); also a KeyboardInterrupt

All are `SystemExit`: nobody catching one ends the process with the documented exit code and without a traceback, because
Batchlet has printed the message by then, once for all ranks. What has gone wrong is an ordinary exception as well, which
``except Exception`` catches. A signal is none, nor is the end of the time: a script that tries each of its steps and goes on
with the next one would not end before its grace period does.
"""

from __future__ import annotations

import signal
from typing import ClassVar

__all__ = [
    "BatchletError",
    "ClientLostError",
    "ClusterLostError",
    "EndError",
    "InputError",
    "InterruptedRunError",
    "LauncherError",
    "NetworkError",
    "PlanError",
    "RefusedError",
    "RendezvousError",
    "SettingsError",
    "StartTimeoutError",
    "TerminatedError",
    "TimeIsUpError",
    "UsageError",
    "VersionMismatchError",
    "error_named",
    "terminated",
]


class EndError(SystemExit):
    """Base class of all that Batchlet ends a process with.

    Parameters
    ----------
    message : str
        What was found, what was needed, and what to type; one or a few sentences.

    Attributes
    ----------
    exit_code : int
        The process's exit code if nobody catches the error; also as `SystemExit.code`.
    same_on_every_rank : bool
        Whether all ranks are sure to run into this by themselves, so that one of them alone needs to say it.
    """

    exit_code: int = 1
    same_on_every_rank: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = self.exit_code


class BatchletError(EndError, Exception):
    """Base class of all that can go wrong; also an ordinary exception."""


class InputError(BatchletError):
    """Something that the user can change is wrong; nothing was started."""

    exit_code = 2


class SettingsError(InputError):
    """A keyword, a flag or a ``BATCHLET_*`` variable is unknown or has a value that it cannot have."""

    same_on_every_rank = True


class LauncherError(InputError):
    """A variable that the launcher should have set is missing or malformed."""

    same_on_every_rank = True


class PlanError(InputError):
    """More threads, memory or workers were asked for than the allocation holds."""


class NetworkError(InputError):
    """The network interface or the address cannot be used."""


class UsageError(InputError):
    """The runner was used in a way that cannot work (without ``with``, twice, ...)."""

    same_on_every_rank = True


class RendezvousError(InputError):
    """The directory in which the ranks meet cannot be used."""

    same_on_every_rank = True


class RefusedError(InputError):
    """The run was over before this process could take part: rank 0 has refused it, and said why."""


class StartTimeoutError(BatchletError):
    """The cluster was not complete when ``start_timeout`` had passed."""

    exit_code = 80


class ClusterLostError(BatchletError):
    """The cluster died while the client was using it; raised in the client's main thread."""

    exit_code = 81


class ClientLostError(BatchletError):
    """The client's process died without saying so; the rest of the run ends."""

    exit_code = 82


class VersionMismatchError(BatchletError):
    """The ranks of one run have different versions of Python, Dask or Batchlet."""

    exit_code = 83


class TimeIsUpError(EndError):
    """The allocation ends soon, by the time that was asked for; raised in the client's main thread, after the callbacks.

    No `Exception`, as `TerminatedError` is none.
    """

    exit_code = 84


class TerminatedError(EndError):
    """The run was told to end by a signal; raised in the client's main thread, while the cluster still works.

    No `Exception`, as `KeyboardInterrupt` is none.
    """

    same_on_every_rank = True
    exit_code = 128 + signal.SIGTERM


class InterruptedRunError(TerminatedError, KeyboardInterrupt):
    """The run was interrupted by SIGINT, at a terminal by Ctrl-C."""

    exit_code = 128 + signal.SIGINT


def terminated(number: int, where: str = "") -> TerminatedError:
    """Make the error for a signal.

    Parameters
    ----------
    number : int
        The signal's number.
    where : str
        Which process got it, such as ``"rank 3 on node n2"``; the client if empty.
    """
    name = signal.Signals(number).name
    message = f"{name} ended the run" + (f"; it was sent to {where}" if where else "") + "."
    error = InterruptedRunError(message) if number == signal.SIGINT else TerminatedError(message)
    error.exit_code = error.code = 128 + number
    return error


def error_named(name: str, message: str) -> EndError:
    """Make the error that another rank reported by the name of its class.

    Parameters
    ----------
    name : str
        Name of a class in this module. An unknown name gives a plain `BatchletError`.
    message : str
        The message.
    """
    if name == TerminatedError.__name__ or name == InterruptedRunError.__name__:
        number = next((n for n in signal.Signals if message.startswith(n.name + " ")), signal.SIGTERM)
        error = terminated(number)
        error.args = (message,)
        return error
    cls = globals().get(name)
    if isinstance(cls, type) and issubclass(cls, (BatchletError, TimeIsUpError)):
        return cls(message)
    return BatchletError(message)
