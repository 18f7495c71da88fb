"""What TLS costs: seconds until the cluster is ready, small tasks a second, transfer between two workers, a shuffle.

    python benchmarks/tls.py                            # two workers on this machine, and a test Slurm where one can be
    python benchmarks/tls.py --repeats 9 --modes local

Each repeat starts one run with security and one without, in turns, so that what else the machine does hits both alike. The
ratio is that of the two runs of each turn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import _numbers
from _report import say, stop, surroundings
from _run import RunError, run, test_slurm, unavailable_slurm
from _tools import PREFIX, TOOLS, Shape, Tool

# Not more workers than a small machine has CPUs.
SIZES = (("WORKERS_PER_NODE", "2"), ("THREADS_PER_WORKER", "1"), ("MEMORY_PER_WORKER", "1GiB"))
LOCAL = Tool(
    "local", "two workers", "with_batchlet.py", "local", variables=tuple((f"{PREFIX}{k}", v) for k, v in SIZES)
)
MODES = {"local": (LOCAL, Shape(1, 2)), "srun": (TOOLS["batchlet"], Shape(2, 4))}
WORKS = ("tasks", "transfer", "shuffle")
# Name, title, digits, whether less is better.
FIGURES = (
    ("ready", "seconds to ready", 2, True),
    ("tasks", "small tasks/s", 0, False),
    ("transfer", "transfer MB/s", 0, False),
    ("shuffle", "shuffle, seconds", 2, True),
)
Pair = tuple[dict[str, float], dict[str, float]]


def measure(mode: str, environ: Mapping[str, str], *, first: bool, timeout: float, quick: bool) -> Pair:
    """Start a run with security and one without; `first` says which one is the first."""
    tool, shape = MODES[mode]
    found = {}
    for secure in (first, not first):
        # By default there would be Unix sockets inside a node, which links.py measures.
        variables = (*tool.variables, (f"{PREFIX}NODE_LINKS", "false"), (f"{PREFIX}SECURITY", str(secure).lower()))
        found[secure] = run(replace(tool, variables=variables), shape, WORKS, environ, timeout=timeout, quick=quick)
    return found[True], found[False]


def row(mode: str, pairs: Sequence[Pair], figure: tuple[str, str, int, bool]) -> list[str]:
    name, title, digits, less = figure
    on, off = ([pair[side][name] for pair in pairs] for side in (0, 1))
    ratio = [one / other for one, other in zip(on, off, strict=True)]
    worse = statistics.median(ratio) > 1.1 if less else statistics.median(ratio) < 1 / 1.1
    spreads = [_numbers.spread(on, digits), _numbers.spread(off, digits), _numbers.spread(ratio, 2)]
    return [f"{mode}: {title}", *spreads, "costs more than 10 %" if worse else ""]


def main() -> int:
    parser = argparse.ArgumentParser(description="What TLS costs.")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each kind (default: 7)")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), help="default: all that are possible here")
    parser.add_argument("--quick", action="store_true", help="tiny runs that show that it works; says nothing")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of one run (default: 120)")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    modes = options.modes
    if modes is None:
        reason = unavailable_slurm(options.instance)
        modes = ["local"] if reason else list(MODES)
        if reason:
            say(f"without srun: {reason}")
    found: dict[str, list[Pair]] = {mode: [] for mode in modes}
    failures = []
    with contextlib.ExitStack() as stack:
        environ = stack.enter_context(test_slurm(options.instance)) if "srun" in modes else os.environ
        for repeat in range(options.repeats):
            for mode in modes:
                try:
                    # The one that goes first may meet a cold machine: take turns.
                    pair = measure(mode, environ, first=bool(repeat % 2), timeout=options.timeout, quick=options.quick)
                except RunError as error:
                    failures.append(f"{mode}: {error}")
                    say(f"[{repeat + 1}/{options.repeats}] {mode}: FAILED: {error}")
                    continue
                found[mode].append(pair)
                told = ", ".join(f"{pair[side]['ready']:.2f} s" for side in (0, 1))
                say(f"[{repeat + 1}/{options.repeats}] {mode}: ready with and without security after {told}")
    rows = [row(mode, pairs, figure) for mode, pairs in found.items() if pairs for figure in FIGURES]
    print(f"{surroundings()}; medians of {options.repeats} (least-greatest)\n")
    print(_numbers.table(["", "security on", "security off", "on / off", ""], rows))
    print("".join(f"\nA run that failed: {failure}" for failure in failures), end="")
    return int(not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())
