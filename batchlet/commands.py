"""The words that ``python -m batchlet`` takes in place of a script; each is a module with a function ``main(arguments)``."""

from __future__ import annotations

__all__ = ["COMMANDS", "find_command"]

#: By its word: the module inside Batchlet, what follows the word, and what it is for, as the help says it.
#: A module is imported only when its word is typed; its `main` gives the exit code, or raises an `EndError` that is told.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "ps": ("visits.ps", "[DIR]", "my runs that were started with --attach or --join"),
    "top": ("visits.top", "[RUN]", "what the workers of such a run are doing"),
    "attach": ("visits.prompt", "[RUN]", "a Python prompt with a client of such a run; also -c CODE"),
    "dashboard": ("visits.dashboard", "[RUN]", "where such a run's dashboard is, and the way there"),
    "join": ("joining", "RUN", "in another job: its nodes come on top (of a run with --join)"),
    "report": ("reporting", "FILE", "what a run did with what it was granted (report.json of --report)"),
}


def find_command(arguments: list[str]) -> str | None:
    """Say which command a command line is.

    Parameters
    ----------
    arguments : list of str
        Without the name of the program, which is ours.

    Returns
    -------
    str or None
        The word; `None` where it is options and a program.
    """
    return arguments[0] if arguments and arguments[0] in COMMANDS else None
