"""The files of a report: whole, for their owner alone, and never to the harm of the run."""

from __future__ import annotations

import json
import stat
import threading
import time
from pathlib import Path

import pytest

from batchlet.run_report import book as book_module
from batchlet.run_report import finishing, writer
from batchlet.run_report.book import Book


@pytest.fixture
def said() -> list[str]:
    return []


def book(said: list[str], run_id: str = "r") -> Book:
    made = Book({"Python": "3.12"}, said.append)
    made.about(id=run_id, mode="local", job="", ranks=1)
    made.began()
    return made


def end(made: Book) -> None:
    made.take([("ended", {"state": "done", "exit_code": 0})])
    made.close(20)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_report_is_its_owners_and_metrics_are_as_their_owner_has_them(tmp_path, said):
    reports, metrics = tmp_path / "a" / "b", tmp_path / "run.prom"
    metrics.write_text("old\n")
    metrics.chmod(0o664)
    made = book(said)
    made.files(str(reports), str(metrics))
    end(made)
    assert said == []
    assert mode(reports / "r") == mode(reports) == 0o700
    assert mode(reports / "r" / "report.json") == mode(reports / "r" / "report.html") == 0o600
    assert "<html" in (reports / "report.html").read_text()
    assert json.loads((reports / "report.json").read_text())["outcome"]["state"] == "done"
    assert mode(metrics) == 0o664
    assert metrics.read_text().startswith("# HELP batchlet_")
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "r", "report.json", "report.html", "run.prom"}


def test_two_runs_with_one_directory_have_each_their_report(tmp_path, said):
    first, second = book(said, "r1"), book(said, "r2")
    for made in (first, second):
        made.files(str(tmp_path))
    end(first)
    end(second)
    found = {name: json.loads((tmp_path / name / "report.json").read_text())["run"]["id"] for name in ("r1", "r2")}
    assert found == {"r1": "r1", "r2": "r2"}
    assert json.loads((tmp_path / "report.json").read_text())["run"]["id"] == "r2"


def test_what_is_no_link_of_ours_stays(tmp_path, said):
    (tmp_path / "report.json").write_text("mine")
    made = book(said)
    made.files(str(tmp_path))
    end(made)
    assert (tmp_path / "report.json").read_text() == "mine"
    assert (tmp_path / "r" / "report.json").exists()
    assert said == []


def test_a_run_that_lasts_has_its_report_from_its_start_on(tmp_path, said):
    made = book(said)
    made.files(str(tmp_path))
    made.take([("ready", {})])
    until = time.monotonic() + 20
    while writer.read(tmp_path / "r") is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    found = writer.read(tmp_path / "r")
    assert found is not None
    assert (found["outcome"]["state"], found["outcome"]["exit_code"]) == ("running", None)
    made.close(20)


def test_a_file_in_the_place_of_the_directory_costs_one_line(tmp_path, said):
    (tmp_path / "taken").write_text("mine")
    made = book(said)
    made.files(str(tmp_path / "taken"), str(tmp_path / "taken" / "run.prom"))
    for _ in range(3):
        made.write_soon()
    end(made)
    assert len(said) == 2
    assert any(line.startswith(f"no report in {tmp_path / 'taken'}: Not a directory") for line in said), said
    assert any(line.startswith(f"no metrics in {tmp_path / 'taken' / 'run.prom'}: Not a directory") for line in said), (
        said
    )
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.json"
    writer.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        writer.write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_hangs_does_not_hold_the_run_up(tmp_path, said, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(book_module.writer, "write", lambda *_: hangs.wait(60))
    made = book(said)
    made.files(str(tmp_path))
    made.take([("ended", {"state": "done"})])
    began = time.monotonic()
    made.close(0.2)
    assert time.monotonic() - began < 20
    hangs.set()


def test_a_report_is_there_whatever_becomes_of_its_page(tmp_path, said, monkeypatch):
    monkeypatch.setattr(finishing, "page", lambda _: 1 / 0)
    made = book(said)
    made.files(str(tmp_path))
    end(made)
    assert writer.read(tmp_path / "r") is not None
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]


def test_a_book_goes_on_in_the_next_block(tmp_path, said):
    made = book(said)
    made.files(str(tmp_path))
    end(made)
    made.files(str(tmp_path))
    made.began()
    end(made)
    found = writer.read(tmp_path / "r")
    assert found is not None
    assert found["outcome"]["blocks"] == 2
