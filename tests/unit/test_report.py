"""What a person reads."""

from __future__ import annotations

import pytest

from batchlet import report
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
        ({"ranks": 1, "nodes": 1, "where": "local", "workers": 1, "threads": (1, 1)}, "local: 1 worker x 1 thread x"),
    ],
)
def test_the_first_line_says_where_and_what_runs(capsys, other, line):
    report.started(**(RUN | other))
    assert line in said(capsys)


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
