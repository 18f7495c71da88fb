"""Another commit's Batchlet beside that of this working tree: is it as quick, and as small, as it was?

    python benchmarks/before_after.py main                             # as root on Debian or Ubuntu
    python benchmarks/before_after.py v0.1.0 --ranks 8 64 --runs 5 --memory-at 32

Both run the same workload on a throwaway Slurm of four nodes on this machine, in turns, run by run, so that what else the
machine does hits both alike. The other commit lies in a git worktree in a temporary directory while this runs. See README.md
for how each figure is taken. The exit code is 1 if something could not be measured at all.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import _numbers
from _report import say, stop, surroundings
from _run import test_slurm
from _tools import HERE, TOOLS, Shape, Tool
from compare import Case, Cases, measure

NODES = 4
REPOSITORY = HERE.parent


@contextlib.contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """Have the files of a commit in a temporary directory.

    Raises
    ------
    SystemExit
        If git does not know the commit.
    """
    with tempfile.TemporaryDirectory(prefix="before-") as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(REPOSITORY)]
        made = subprocess.run(
            [*git, "worktree", "add", "--quiet", "--detach", str(tree), revision],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise SystemExit(f"benchmarks: no worktree of {revision}: {made.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=False)


def tool(name: str, title: str, tree: Path) -> Tool:
    """Batchlet from that directory, compiled, as pip does when it installs it.

    Raises
    ------
    SystemExit
        If Python would take another one.
    """
    paths = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
    compileall.compile_dir(tree / "batchlet", quiet=1)
    found = subprocess.run(
        [sys.executable, "-c", "import batchlet; print(batchlet.__file__)"],
        env={**os.environ, "PYTHONPATH": paths}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if Path(found.stdout.strip()).parent != tree / "batchlet":
        raise SystemExit(f"benchmarks: not the Batchlet of {title}: {found.stdout.strip() or found.stderr.strip()}")
    return replace(TOOLS["batchlet"], name=name, title=title, variables=(("PYTHONPATH", paths),))


def plan(tools: Sequence[Tool], ranks: Sequence[int], memory_at: int, runs: int) -> Cases:
    """List what to run, both tools in turn for each shape."""
    cases: Cases = {}
    for number in dict.fromkeys([*ranks, *([memory_at] if memory_at else [])]):
        shape = Shape(NODES, number)
        for each in tools:
            works = ["memory"] if number == memory_at else []
            cases[each.name, shape] = Case(each, shape, works, runs)
    return cases


def report(cases: Cases, tools: Sequence[Tool], ranks: Sequence[int], memory_at: int) -> str:
    """Write the table: a row for each figure; above 1 it has become worse."""
    wanted = [(name, unit, number, name, 2) for number in ranks for name, unit in (("ready", "s"), ("end", "s"))]
    if memory_at:
        wanted += [
            ("memory of a worker, before any task", "MB", memory_at, "memory-idle", 1),
            ("memory of a worker, after 20 tasks each", "MB", memory_at, "memory-used", 1),
        ]
    rows = []
    for title, unit, number, name, digits in wanted:
        found = [cases[each.name, Shape(NODES, number)] for each in tools]
        cells = [_numbers.spread(case.numbers(name), digits) if case.runs else "failed" for case in found]
        ratio = "-"
        if all(case.runs for case in found):
            before, after = (statistics.median(case.numbers(name)) for case in found)
            ratio = f"{after / before:.2f}" if before > 0 else "-"
        rows.append([f"{title}, {number} ranks ({unit})", *cells, ratio])
    text = _numbers.table(["", *(each.title for each in tools), "after / before"], rows)
    failures = [f"- {case.tool.title}, {case.shape}: {failure}" for case in cases.values() for failure in case.failures]
    return "\n".join([text, *(["", "Runs that failed:", *failures] if failures else [])])


def ranks_of(text: str) -> int:
    number = int(text)
    if number < 0 or number % NODES:
        raise argparse.ArgumentTypeError(f"ranks are spread over {NODES} nodes evenly, which {number} cannot be")
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Another commit's Batchlet beside that of this working tree.")
    parser.add_argument("revision", metavar="REV", help="the commit to compare with: a hash, a branch, a tag")
    parser.add_argument("--ranks", type=ranks_of, nargs="+", default=[8, 64], metavar="N", help="default: 8 64")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each kind (default: 5)")
    parser.add_argument(
        "--memory-at", type=ranks_of, default=32, metavar="N", help="ranks (default: 32; 0 leaves it out)"
    )
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of one run (default: 120)")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    parser.add_argument("--quick", action="store_true", help="tiny works, no warming up: it shows that it works")
    options = parser.parse_args()
    if 0 in options.ranks:
        parser.error("--ranks must be above 0")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def main() -> int:
    options = arguments()
    # So that SIGTERM ends what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, stop)
    with tree_of(options.revision) as tree, test_slurm(options.instance) as environ:
        tools = [
            tool("before", f"before ({options.revision})", tree),
            tool("after", "after (this working tree)", REPOSITORY),
        ]
        cases = plan(tools, options.ranks, options.memory_at, options.runs)
        measure(cases, environ, lambda: None, timeout=options.timeout, quick=options.quick)
    say("done")
    about = f"{surroundings()}; medians of {options.runs} (least-greatest), the two in turn"
    print(f"{about}\n\n{report(cases, tools, options.ranks, options.memory_at)}")
    return int(any(not case.runs for case in cases.values()))


if __name__ == "__main__":
    sys.exit(main())
