"""How processes talk to each other: Batchlet by default, with TLS inside the nodes too, and SLURMRunner in the clear.

    python benchmarks/links.py                              # one node and two, seven runs of each
    python benchmarks/links.py --nodes 1 --repeats 3
    python benchmarks/links.py --local                      # two workers on this machine, without a Slurm and SLURMRunner

Small tasks a second, transfer between two workers, a shuffle. The tools take turns within each repeat, each time in another
order, and each ratio is that of two runs of one repeat, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace

import _numbers
from _report import say, stop, surroundings
from _run import RunError, run, test_slurm, unavailable_slurm
from _tools import BASE, PREFIX, TOOLS, Shape, Tool
from tls import LOCAL

WORKS = ("tasks", "transfer", "shuffle")
# Name, title, digits, whether less is better.
FIGURES = (
    ("tasks", "small tasks/s", 0, False),
    ("transfer", "transfer MB/s", 0, False),
    ("shuffle", "shuffle, seconds", 2, True),
)
#: Two workers on one node, beside scheduler and client; two workers on each of two nodes.
SHAPES = {1: Shape(1, 4), 2: Shape(2, 6)}
Found = dict[str, dict[str, float]]


def tools(*, local: bool) -> dict[str, Tool]:
    """Give what is compared, the one that the others are compared with first."""
    ours = LOCAL if local else TOOLS["batchlet"]
    off = replace(ours, variables=(*ours.variables, (f"{PREFIX}NODE_LINKS", "false")))
    clear = replace(ours, variables=(*ours.variables, (f"{PREFIX}SECURITY", "false")))
    first = {"in the clear": clear} if local else {"SLURMRunner": TOOLS[BASE]}
    return {**first, "TLS in the node too": off, "by default": ours}


def measure(
    compared: Mapping[str, Tool], shape: Shape, environ: Mapping[str, str], turn: int, timeout: float, *, quick: bool
) -> Found:
    """Run each of them once."""
    names = list(compared)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    return {name: run(compared[name], shape, WORKS, environ, timeout=timeout, quick=quick) for name in names}


def rows(where: str, found: list[Found], figure: tuple[str, str, int, bool]) -> list[str]:
    """Give a row of the table: medians, and how many times as good as the first one each is."""
    name, title, digits, less = figure
    first, *others = found[0]
    cells = [_numbers.spread([one[tool][name] for one in found], digits) for tool in found[0]]
    for tool in others:
        ratios = [one[tool][name] / one[first][name] for one in found]
        cells.append(f"{statistics.median(1 / ratio if less else ratio for ratio in ratios):.2f}x")
    return [f"{where}: {title}", *cells]


def main() -> int:
    parser = argparse.ArgumentParser(description="How processes talk to each other, and what it costs.")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each (default: 7)")
    parser.add_argument("--nodes", nargs="+", type=int, choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--local", action="store_true", help="on this machine, beside Batchlet with security off")
    parser.add_argument("--quick", action="store_true", help="tiny runs that show that it works; says nothing")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of one run (default: 120)")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    reason = None if options.local else unavailable_slurm(options.instance)
    if reason:
        parser.error(f"{reason} (or take --local)")
    compared = tools(local=options.local)
    shapes = {"local": Shape(1, 2)} if options.local else {f"{n} node{'s'[: n - 1]}": SHAPES[n] for n in options.nodes}
    found: dict[str, list[Found]] = {where: [] for where in shapes}
    failures = []
    with contextlib.ExitStack() as stack:
        environ = os.environ if options.local else stack.enter_context(test_slurm(options.instance))
        for turn in range(options.repeats):
            for where, shape in shapes.items():
                try:
                    found[where].append(measure(compared, shape, environ, turn, options.timeout, quick=options.quick))
                except RunError as error:
                    failures.append(f"{where}: {error}")
                    say(f"[{turn + 1}/{options.repeats}] {where}: FAILED: {error}")
                    continue
                speeds = ", ".join(f"{name} {found[where][-1][name]['transfer']:.0f}" for name in compared)
                say(f"[{turn + 1}/{options.repeats}] {where}: transfer MB/s: {speeds}")
    table = [rows(where, done, figure) for where, done in found.items() if done for figure in FIGURES]
    _, *others = compared
    print(f"{surroundings()}; medians of {options.repeats} (least-greatest)\n")
    print(_numbers.table(["", *compared, *others], table))
    print("".join(f"\nA run that failed: {failure}" for failure in failures), end="")
    return int(not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())
