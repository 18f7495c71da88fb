"""BatchletCluster beside dask-jobqueue's SLURMCluster: jobs that are submitted to a throwaway Slurm on this machine.

    python benchmarks/jobs.py                             # 1 and 8 jobs of 2 workers, 8 jobs of 16; as root on Debian or Ubuntu
    python benchmarks/jobs.py --runs 3 --only 8x16        # one shape: jobs x workers of each
    python benchmarks/jobs.py --json FILE                 # keep all figures; --read FILE prints its table again

Both at their defaults (Batchlet with TLS, SLURMCluster without) and with the same cores, memory and walltime. They take turns,
run by run, so that what else the machine does hits both alike. See README.md for how each figure is taken. The exit code is 1
if something could not be measured at all.
"""

from __future__ import annotations

import argparse
import compileall
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import _numbers
from _report import say, stop, surroundings
from _run import test_slurm
from _tools import HERE, Shape, Tool
from compare import Case, Cases, keep, measure

import batchlet

# All jobs of the largest shape run at one moment on four nodes: two jobs of 16 CPUs on each.
CPUS_PER_NODE = 32
MIB_PER_CPU = 512
FIGURES = (
    ("ready", "seconds from scale to ready", 2),
    ("end", "seconds to close", 2),
    ("memory-idle", "MB (PSS) per worker, before any task", 1),
    ("memory-used", "MB (PSS) per worker, after 20 tasks each", 1),
)


@dataclass(frozen=True)
class Jobs(Shape):
    """Some jobs (``nodes``) with some workers of one CPU in all of them together (``ranks``)."""

    @property
    def each(self) -> int:
        return self.ranks // self.nodes

    def __str__(self) -> str:
        return f"{self.nodes} job{'s' if self.nodes > 1 else ''} of {self.each}"


@dataclass(frozen=True)
class Submitter(Tool):
    """A cluster that submits jobs."""

    def workers(self, shape: Shape) -> int:
        return shape.ranks

    def environ(self, shape: Shape) -> dict[str, str]:
        each = shape.ranks // shape.nodes
        return {
            **dict(self.variables),
            # SLURMCluster's workers know nothing of the script's directory, in which the tasks are.
            "PYTHONPATH": str(HERE / "programs"),
            "BENCHMARK_JOBS": str(shape.nodes),
            "BENCHMARK_EACH": str(each),
            "BENCHMARK_CORES": str(each),
            "BENCHMARK_MEMORY": f"{each * MIB_PER_CPU}MiB",
        }

    def command(self, shape: Shape, job: str, times: Path) -> list[str]:  # noqa: ARG002
        """Give the command: the script alone, as on a login node. It notes the times itself: they begin with `scale`."""
        return [sys.executable, str(HERE / "programs" / self.program)]


SLURM_CLUSTER = Submitter("slurmcluster", "SLURMCluster", "with_slurm_cluster.py", needs=("dask_jobqueue",))
BATCHLET = Submitter("batchlet", "BatchletCluster", "with_batchlet_cluster.py", needs=("batchlet", "dask_jobqueue"))
TOOLS = (SLURM_CLUSTER, BATCHLET)
SHAPES = (Jobs(1, 2), Jobs(8, 16), Jobs(8, 128))


def plan(tools: Sequence[Tool], shapes: Sequence[Jobs], runs: int) -> Cases:
    """List what to run, both in turn for each shape."""
    return {(tool.name, shape): Case(tool, shape, ["memory"], runs) for shape in shapes for tool in tools}


def report(cases: Cases, shapes: Sequence[Jobs]) -> str:
    """Write the table: a row for each figure of each shape; a ratio above 1 is better than SLURMCluster."""
    rows = []
    for shape in shapes:
        one, other = (cases[tool.name, shape] for tool in TOOLS)
        for name, title, digits in FIGURES:
            cells = [_numbers.spread(case.numbers(name), digits) if case.runs else "failed" for case in (one, other)]
            ratio = "-"
            if one.runs and other.runs:
                ratio = f"{statistics.median(one.numbers(name)) / statistics.median(other.numbers(name)):.2f}x"
            rows.append([f"{shape}: {title}", *cells, ratio])
    header = ["jobs of so many workers", f"{SLURM_CLUSTER.title}, in the clear", f"{BATCHLET.title}, TLS", ""]
    failures = [f"- {case.tool.title}, {case.shape}: {failure}" for case in cases.values() for failure in case.failures]
    text = _numbers.table(header, rows)
    return "\n".join([text, *(["", "Runs that failed:", *failures] if failures else [])])


def shape_of(text: str) -> Jobs:
    jobs, _, each = text.partition("x")
    if not (jobs.isdecimal() and each.isdecimal() and int(jobs) and int(each)):
        raise argparse.ArgumentTypeError(f"jobs x workers of each, such as 8x16, and not {text!r}")
    return Jobs(int(jobs), int(jobs) * int(each))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="BatchletCluster beside SLURMCluster.")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each kind (default: 5)")
    parser.add_argument(
        "--only", type=shape_of, action="append", metavar="JxW", help="J jobs of W workers; may be repeated"
    )
    parser.add_argument("--timeout", type=float, default=240.0, metavar="S", help="of one run (default: 240)")
    parser.add_argument("--instance", type=int, default=30, metavar="K", help="of the test Slurm (default: 30)")
    parser.add_argument("--quick", action="store_true", help="one run of 1 job each: it shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures here")
    parser.add_argument("--read", type=Path, metavar="FILE", help="run nothing: take the figures from --json's file")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def main() -> int:
    options = arguments()
    # So that SIGTERM ends what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, stop)
    if options.read:
        kept = json.loads(options.read.read_text())
        shapes = list(dict.fromkeys(Jobs(**case["shape"]) for case in kept["cases"]))
        cases = plan(TOOLS, shapes, 1)
        for case in kept["cases"]:
            found = cases[case["tool"], Jobs(**case["shape"])]
            found.runs, found.failures = case["runs"], case["failures"]
        print(f"{kept['about']}\n\n{report(cases, shapes)}")
        return 0
    shapes = options.only or (list(SHAPES[:1]) if options.quick else list(SHAPES))
    place = (("BENCHMARK_INTERFACE", f"slurm{options.instance}"),)
    tools = [replace(tool, variables=place) for tool in TOOLS]
    if missing := [tool.missing() for tool in tools if tool.missing()]:
        raise SystemExit(f"benchmarks: {missing[0]}")
    runs = 1 if options.quick else options.runs
    cases = plan(tools, shapes, runs)
    about = ""

    def save() -> None:
        nonlocal about
        about = f"{surroundings()}; medians of {runs} (least-greatest), the two in turn"
        if options.json:
            options.json.write_text(keep(cases, {"about": about}))

    # As pip has done with all the others when it installed them.
    compileall.compile_dir(Path(batchlet.__file__).parent, quiet=1)
    with test_slurm(options.instance, CPUS_PER_NODE) as environ:
        measure(cases, environ, save, timeout=options.timeout, quick=options.quick)
    save()
    say("done")
    print(f"{about}\n\n{report(cases, shapes)}")
    return int(any(not case.runs for case in cases.values()))


if __name__ == "__main__":
    sys.exit(main())
