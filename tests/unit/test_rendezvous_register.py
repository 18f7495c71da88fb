"""The register of a user's runs: links in the home directory, which nobody else can plant."""

from __future__ import annotations

import os

import pytest

from batchlet import joining
from batchlet.rendezvous import CoordinatorRecord, register


@pytest.fixture
def record(tmp_path, monkeypatch) -> CoordinatorRecord:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return CoordinatorRecord("slurm-hpc-1.0", "ab" * 16, "n1", "10.0.0.1", 1, "cd" * 32)


def test_a_run_that_is_entered_is_found_until_it_leaves(record, tmp_path):
    file = tmp_path / ".batchlet" / "slurm-hpc-1.0.json"
    assert register.entries() == {}
    assert register.enter(record, file) == register.enter(record, file) == ""
    place = register.directory()
    assert place.stat().st_mode & 0o777 == 0o700
    assert list(register.entries().values()) == [file]
    # A requeued run has the same name and another nonce.
    other = CoordinatorRecord("slurm-hpc-1.0", "ef" * 8, "n1", "10.0.0.1", 1, "cd" * 32)
    assert register.enter(other, file) == ""
    register.leave(other)
    register.leave(other)
    assert list(register.entries()) == [register.entry_of(record)]
    assert "cd" * 8 not in " ".join(map(str, place.iterdir())), "nothing secret is in a name"


def test_a_run_that_was_started_elsewhere_is_joined_by_its_name(record, tmp_path, monkeypatch):
    file = tmp_path / "elsewhere" / ".batchlet" / "slurm-hpc-1.0.json"
    register.enter(record, file)
    monkeypatch.chdir(tmp_path)
    assert joining._file("slurm-hpc-1.0") == file
    here = tmp_path / ".batchlet" / "slurm-hpc-1.0.json"
    here.parent.mkdir()
    here.touch()
    assert joining._file("slurm-hpc-1.0") == here, "what is here comes first"
    assert joining._file("slurm-hpc-2.0").parent == here.parent
    assert joining._file("./x/slurm-hpc-1.0") == tmp_path / "x" / here.name


def test_what_is_no_entry_is_left_alone(record, tmp_path):
    register.enter(record, tmp_path / "a.json")
    place = register.directory()
    (place / "file").write_text("x")
    (place / "directory").mkdir()
    (place / "relative").symlink_to("b.json")
    (place / "other").symlink_to("/etc/passwd")
    assert list(register.entries().values()) == [tmp_path / "a.json"]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_register_to_which_others_may_write_is_not_believed(record, tmp_path, mode):
    register.enter(record, tmp_path / "a.json")
    register.directory().chmod(mode)
    assert register.entries() == {}
    assert "others may write" in register.enter(record, tmp_path / "a.json")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_register_of_somebody_else_is_not_believed(record, tmp_path):
    register.enter(record, tmp_path / "a.json")
    os.chown(register.directory(), 12345, -1)
    assert register.entries() == {}
    assert "belongs to user 12345" in register.enter(record, tmp_path / "a.json")


def test_a_home_that_cannot_be_written_is_a_reason_and_no_error(record, tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file")
    assert "Not a directory" in register.enter(record, tmp_path / "a.json")
    assert register.entries() == {}
    register.leave(record)
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert register.directory() == tmp_path / "home" / ".local" / "state" / "batchlet" / "runs"
