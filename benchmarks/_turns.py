"""Tools that take turns within each repeat, each time in another order, so that what else the machine does hits all alike."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence

import _numbers
from _report import say, stop, surroundings
from _run import RunError, run, test_slurm, unavailable_slurm
from _tools import Shape, Tool

#: Name in what a run has found, title, what it is divided by, digits, whether less is better.
Figure = tuple[str, str, float, int, bool]
Found = dict[str, dict[str, float]]
#: Two workers on one node, beside scheduler and client; two workers on each of two nodes.
SHAPES = {1: Shape(1, 4), 2: Shape(2, 6)}


def arguments(description: str, timeout: float = 120.0) -> argparse.ArgumentParser:
    """Make a parser of what every such benchmark can be told, and have SIGTERM end what was started."""
    signal.signal(signal.SIGTERM, stop)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each (default: 7)")
    parser.add_argument("--quick", action="store_true", help="tiny runs that show that it works; says nothing")
    parser.add_argument(
        "--timeout", type=float, default=timeout, metavar="S", help=f"of one run (default: {timeout:g})"
    )
    return parser


def compare(
    compared: Mapping[str, Tool],
    shapes: Mapping[str, Shape],
    works: Sequence[str],
    figures: Sequence[Figure],
    options: argparse.Namespace,
    environ: Mapping[str, str] = os.environ,
    workers: int | None = None,
) -> int:
    """Run each tool in turn, and print medians and ratios.

    Parameters
    ----------
    compared
        The tools by their titles, the one that the others are compared with first.
    shapes
        How large the runs are, by what that is called.
    works
        The names of what each run's client does, of `work.WORKS`.
    figures
        The rows of the table; those that no run has found are left out.
    options
        What `arguments` has read.
    environ
        The environment that speaks to the Slurm, if there is one.
    workers
        How many there will be, if not as `Tool.workers` says.

    Returns
    -------
    int
        The exit code: 1 if some place has no figures.
    """
    found: dict[str, list[Found]] = {where: [] for where in shapes}
    failures = []
    for turn in range(options.repeats):
        names = list(compared)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for where, shape in shapes.items():
            more = {"timeout": options.timeout, "quick": options.quick, "workers": workers}
            try:
                got = {name: run(compared[name], shape, works, environ, **more) for name in names}
            except RunError as error:
                failures.append(f"{where}: {error}")
                say(f"[{turn + 1}/{options.repeats}] {where}: FAILED: {error}")
                continue
            found[where].append({name: got[name] for name in compared})
            key, title, unit, digits, _ = next(one for one in figures if all(one[0] in each for each in got.values()))
            told = ", ".join(f"{name} {got[name][key] / unit:.{digits}f}" for name in compared)
            say(f"[{turn + 1}/{options.repeats}] {where}: {title}: {told}")
    table = [
        _row(where, done, figure)
        for where, done in found.items()
        for figure in figures
        if done and all(figure[0] in each for one in done for each in one.values())
    ]
    _, *others = compared
    print(f"{surroundings()}; medians of {options.repeats} (least-greatest)\n")
    print(_numbers.table(["", *compared, *others], table))
    print("".join(f"\nA run that failed: {failure}" for failure in failures), end="")
    return int(not all(found.values()))


def main(
    description: str,
    tools: Callable[[bool], Mapping[str, Tool]],
    works: Sequence[str],
    figures: Sequence[Figure],
) -> int:
    """Compare tools on one node and on two of a test Slurm, or without one on this machine.

    Parameters
    ----------
    description
        For the help.
    tools
        Gives what is compared; told whether there is no Slurm.
    works, figures
        As in `compare`.

    Returns
    -------
    int
        The exit code.
    """
    parser = arguments(description)
    parser.add_argument("--nodes", nargs="+", type=int, choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--local", action="store_true", help="two workers on this machine, without a Slurm")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    options = parser.parse_args()
    reason = None if options.local else unavailable_slurm(options.instance)
    if reason:
        parser.error(f"{reason} (or take --local)")
    shapes = {"local": Shape(1, 2)} if options.local else {f"{n} node{'s'[: n - 1]}": SHAPES[n] for n in options.nodes}
    with contextlib.ExitStack() as stack:
        environ = os.environ if options.local else stack.enter_context(test_slurm(options.instance))
        return compare(tools(options.local), shapes, works, figures, options, environ)


def _row(where: str, found: list[Found], figure: Figure) -> list[str]:
    """Give a row of the table: medians, and how many times as good as the first one each is, run by run of one repeat."""
    name, title, unit, digits, less = figure
    first, *others = found[0]
    cells = [_numbers.spread([one[tool][name] / unit for one in found], digits) for tool in found[0]]
    for tool in others:
        ratios = [one[tool][name] / one[first][name] for one in found]
        cells.append(f"{statistics.median(1 / ratio if less else ratio for ratio in ratios):.2f}x")
    return [f"{where}: {title}", *cells]
