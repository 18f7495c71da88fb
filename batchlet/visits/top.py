"""``python -m batchlet top RUN``: the workers of a run, live; asked of its scheduler, which knows it anyway."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import report
from ..settings import describe_bytes
from ..values import seconds
from ..versions import versions
from .host_names import HostNames
from .probe import Cluster, security_of
from .usage import Total, Worker, percent, total_of, workers_of
from .visit import Visit, run_parser, visit

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["main"]

# Seconds for a scheduler to answer; while it is busy, the last answer stays.
_ANSWER = 30.0
_HEAD = ("WORKER", "NODE", "CPU", "MEMORY", "SPILLED", "TASKS", "READY", "NODE NET")
# Lines of the screen that are no worker's, with rich and without.
_RICH_ROOM, _PLAIN_ROOM = 7, 4
_LEAST = 5
# Seconds for the names of hosts, where there is no second look.
_NAMES = 1.0
_names = HostNames()


def main(arguments: Sequence[str]) -> int:
    """Show the workers of a run until it is over, or somebody types Ctrl-C.

    Parameters
    ----------
    arguments : sequence of str
        What follows on the command line.

    Returns
    -------
    int
        The exit code.
    """
    parser = run_parser(
        "top",
        "Show what the workers of a run are doing, the busiest ones first; Ctrl-C leaves.",
        epilog="It needs no more than a terminal; with rich installed (pip install 'dask-batchlet[rich]') it is a screen.",
    )
    parser.add_argument("--once", action="store_true", help="print this once, as plain text with all workers")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=2.0, help="seconds between two looks (2)"
    )
    asked = parser.parse_args(list(arguments))
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(visit(asked.run, versions())) as visited:
        if asked.once:
            _once(visited)
        else:
            _show(visited, asked.interval)
    return 0


def _once(visit: Visit) -> None:
    cluster = visit.cluster
    if cluster is None:
        report.note(visit.last_word)
        return
    workers = workers_of(asyncio.run(_identity(cluster)))
    _names.find_out((worker.host for worker in workers), _NAMES)
    sys.stdout.write(_text(visit, workers, len(workers)))


async def _identity(cluster: Cluster) -> Any:
    from ..dask_backend.compat.visiting import identity
    from ..dask_backend.logs import hush

    hush()
    return await asyncio.wait_for(identity(cluster.address, security_of(cluster)), _ANSWER)


def _show(visit: Visit, interval: float) -> None:
    with contextlib.ExitStack() as stack:
        show = _screen(stack) if sys.stdout.isatty() else None
        while not visit.is_over:
            cluster, workers = visit.cluster, None
            if cluster is not None:
                # The scheduler may end in the middle of the question.
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    workers = workers_of(asyncio.run(_identity(cluster)))
            if visit.is_over:
                break
            _names.find_out(worker.host for worker in workers or ())
            if show is not None:
                show(visit, workers)
            else:
                room = shutil.get_terminal_size().lines - _PLAIN_ROOM if sys.stdout.isatty() else _LEAST * 4
                sys.stdout.write(_text(visit, workers, max(_LEAST, room)) + "\n")
                sys.stdout.flush()
            visit.wait(interval)
    report.note(visit.last_word)


def _headline(visit: Visit, total: Total | None) -> str:
    record = visit.record
    since = f", {report.duration(max(0.0, time.time() - record.began))}" if record.began else ""
    title = f"{visit.run_id}{since}, {time.strftime('%H:%M:%S')}"
    if total is None:
        return f"{title}: {'its scheduler is busy' if visit.cluster is not None else 'no cluster at the moment'}"
    memory = f"{describe_bytes(total.memory)}{f' of {describe_bytes(total.limit)}' if total.limit else ''}"
    return (
        f"{title}: {report.count(total.workers, 'worker')} on {report.count(total.nodes, 'node')}, "
        f"CPUs {percent(total.cpu)} of {total.threads}, memory {memory}, {total.executing} tasks running, {total.waiting} ready"
        + (f", {describe_bytes(total.spilled)} spilled" if total.spilled else "")
        + (f", {total.paused} paused" if total.paused else "")
    )


def _cells(worker: Worker) -> tuple[str, ...]:
    used = (
        f"{percent(worker.filled)} of {describe_bytes(worker.limit)}" if worker.limit else describe_bytes(worker.memory)
    )
    return (
        worker.name + (" (paused)" if worker.paused else ""),
        _names[worker.host],
        percent(worker.cpu),
        used,
        describe_bytes(worker.spilled) if worker.spilled else "-",
        f"{worker.executing}/{worker.threads}",
        str(worker.waiting),
        f"{describe_bytes(int(worker.network))}/s",
    )


def _text(visit: Visit, workers: list[Worker] | None, room: int) -> str:
    """Write what there is as plain text; so many workers at most."""
    if workers is None:
        return _headline(visit, None) + "\n"
    rows = [_HEAD, *(_cells(worker) for worker in workers[:room])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    right = range(2, len(_HEAD))
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    more = [f"and {len(workers) - room} more, less busy"] if len(workers) > room else []
    return "\n".join([_headline(visit, total_of(workers)), *lines, *more]) + "\n"


def _screen(stack: contextlib.ExitStack) -> Any:
    """Give what draws on the whole terminal; `None` without rich."""
    try:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return None
    console = Console()
    live: Live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))

    def show(visit: Visit, workers: list[Worker] | None) -> None:
        found = workers or []
        room = max(_LEAST, console.height - _RICH_ROOM)
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        for number, name in enumerate(_HEAD):
            table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True, overflow="ellipsis")
        for worker in found[:room]:
            cells = [Text(cell) for cell in _cells(worker)]
            if worker.executing:
                cells[2].stylize("green")
            cells[3].stylize("red" if worker.paused or worker.filled > 0.8 else "yellow" if worker.filled > 0.6 else "")
            table.add_row(*cells)
        headline = Text(_headline(visit, total_of(found) if workers is not None else None), style="bold")
        more = f"and {len(found) - room} more, less busy; " if len(found) > room else ""
        foot = Text(f"{more}Ctrl-C leaves, the run goes on", style="dim")
        live.update(Group(headline, Text(), table, Text(), foot), refresh=True)

    return show
