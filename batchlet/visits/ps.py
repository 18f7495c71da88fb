"""``python -m batchlet ps``: my runs that can be attached to, what they have and how much of it they use at this moment."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import report
from ..command_line import Parser
from ..settings import describe_bytes
from . import find
from .find import Run
from .probe import Life, Seen, probe, security_of
from .usage import Total, percent, total_of, workers_of

__all__ = ["main"]

# Seconds for a scheduler to say what its workers do; one that is busy is slower than the coordinator.
_ANSWER = 5.0
# Seconds after which a run that does not answer is not spoken of any more, one by one.
_OLD = 24 * 3600.0
_HEAD = ("RUN", "JOB", "SINCE", "NODES", "WORKERS", "CPUS", "MEMORY", "TASKS")


def main(arguments: Sequence[str]) -> int:
    """List the runs.

    Parameters
    ----------
    arguments : sequence of str
        What follows on the command line.

    Returns
    -------
    int
        The exit code.
    """
    asked = _parser().parse_args(list(arguments))
    runs = find.runs(asked.directory)
    seen = probe(runs)
    dead = [run for run, life in zip(runs, seen, strict=True) if life.life is Life.DEAD]
    unanswering = {Life.SILENT, Life.UNREADABLE} if asked.forget else set()
    dead += [run for run, life in zip(runs, seen, strict=True) if life.life in unanswering]
    for run in dead:
        find.forget(run)
    left = [(run, life) for run, life in zip(runs, seen, strict=True) if run not in dead and life.life is not Life.OVER]
    alive = [(run, life) for run, life in left if life.life is Life.ALIVE]
    used = asyncio.run(_use(alive)) if any(life.cluster is not None for _, life in alive) else {}
    if asked.json:
        sys.stdout.write(json.dumps([_as_data(run, life, used.get(run.file)) for run, life in left], indent=2) + "\n")
    else:
        sys.stdout.write(_table([_row(run, life, used.get(run.file)) for run, life in alive]) if alive else "")
        _tell([(run, life) for run, life in left if life.life is not Life.ALIVE])
        if not left:
            report.note("no run of yours is under way that was started with --attach or --join")
    if dead:
        report.note(
            f"{report.count(len(dead), 'record')} of runs that are over {'is' if len(dead) == 1 else 'are'} removed"
        )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m batchlet ps",
        description="List your runs that were started with --attach or --join, and your clusters of jobs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="*",
        help="look for runs that were started in these directories alone (default: all that are known in your home directory)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--forget", action="store_true", help="remove the records of runs that do not answer")
    return parser


async def _use(alive: Sequence[tuple[Run, Seen]]) -> dict[Any, Total]:
    """Ask all schedulers at once what their workers do."""
    from ..dask_backend.compat.visiting import identity
    from ..dask_backend.logs import hush

    # What goes in the middle of an answer is no news.
    hush()

    async def ask(run: Run, seen: Seen) -> tuple[Any, Total | None]:
        if seen.cluster is None:
            return run.file, None
        try:
            question = identity(seen.cluster.address, security_of(seen.cluster))
            return run.file, total_of(workers_of(await asyncio.wait_for(question, _ANSWER)))
        except (OSError, asyncio.TimeoutError):
            return run.file, None

    answers = await asyncio.gather(*(ask(run, seen) for run, seen in alive))
    return {file: total for file, total in answers if total is not None}


def _row(run: Run, seen: Seen, used: Total | None) -> tuple[str, ...]:
    since = _since(run)
    if seen.cluster is None:
        return (run.name, run.job, since, "", "", "no cluster at the moment")
    if used is None:
        return (run.name, run.job, since, "", "", "its scheduler is busy")
    return (
        run.name,
        run.job,
        since,
        str(used.nodes),
        str(used.workers),
        f"{percent(used.cpu)} of {used.threads}",
        f"{percent(used.memory / used.limit)} of {describe_bytes(used.limit)}"
        if used.limit
        else describe_bytes(used.memory),
        f"{used.executing} running, {used.waiting} ready",
    )


def _since(run: Run) -> str:
    if not run.began:
        return ""
    began, now = time.localtime(run.began), time.localtime()
    day = "" if began[:3] == now[:3] else time.strftime("%Y-%m-%d ", began)
    return f"{day}{time.strftime('%H:%M', began)} ({report.duration(max(0.0, time.time() - run.began))})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [_HEAD, *rows]
    # What stands last in its row takes no column's room.
    widths = [
        max((len(line[column]) for line in lines if column < len(line) - 1), default=0) for column in range(len(_HEAD))
    ]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() + "\n"
        for line in lines
    )


def _tell(others: Sequence[tuple[Run, Seen]]) -> None:
    """Say what is known of those that are not known to be alive: of old ones how many, of the others each by itself."""
    old = [run for run, seen in others if seen.life is not Life.ELSEWHERE and time.time() - run.began > _OLD]
    for run, seen in others:
        if run in old:
            continue
        if seen.life is Life.ELSEWHERE and run.record is not None:
            report.note(f"{run.name} (since {_since(run)}) can be attached to from node {run.record.node} alone")
        elif run.record is None:
            report.note(f"{run.name}: {run.problem or f'its record {run.file} is not there, or not on this machine'}")
        else:
            report.note(f"{run.name} (since {_since(run)}) does not answer: node {run.record.node} is gone, or slow")
    if old:
        report.note(
            f"{report.count(len(old), 'older run')} {'does' if len(old) == 1 else 'do'} not answer; "
            "`python -m batchlet ps --forget` removes the records of all that do not"
        )


def _as_data(run: Run, seen: Seen, used: Total | None) -> Mapping[str, Any]:
    record = run.record
    return {
        "run": run.name,
        "job": run.job or None,
        "state": seen.life.value,
        "began": run.began or None,
        "node": record.node if record is not None else None,
        "record": str(run.file),
        "use": None if used is None else vars(used),
    }
