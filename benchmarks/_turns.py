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


def main(
    description: str,
    tools: Callable[[bool], Mapping[str, Tool]],
    works: Sequence[str],
    figures: Sequence[Figure],
    argv: Sequence[str] | None = None,
) -> int:
    """Read the command line, run each tool in turn, and print medians and ratios.

    Parameters
    ----------
    description
        For the help.
    tools
        Gives what is compared, the one that the others are compared with first; told whether there is no Slurm.
    works
        The names of what each run's client does, of `work.WORKS`.
    figures
        The rows of the table.
    argv
        The arguments, if not those of the command line.

    Returns
    -------
    int
        The exit code: 1 if some place has no figures.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each (default: 7)")
    parser.add_argument("--nodes", nargs="+", type=int, choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--local", action="store_true", help="two workers on this machine, without a Slurm")
    parser.add_argument("--quick", action="store_true", help="tiny runs that show that it works; says nothing")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of one run (default: 120)")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    reason = None if options.local else unavailable_slurm(options.instance)
    if reason:
        parser.error(f"{reason} (or take --local)")
    compared = tools(options.local)
    shapes = {"local": Shape(1, 2)} if options.local else {f"{n} node{'s'[: n - 1]}": SHAPES[n] for n in options.nodes}
    found: dict[str, list[Found]] = {where: [] for where in shapes}
    failures = []
    with contextlib.ExitStack() as stack:
        environ = os.environ if options.local else stack.enter_context(test_slurm(options.instance))
        for turn in range(options.repeats):
            for where, shape in shapes.items():
                names = list(compared)
                names = names[turn % len(names) :] + names[: turn % len(names)]
                try:
                    got = {
                        name: run(compared[name], shape, works, environ, timeout=options.timeout, quick=options.quick)
                        for name in names
                    }
                except RunError as error:
                    failures.append(f"{where}: {error}")
                    say(f"[{turn + 1}/{options.repeats}] {where}: FAILED: {error}")
                    continue
                found[where].append({name: got[name] for name in compared})
                key, title, unit, digits, _ = figures[-1]
                told = ", ".join(f"{name} {found[where][-1][name][key] / unit:.{digits}f}" for name in compared)
                say(f"[{turn + 1}/{options.repeats}] {where}: {title}: {told}")
    table = [_row(where, done, figure) for where, done in found.items() if done for figure in figures]
    _, *others = compared
    print(f"{surroundings()}; medians of {options.repeats} (least-greatest)\n")
    print(_numbers.table(["", *compared, *others], table))
    print("".join(f"\nA run that failed: {failure}" for failure in failures), end="")
    return int(not all(found.values()))


def _row(where: str, found: list[Found], figure: Figure) -> list[str]:
    """Give a row of the table: medians, and how many times as good as the first one each is, run by run of one repeat."""
    name, title, unit, digits, less = figure
    first, *others = found[0]
    cells = [_numbers.spread([one[tool][name] / unit for one in found], digits) for tool in found[0]]
    for tool in others:
        ratios = [one[tool][name] / one[first][name] for one in found]
        cells.append(f"{statistics.median(1 / ratio if less else ratio for ratio in ratios):.2f}x")
    return [f"{where}: {title}", *cells]
