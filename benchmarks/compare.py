"""Batchlet beside dask-jobqueue's SLURMRunner and dask-mpi, on a throwaway Slurm of four nodes on this machine.

    python benchmarks/compare.py                                    # everything; as root on Debian or Ubuntu
    python benchmarks/compare.py --only ready --svg docs/ready.svg  # one section, and the plot
    python benchmarks/compare.py --read FILE                        # the tables of an earlier run's --json FILE

The tools take turns, run by run, so that what else the machine does hits all alike. See README.md for how each figure is
taken. The exit code is 1 if something could not be measured at all.
"""

from __future__ import annotations

import argparse
import compileall
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import _numbers
from _report import say, stop, surroundings
from _run import RunError, run, test_slurm
from _svg import Line, plot
from _tools import BASE, TOOLS, Shape, Tool

import batchlet

# A tool that hangs would otherwise take its time-out in each repeat.
MOST_FAILURES = 2


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    ranks: tuple[Shape, ...]
    per_node: tuple[Shape, ...]
    memory: tuple[Shape, ...]
    throughput: tuple[Shape, ...]
    cpus: tuple[Shape, ...]


FULL = Scope(
    ranks=tuple(Shape(4, ranks) for ranks in (4, 8, 16, 32, 64)),
    per_node=(Shape(4, 16), Shape(2, 16), Shape(1, 16)),
    memory=(Shape(4, 32),),
    throughput=(Shape(2, 6),),
    cpus=(Shape(4, 4, 8), Shape(4, 12)),
)
# One launch of each tool, in which everything is taken.
ONE = (Shape(2, 4),)
QUICK = Scope(ONE, ONE, ONE, ONE, ONE)


@dataclass
class Case:
    """One tool in one shape: what its client does, how often it is run, and what was found."""

    tool: Tool
    shape: Shape
    works: list[str] = field(default_factory=list)
    repeats: int = 0
    runs: list[dict[str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def numbers(self, name: str) -> list[float]:
        return [figures[name] for figures in self.runs]


Cases = dict[tuple[str, Shape], Case]


@dataclass(frozen=True)
class Section:
    """One table or two: the shapes, the tools and the works, and how to write them.

    `most` is how often each run is repeated at most: not every figure has a spread.
    """

    shapes: Callable[[Scope], tuple[Shape, ...]]
    tools: tuple[str, ...]
    works: tuple[str, ...]
    show: Callable[[Cases, Sequence[Tool], Sequence[Shape]], str]
    most: int = 1000


# The tables -------------------------------------------------------------------------------------------------------


def cell(cases: Cases, tool: Tool, shape: Shape, name: str, *, digits: int = 2, less: bool = True) -> str:
    """Write the figures of one case, and how many times better than the base's they are."""
    case = cases[tool.name, shape]
    if not case.runs:
        return "failed" if case.failures else tool.missing() or "-"
    numbers = case.numbers(name)
    text = _numbers.spread(numbers, digits)
    base = cases.get((BASE, shape))
    if base is not None and base is not case and base.runs:
        one, other = statistics.median(base.numbers(name)), statistics.median(numbers)
        text += f" {(one / other if less else other / one):.2f}x"
    return text + (f" [{len(case.failures)} failed]" if case.failures else "")


def growth(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape], name: str) -> list[str]:
    """Write the seconds for each added worker, of each tool."""
    slopes = {}
    for tool in tools:
        found = [cases[tool.name, shape] for shape in shapes if cases[tool.name, shape].runs]
        slopes[tool.name] = _numbers.slope(
            [(tool.workers(case.shape), statistics.median(case.numbers(name))) for case in found]
        )
    base = slopes.get(BASE)
    texts = []
    for tool in tools:
        value = slopes[tool.name]
        text = "-" if value is None else f"{value:.3f}"
        if value is not None and base is not None and tool.name != BASE:
            text += f" 1/{base / value:.1f}" if value > 0 else " (none)"
        texts.append(text)
    return texts


def seconds(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape], name: str) -> str:
    header = ["", *(f"{shape.ranks} ranks" for shape in shapes), "s per worker", "workers"]
    rows = []
    for tool, slope in zip(tools, growth(cases, tools, shapes, name), strict=True):
        workers = " ".join(str(tool.workers(shape)) for shape in shapes)
        rows.append([tool.title, *(cell(cases, tool, shape, name) for shape in shapes), slope, workers])
    return _numbers.table(header, rows)


def show_ready(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape]) -> str:
    nodes = shapes[0].nodes
    return (
        f"Ready: seconds from the launcher's start to all workers, on {nodes} nodes\n\n"
        f"{seconds(cases, tools, shapes, 'ready')}\n\n"
        f"End: seconds from the end of the client's work to the launcher's end, on {nodes} nodes\n\n"
        f"{seconds(cases, tools, shapes, 'end')}"
    )


def show_per_node(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape]) -> str:
    header = ["", *(f"{shape.nodes} x {shape.ranks // shape.nodes} ranks" for shape in shapes)]
    rows = [[tool.title, *(cell(cases, tool, shape, "ready") for shape in shapes)] for tool in tools]
    return f"Ready, by ranks on a node (nodes x ranks): seconds\n\n{_numbers.table(header, rows)}"


def show_memory(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape]) -> str:
    (shape,) = shapes
    rows = []
    for tool in tools:
        found = [cell(cases, tool, shape, f"memory-{name}", digits=1) for name in ("idle", "used")]
        case = cases[tool.name, shape]
        rows.append([tool.title, str(tool.workers(shape)), *found, count(case, "processes")])
    header = ["", "workers", "before any task", "after 20 tasks each", "processes"]
    return f"Memory: MB (PSS) per worker, everything of the run counted, {shape}\n\n{_numbers.table(header, rows)}"


def count(case: Case, name: str) -> str:
    return f"{statistics.median(case.numbers(name)):.0f}" if case.runs else "-"


def show_throughput(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape]) -> str:
    (shape,) = shapes
    rows = [
        [
            f"{tool.title}{', TLS' if tool.secure else ', in the clear'}",
            cell(cases, tool, shape, "tasks", digits=0, less=False),
            cell(cases, tool, shape, "transfer", digits=0, less=False),
            cell(cases, tool, shape, "shuffle"),
        ]
        for tool in tools
    ]
    header = ["", "small tasks/s", "transfer MB/s", "shuffle s"]
    return f"Throughput, {shape}\n\n{_numbers.table(header, rows)}"


def show_cpus(cases: Cases, tools: Sequence[Tool], shapes: Sequence[Shape]) -> str:
    def share(tool: Tool, shape: Shape) -> str:
        case = cases[tool.name, shape]
        if not case.runs:
            return cell(cases, tool, shape, "threads")
        threads = statistics.median(case.numbers("threads"))
        return f"{threads:.0f} of {shape.all_cpus} ({threads / shape.all_cpus:.0%})"

    rows = [[tool.title, *(share(tool, shape) for shape in shapes)] for tool in tools]
    return f"CPUs that compute, of those of the allocation\n\n{_numbers.table(['', *map(str, shapes)], rows)}"


SECTIONS = {
    "ready": Section(lambda scope: scope.ranks, tuple(TOOLS), (), show_ready),
    "per-node": Section(
        lambda scope: scope.per_node, (BASE, "dask-mpi", "batchlet", "batchlet-node"), (), show_per_node
    ),
    "memory": Section(
        lambda scope: scope.memory,
        (BASE, "dask-mpi", "batchlet-early", "batchlet-above", "batchlet", "batchlet-m", "batchlet-node"),
        ("memory",),
        show_memory,
    ),
    "throughput": Section(
        lambda scope: scope.throughput,
        (BASE, "dask-mpi", "batchlet"),
        ("tasks", "transfer", "shuffle"),
        show_throughput,
    ),
    "cpus": Section(
        lambda scope: scope.cpus, (BASE, "dask-mpi", "batchlet", "batchlet-node"), ("threads",), show_cpus, most=1
    ),
}


# The measurement --------------------------------------------------------------------------------------------------


def plan(names: Sequence[str], scope: Scope, repeats: int) -> Cases:
    """List what to run. What several sections need is run once for all of them; in the order of the shapes."""
    wanted: Cases = {}
    for section in (SECTIONS[name] for name in names):
        for shape in section.shapes(scope):
            for name in section.tools:
                case = wanted.setdefault((name, shape), Case(TOOLS[name], shape))
                case.works += [work for work in section.works if work not in case.works]
                case.repeats = max(case.repeats, min(repeats, section.most))
    shapes = list(dict.fromkeys(shape for _, shape in wanted))
    order = [(name, shape) for shape in shapes for name in TOOLS if (name, shape) in wanted]
    return {key: wanted[key] for key in order}


def measure(
    cases: Cases, environ: dict[str, str], done_one: Callable[[], None], *, timeout: float, quick: bool
) -> None:
    """Run it all, in turns; `done_one` is called after each run."""
    possible = [case for case in cases.values() if not case.tool.missing()]
    rounds = max((case.repeats for case in possible), default=0)
    total = sum(case.repeats for case in possible)
    done = 0
    if not quick:
        # What a first start reads from the disk is there for the others.
        for tool in {(case.tool.needs, case.tool.variables): case.tool for case in possible}.values():
            told = attempt(Case(tool, Shape(4, 4)), environ, timeout=timeout, quick=True)
            say(f"warming up with {tool.title}: {told}")
    for number in range(rounds):
        for case in possible:
            if number >= case.repeats:
                continue
            done += 1
            if len(case.failures) < MOST_FAILURES:
                told = attempt(case, environ, timeout=timeout, quick=quick)
            else:
                told = f"left out, as it has failed {MOST_FAILURES} times"
            done_one()
            say(f"[{done}/{total}] {case.tool.title}, {case.shape}: {told}")


def attempt(case: Case, environ: dict[str, str], *, timeout: float, quick: bool) -> str:
    """Run one case once, and say what came of it."""
    try:
        figures = run(case.tool, case.shape, case.works, environ, timeout=timeout, quick=quick)
    except RunError as error:
        case.failures.append(str(error))
        return f"FAILED: {error}"
    for name in ("memory-idle", "memory-used"):
        if name in figures:
            figures[name] /= 1e6 * case.tool.workers(case.shape)
    case.runs.append(figures)
    return f"ready after {figures['ready']:.2f} s, end after {figures['end']:.2f} s"


# What is printed and kept -----------------------------------------------------------------------------------------


def report(cases: Cases, names: Sequence[str], scope: Scope) -> str:
    texts = []
    for section in (SECTIONS[name] for name in names):
        tools = [TOOLS[name] for name in section.tools]
        texts.append(section.show(cases, tools, section.shapes(scope)))
    failures = [f"- {case.tool.title}, {case.shape}: {failure}" for case in cases.values() for failure in case.failures]
    if failures:
        texts.append("\n".join(["Runs that failed:", *failures]))
    return "\n\n".join(texts)


COLOURS = {
    BASE: ("#d1772c", False),
    "dask-mpi": ("#a371c9", False),
    "batchlet": ("#3b82f6", False),
    "batchlet-m": ("#2ea36f", True),
    "batchlet-node": ("#0ea5b7", True),
    "batchlet-early": ("#16a34a", False),
    "batchlet-above": ("#e5484d", False),
}


def draw(cases: Cases, scope: Scope) -> str:
    """Plot ready against ranks."""
    lines = []
    for name, (colour, dashed) in COLOURS.items():
        found = [cases[name, shape] for shape in scope.ranks if (name, shape) in cases and cases[name, shape].runs]
        ready = [(case.shape.ranks, case.numbers("ready")) for case in found]
        points = [(ranks, statistics.median(numbers), min(numbers), max(numbers)) for ranks, numbers in ready]
        if points:
            # Beside the plot there is room for a short title.
            title = TOOLS[name].title.removeprefix("Batchlet, ").removeprefix("imports on top, ")
            lines.append(Line(title, colour, points, dashed))
    if not lines:
        raise SystemExit("benchmarks: nothing to draw: the section `ready` has no figures")
    return plot("From srun to all workers ready", "ranks, on 4 nodes", "seconds", lines)


def keep(cases: Cases, about: dict[str, object]) -> str:
    """Write all figures as JSON."""
    kept = [
        {
            "tool": case.tool.name,
            "shape": asdict(case.shape),
            "workers": case.tool.workers(case.shape),
            "works": case.works,
            "runs": case.runs,
            "failures": case.failures,
        }
        for case in cases.values()
    ]
    return json.dumps({**about, "cases": kept}, indent=1) + "\n"


def read(kept: dict[str, object], cases: Cases) -> None:
    """Fill in the figures of an earlier run."""
    found = kept["cases"]
    assert isinstance(found, list)
    for one in found:
        case = cases[one["tool"], Shape(**one["shape"])]
        case.runs, case.failures = one["runs"], one["failures"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Batchlet beside SLURMRunner and dask-mpi.")
    parser.add_argument("--quick", action="store_true", help="a tiny run that shows that it works; says nothing")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="this section; may be repeated")
    parser.add_argument("--repeats", type=int, help="runs of each kind (default: 5; 1 with --quick)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of one run (default: 120)")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures here")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the plot here: ready against ranks")
    parser.add_argument("--read", type=Path, metavar="FILE", help="run nothing: take the figures from --json's file")
    options = parser.parse_args()
    if options.repeats is not None and options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def main() -> int:
    options = arguments()
    # So that SIGTERM ends what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, stop)
    if options.read:
        kept = json.loads(options.read.read_text())
        about = {name: value for name, value in kept.items() if name != "cases"}
        names = [name for name in about["sections"] if not options.only or name in options.only]
        scope = QUICK if about["quick"] else FULL
        cases = plan(about["sections"], scope, 1)
        read(kept, cases)
    else:
        names = [name for name in SECTIONS if not options.only or name in options.only]
        scope = QUICK if options.quick else FULL
        repeats = options.repeats or (1 if options.quick else 5)
        cases = plan(names, scope, repeats)
        told = f"medians of {repeats} (least-greatest), then how many times better than {TOOLS[BASE].title}"
        about = {"about": "", "sections": names, "quick": options.quick}

        def save() -> None:
            about["about"] = f"{surroundings()}; {told}"
            if options.json:
                options.json.write_text(keep(cases, about))

        # As pip has done with all the others when it installed them.
        compileall.compile_dir(Path(batchlet.__file__).parent, quiet=1)
        began = time.monotonic()
        with test_slurm(options.instance) as environ:
            # After each run, so that --read can show what was found before a run that was stopped.
            measure(cases, environ, save, timeout=options.timeout, quick=options.quick)
        save()
        say(f"took {time.monotonic() - began:.0f} s")
    print(f"{about['about']}\n\n{report(cases, names, scope)}")
    if options.svg:
        options.svg.write_text(draw(cases, scope))
    return int(any(not case.runs for case in cases.values() if case.failures))


if __name__ == "__main__":
    sys.exit(main())
