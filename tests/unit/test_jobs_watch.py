"""Asking a batch system about jobs: seldom, for all of them together, and without a word about a command that fails once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batchlet.jobs import watch
from batchlet.jobs.record import JobBook
from batchlet.jobs.systems import batch_system

HEAD = "job-ID prior name user state submit/start at queue slots ja-task-ID\n"
QACCT = (
    "=====\nhostname n1\njobnumber 8\ntaskid undefined\nfailed 0\nexit_status 3\nend_time Wed Nov 25 23:01:00 2026\n"
)


class Place:
    """Two jobs of a gridengine whose commands are scripts, and what is told about them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.told: list[tuple[str, str, str, str]] = []
        self.book = JobBook(3, 300.0)
        for number in (7, 8):
            self.book.asked(f"c-{number}", 1, 0.0)
            list(self.book.submitted(f"c-{number}", str(number)))
        monkeypatch.setattr(watch, "_FIRST", 0.0)
        monkeypatch.setattr(watch, "_EVERY", 0.05)
        environ = {"PATH": f"{directory}:/usr/bin:/bin"}
        self.watch = watch.Watch(batch_system("sge"), environ, self.book, lambda *said: self.told.append(said))

    def says(self, command: str, text: str) -> None:
        """Have a command, from now on, write one line to a log for each call, and then say this."""
        path = self.directory / command
        path.write_text(f'#!/bin/sh\necho "{command} $*" >> {self.directory}/calls\n{text}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        calls = self.directory / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def ask_until(self, seen: Callable[[], object]) -> None:
        async def run() -> None:
            self.watch.ask()
            asking = asyncio.ensure_future(self.watch.run())
            deadline = time.monotonic() + 10
            while not seen():
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(run())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_one_question_is_for_all_jobs_and_the_reason_is_told(place: Place, monkeypatch):
    row = "     7 0.5 x me qw 11/25/2026 23:01:48 1\n     8 0.5 x me r 11/25/2026 23:01:48 all.q@n1 1"
    detail = 'job_number:                 7\nscheduling info:            cannot run in PE "smp"'
    place.says("qstat", f"""case "$*" in *-j*) cat <<'E'\n{detail}\nE\n;; *) cat <<'E'\n{row}\nE\nesac""")
    monkeypatch.setattr(watch, "_EVERY", 60.0)
    place.ask_until(lambda: len(place.told) == 2)
    assert place.calls == ["qstat -g d -s prs -u " + place.calls[0].rpartition(" ")[2], "qstat -j 7,8"]
    assert place.told == [("7", "pending", 'cannot run in PE "smp"', ""), ("8", "running", "r", "")]


def test_a_job_that_is_gone_is_looked_up_and_has_time_to_be_accounted_for(place: Place, monkeypatch):
    place.says("qstat", "true")
    place.says("qacct", f"cat <<'E'\n{QACCT}E")
    monkeypatch.setattr(watch, "_ACCOUNTED", 0.3)
    place.ask_until(lambda: ("7", "ended", "", "") in place.told)
    assert place.told[0] == ("8", "failed", "", "exit code 3")
    assert len(place.calls) > 4


def test_a_command_that_fails_now_and_then_is_told_once(place: Place, capsys):
    flag = place.directory / "flag"
    place.says("qstat", f"[ -e {flag} ] && exit 0; echo 'error: commlib error: got select error' >&2; exit 1")
    place.ask_until(lambda: len(place.calls) > 5)
    assert place.told == []
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "gridengine does not say what jobs do (error: commlib error: got select error)" in errors[0]
    flag.touch()
    place.says("qacct", "true")
    place.ask_until(lambda: any("qacct" in call for call in place.calls))
    assert "gridengine answers again" in capsys.readouterr().err
