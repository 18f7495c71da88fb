"""What a person reads."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchlet import report
from batchlet.environments.local import Local
from batchlet.errors import PlanError

GIB = 1 << 30


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; nothing goes to stdout, which is the script's."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("batchlet: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err[len("batchlet: ") : -1]


RUN = {
    "where": "slurm job 17.0",
    "ranks": 6,
    "nodes": 2,
    "workers": 4,
    "threads": (2, 2),
    "memory": (GIB, GIB),
    "dashboard": "http://n1:8787/status",
    "tunnel": None,
    "secure": True,
}


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({}, "slurm job 17.0: 6 ranks on 2 nodes, 4 workers x 2 threads x 1.00 GiB, dashboard http://n1:8787/status"),
        ({"nodes": 1}, "6 ranks on 1 node, 4 workers"),
        ({"threads": (2, 3)}, "4 workers x 2-3 threads x 1.00 GiB"),
        ({"memory": (GIB, 3 * GIB)}, "4 workers x 2 threads x 1.00 GiB to 3.00 GiB"),
        ({"memory": (GIB, GIB + 1)}, "4 workers x 2 threads x 1.00 GiB,"),
        ({"tunnel": "ssh -L 8787:n1:8787 login"}, "http://n1:8787/status through ssh -L 8787:n1:8787 login"),
        ({"dashboard": None}, "x 1.00 GiB, no dashboard (it needs bokeh)"),
        ({"secure": False}, "x 1.00 GiB, security off, dashboard"),
        ({"secure": False, "protocol": "ucx"}, "x 1.00 GiB, security off (ucx does not encrypt), dashboard"),
        ({"instead": "cat a.dashboard", "tunnel": "ssh -N"}, "x 1.00 GiB, dashboard: cat a.dashboard"),
        ({"ranks": 1, "nodes": 1, "where": "local", "workers": 1, "threads": (1, 1)}, "local: 1 worker x 1 thread x"),
    ],
)
def test_the_first_line_says_where_and_what_runs(capsys, other, line):
    report.started(**(RUN | other))
    text = said(capsys)
    assert line in text
    assert "instead" not in other or ("http" not in text and "ssh" not in text)


@pytest.mark.parametrize(
    ("mode", "slurm", "readable"),
    [(0o644, False, True), (0o640, True, True), (0o604, False, True), (0o600, False, False), (0o600, True, False)],
)
def test_others_may_read_a_file_by_its_mode(monkeypatch, tmp_path, mode, slurm, readable):
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "1")
    path = tmp_path / "err"
    path.touch()
    path.chmod(mode)
    with path.open("w") as file, stderr_is(file.fileno()):
        assert report.others_may_read(shared=Local().output_is_shared(os.environ)) is readable


@pytest.mark.parametrize(("environ", "readable"), [({}, False), ({"SLURM_JOB_ID": "1"}, True)])
def test_others_may_read_what_slurm_takes_by_a_pipe(monkeypatch, environ, readable):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ends = os.pipe()
    with stderr_is(ends[1]):
        found = report.others_may_read(shared=Local().output_is_shared(os.environ))
    for end in ends:
        os.close(end)
    assert found is readable


def test_nobody_else_reads_a_terminal(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    ends = pty.openpty()
    with stderr_is(ends[1]):
        found = report.others_may_read(shared=Local().output_is_shared(os.environ))
    for end in ends:
        os.close(end)
    assert found is False


@contextlib.contextmanager
def stderr_is(descriptor: int) -> Iterator[None]:
    before = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.mark.parametrize(
    ("seconds", "workers", "error", "line"),
    [
        (8.21, 4, None, "done after 8.2 s, 4 workers"),
        (200, 1, None, "done after 3 min 20 s, 1 worker"),
        (1, 4, "ValueError", "ended by ValueError after 1.0 s, 4 workers"),
    ],
)
def test_the_last_line_says_how_it_ended(capsys, seconds, workers, error, line):
    report.ended(seconds=seconds, workers=workers, error=error)
    assert said(capsys) == line


def test_what_cannot_be_said_for_a_full_disk_stops_nothing():
    code = "import os; from batchlet import report; report.note('x'); report.note('y'); os._exit(7)"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", code], stderr=full, timeout=20).returncode == 7


def test_a_failure_is_said_as_the_error_says_it(capsys):
    report.failure(PlanError("3 workers x 4 threads = 12 threads on node n1, which has 8 CPUs."))
    assert said(capsys) == "error: 3 workers x 4 threads = 12 threads on node n1, which has 8 CPUs."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (8.24, "8.2 s"),
        (99.94, "99.9 s"),
        (99.96, "1 min 40 s"),
        (119.6, "2 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86400 * 2, "48 h 0 min"),
    ],
)
def test_a_time_is_written_for_people(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "level"),
    [(None, "warning"), ("debug", "debug"), ("INFO", "info"), ("Error", "error"), ("loud", "warning"), ("", "warning")],
)
def test_the_level_of_the_log_is_a_variable_and_warning_otherwise(monkeypatch, value, level):
    if value is not None:
        monkeypatch.setenv("BATCHLET_LOG_LEVEL", value)
    assert report.log_level() == level
