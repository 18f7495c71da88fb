"""``python -m batchlet join RUN``: the nodes of this job host workers for a run of the same user that is under way."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from . import report
from .command_line import Parser
from .environments import detected, first_process
from .errors import EndError, LauncherError, UsageError
from .node.wait import AGENT_ENVIRONMENT
from .rendezvous import CoordinatorRecord, FileRendezvous
from .settings import PREFIX, Settings

__all__ = ["COMMAND", "main"]

#: The first word of the command line.
COMMAND = "join"
# Seconds in which the machine of a run that is under way takes a connection.
_ANSWER = 10.0


def main(arguments: Sequence[str]) -> int:
    """Host workers until the run is over, or this job is.

    Parameters
    ----------
    arguments : sequence of str
        What follows on the command line: the run.

    Returns
    -------
    int
        The exit code: 0 where the run is over, 128 + n after a signal.

    Raises
    ------
    SystemExit
        If the command line cannot be understood (2), or asks for help (0).
    """
    first = first_process(os.environ)
    run = _parse(arguments, speaks=first)
    try:
        file = _file(run)
        record = _find(file)
        _start_on_all_nodes(file)
        missing = {name: value for name, value in AGENT_ENVIRONMENT.items() if name not in os.environ}
        if missing:
            # Some of these count only when a process starts.
            command = [sys.executable, "-m", "batchlet", COMMAND, str(file)]
            os.execve(sys.executable, command, {**os.environ, **missing})  # noqa: S606
        from .node.guest import run_guest

        return run_guest(record, speaks=first)
    except EndError as error:
        # What is wrong for all tasks is said once.
        if first or not isinstance(error, UsageError):
            report.failure(error)
        return error.exit_code


def _parse(arguments: Sequence[str], *, speaks: bool) -> str:
    parser = Parser(
        prog=f"python -m batchlet {COMMAND}",
        description="Have the nodes of this job host workers for a run of yours that is under way, until either ends.",
        epilog=f"The run must have been started so that others can join it: --join, join=True or {PREFIX}JOIN=true.",
        allow_abbrev=False,
    )
    parser.speaks = speaks
    parser.add_argument(
        "run",
        metavar="RUN",
        help="the run's name, as it says itself at the start, or the path of its record",
    )
    return str(parser.parse_args(list(arguments)).run)


def _file(run: str) -> Path:
    """Find out where the record of a run should be."""
    path = Path(run)
    if path.name == run:
        path = Path(Settings.resolve({}, os.environ).rendezvous_dir) / run
    path = path.expanduser().absolute()
    return path if path.suffix == ".json" else path.with_name(f"{path.name}.json")


def _find(file: Path) -> CoordinatorRecord:
    """Read the record of a run, and see whether anybody listens where it says.

    Raises
    ------
    UsageError
        If there is no such run.
    RendezvousError
        If its directory is not one that only this user can use.
    """
    name = file.name.removesuffix(".json")
    record, problem = FileRendezvous(str(file.parent), name, socket.gethostname().split(".")[0]).look()
    if record is None:
        if problem:
            raise UsageError(f"Run {name} cannot be joined: there is {problem}, {file}.")
        others = sorted(path.name.removesuffix(".json") for path in file.parent.glob("*.json"))
        there = f" Runs that can be joined there: {', '.join(others)}." if others else ""
        raise UsageError(
            f"There is no run {name} in {file.parent} that can be joined: it is over, or has its record elsewhere "
            f"(give the path), or was not started with --join (join=True, {PREFIX}JOIN=true).{there}"
        )
    try:
        socket.create_connection((record.host, record.port), _ANSWER).close()
    except OSError as error:
        raise UsageError(
            f"Run {name} is over, or cannot be reached from here: at {record.host}:{record.port}, node {record.node}, nobody "
            f"answers ({error.strerror or error}). If it is over, remove {file}."
        ) from None
    return record


def _start_on_all_nodes(file: Path) -> None:
    """Become the launcher that starts this command on each node of the job, where nobody has started it as its tasks."""
    environment = detected(os.environ)
    launcher = environment.launcher(os.environ)
    if launcher is None:
        return
    info = environment.process(os.environ)
    if not launcher.is_there():
        raise LauncherError(launcher.missing(info.job))
    command = launcher.command(info.world_size, [sys.executable, "-m", "batchlet", COMMAND, str(file)])
    os.execvpe(command[0], command, launcher.environ(os.environ, None))  # noqa: S606
