"""The benchmarks run and fill their tables; nothing here judges a time, which a busy machine would get wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cluster_slurm import SlurmCluster
from run_helpers import REPOSITORY, Result

pytestmark = pytest.mark.slurm

BENCHMARKS = REPOSITORY / "benchmarks"
sys.path.append(str(BENCHMARKS))

import _numbers  # noqa: E402
import _processes  # noqa: E402
import _run  # noqa: E402
import _svg  # noqa: E402
import compare  # noqa: E402


def benchmark(name: str, *args: str, timeout: float = 150) -> Result:
    """Run a benchmark to its end; what it starts it ends itself, if it is asked to."""
    command = [sys.executable, str(BENCHMARKS / name), *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
    return Result(process.returncode, stdout, stderr, 0.0)


def rows(text: str, title: str) -> dict[str, list[str]]:
    """Give the rows of the table that follows a title, by their first cells."""
    section = text.split(title, 1)[1].split("\n\n")[1]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines()[2:]]
    return {first: rest for first, *rest in cells}


# The titles of the tables, and the section that each belongs to.
TABLES = {
    "Ready: ": "ready",
    "End: ": "ready",
    "Ready, by ranks": "per-node",
    "Memory: ": "memory",
    "Throughput, ": "throughput",
    "CPUs that": "cpus",
}


@pytest.mark.timeout(180)
def test_a_quick_comparison_fills_every_table(cluster: SlurmCluster, tmp_path: Path) -> None:
    """A quick comparison on the cluster that is up: every table has a row for each tool, with figures above 0."""
    files = ["--json", str(tmp_path / "found.json"), "--svg", str(tmp_path / "ready.svg")]
    result = benchmark("compare.py", "--quick", "--instance", str(cluster.instance), *files)
    assert result.rc == 0, str(result)
    assert cluster.is_up, "it was up before"
    for title, section in TABLES.items():
        found = rows(result.stdout, title)
        tools = [compare.TOOLS[name] for name in compare.SECTIONS[section].tools]
        assert len(found) == len(tools), str(result)
        for tool, (first, cells) in zip(tools, found.items(), strict=True):
            assert first.startswith(tool.title), str(result)
            if tool.missing():
                assert tool.missing() in cells, str(result)
                continue
            assert all(float(re.match(r"[\d.]+", cell)[0]) > 0 for cell in cells if cell != "-"), str(result)
            assert "failed" not in str(cells), str(result)

    kept = json.loads((tmp_path / "found.json").read_text())
    for case in kept["cases"]:
        figures = [value for run in case["runs"] for value in run.values()]
        assert figures or compare.TOOLS[case["tool"]].missing(), case
        assert all(value > 0 for value in figures), case
    assert ElementTree.parse(tmp_path / "ready.svg").getroot().tag.endswith("svg")
    again = benchmark("compare.py", "--read", str(tmp_path / "found.json"))
    assert again.stdout == result.stdout, str(again)


@pytest.mark.timeout(180)
def test_a_commit_is_compared_with_the_working_tree(cluster: SlurmCluster) -> None:
    """Both are run, every figure is above 0 and has its ratio, and the worktree of the other commit is gone."""
    before = worktrees()
    if before is None:
        pytest.skip("not a checkout, or no git")
    sizes = ["--ranks", "4", "8", "--runs", "1", "--memory-at", "8"]
    result = benchmark("before_after.py", "HEAD", *sizes, "--quick", "--instance", str(cluster.instance))
    assert result.rc == 0, str(result)
    found = rows(result.stdout, "the two in turn")
    assert len(found) == 2 * len(("ready", "end")) + len(("idle", "used")), str(result)
    assert all(len(cells) == 3 and min(map(float, cells)) > 0 for cells in found.values()), str(result)
    # Others may make and remove theirs meanwhile.
    assert not [path for path in (worktrees() or set()) - before if "before-" in path]


def test_clusters_of_jobs_are_compared(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Each figure is above 0 for SLURMCluster and for BatchletCluster, with their ratio; `--read` shows the same table."""
    kept = str(tmp_path / "found.json")
    result = benchmark("jobs.py", "--quick", "--instance", str(cluster.instance), "--json", kept)
    assert result.rc == 0, str(result)
    found = rows(result.stdout, "the two in turn")
    assert len(found) == 4, str(result)
    for cells in found.values():
        assert all(float(cell.removesuffix("x")) > 0 for cell in cells), str(result)
    assert benchmark("jobs.py", "--read", kept).stdout == result.stdout


def test_an_unknown_commit_is_said_at_once() -> None:
    """Nothing is started for a commit that there is not."""
    if worktrees() is None:
        pytest.skip("not a checkout, or no git")
    result = benchmark("before_after.py", "no-such-commit", timeout=30)
    assert result.rc == 1, str(result)
    assert "no worktree of no-such-commit" in result.stderr, str(result)


def worktrees() -> set[str] | None:
    """The checkouts of this repository; None where it is none."""
    if shutil.which("git") is None:
        return None
    shown = subprocess.run(
        ["git", "worktree", "list", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return set(re.findall(r"^worktree (.*)", shown.stdout, re.MULTILINE)) if shown.returncode == 0 else None


def test_a_run_that_hangs_is_a_failure_and_nothing_is_left(
    cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes too long is a failure that says so, and nothing of it is left, neither process nor job."""
    marks: list[str] = []
    end = _processes.end
    monkeypatch.setattr(_processes, "end", lambda mark, grace: marks.append(mark) or end(mark, grace))
    with pytest.raises(_run.RunError, match=r"not over after 1 s \(before the end of the client's work\)"):
        # Workers that nobody starts are waited for.
        _run.run(compare.TOOLS["batchlet"], compare.Shape(1, 3), (), cluster.env(), timeout=1, workers=99)
    (mark,) = marks
    assert _processes.marked(mark) == []
    jobs = subprocess.run(
        ["squeue", "--noheader", "--format=%j"], env=cluster.env(), capture_output=True, text=True, check=True
    )
    assert mark not in jobs.stdout.split()


@pytest.mark.parametrize(
    ("script", "figures"),
    [
        ("tls.py --modes local", 4),
        ("links.py --local", 3),
        ("allocator.py --local", 4),
        ("gpu.py --array numpy", 3),
    ],
)
def test_what_is_compared_locally_has_a_row_for_each_figure(cluster: SlurmCluster, script: str, figures: int) -> None:
    """What TLS, links and the allocator cost, and what workers with GPUs do: a row for each figure, above 0."""
    result = benchmark(*script.split(), "--quick", "--repeats=1")
    assert result.rc == 0, str(result)
    found = rows(result.stdout, "least-greatest")
    assert len(found) == figures, str(result)
    assert all(float(cell.removesuffix("x")) > 0 for cells in found.values() for cell in cells[:3]), str(result)


def test_a_machine_without_gpus_is_told_what_is_missing() -> None:
    """One sentence, with what would run here."""
    if _gpus():
        pytest.skip("there are GPUs")
    result = benchmark("gpu.py", timeout=60)
    assert result.rc == 2, str(result)
    assert "no GPU of NVIDIA's is here; --array numpy runs the same programme on CPUs" in result.stderr, str(result)


def _gpus() -> bool:
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


def test_slope_spread_and_plot_are_right() -> None:
    """The slope is that of the least-squares line, the spread is the least and the greatest, a plot is well-formed."""
    assert _numbers.slope([(2, 1.0), (6, 3.0), (14, 7.0)]) == pytest.approx(0.5)
    assert _numbers.slope([(2, 1.0)]) is None
    assert _numbers.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)"
    lines = [_svg.Line(name, "#888888", [(4, 1, 0.5, 2), (64, 1 + n, 1, 3)]) for n, name in enumerate("<&'")]
    texts = [text.text for text in ElementTree.fromstring(_svg.plot("<t>", "x", "y", lines)).iter() if text.text]
    assert "<t>" in texts
    assert "1.0 <" in texts
