"""Scratch in a directory that a group may write to: its members could put their own in the place of the run's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from held_runs import HELD, PREFIX
from run_helpers import Place
from strangers import NOBODY, foreign_python

from batchlet.rendezvous import FileRendezvous
from batchlet.security import swappable_by_group, unsafe

# A group that the system does not know, as one by number alone; the attacker is made a member of it.
GROUP = 61234
ERROR, NOTE = "batchlet: error: ", "batchlet: "

# What a member does: whatever is in the directory gets another name, and something else takes its place.
SWAP = """
import os, sys
os.setgroups([int(sys.argv[2])])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
for name in os.listdir(sys.argv[1]):
    path = os.path.join(sys.argv[1], name)
    try:
        os.rename(path, path + ".taken")
        os.mkdir(path)
    except OSError:
        continue
    print(name)
"""


def shared(path: Path, mode: int) -> Path:
    path.mkdir()
    os.chown(path, 0, GROUP)
    path.chmod(mode)
    return path


def swapped(path: Path) -> list[str]:
    """What a member of the group could swap in there."""
    command = [foreign_python(), "-I", "-c", SWAP, str(path), str(GROUP), str(NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd="/")
    return done.stdout.split()


@pytest.mark.parametrize(("mode", "safe"), [(0o2770, False), (0o2775, False), (0o3770, True), (0o2750, True)])
def test_a_member_can_swap_what_is_said_to_be_swappable_and_nothing_else(place: Place, mode: int, safe: bool) -> None:
    """The attack itself, beside what we say of the directory."""
    path = shared(place.base / "project", mode)
    (path / "batchlet-run").mkdir(0o700)
    said = swappable_by_group(str(path))
    assert unsafe(str(path)) is None
    assert (said is None) == safe
    assert swapped(path) == ([] if safe else ["batchlet-run"])
    if said is not None:
        assert str(path) in said
        assert f"(mode {mode:04o})" in said
        assert str(GROUP) in said
        assert swappable_by_group(str(path / "batchlet-run.taken")) is not None, "one above it is as bad"


def test_a_group_of_the_user_alone_is_no_danger(place: Place) -> None:
    """Many systems make a group for each user, and let it write."""
    path = shared(place.base / "own", 0o775)
    os.chown(path, 0, 0)
    path.chmod(0o2775)
    assert swappable_by_group(str(path)) is None


def test_scratch_that_the_user_chose_there_is_refused(place: Place) -> None:
    """One sentence says why, and what to type; nothing is left there."""
    path = shared(place.base / "project", 0o2770)
    env = {f"{PREFIX}LOCAL_DIRECTORY": str(path)}
    result = place.run_only(sys.executable, str(HELD), str(place.base), env=env, timeout=60)
    assert result.rc == 2, str(result)
    [said] = [line for line in result.stderr.splitlines() if line.startswith(ERROR)]
    assert f"The scratch directory {path} cannot be trusted: {path} is writable for its group ({GROUP})" in said
    assert "Set local_directory=" in said
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("name", ["TMPDIR", "SLURM_TMPDIR"])
def test_scratch_that_the_environment_has_there_is_elsewhere(place: Place, name: str) -> None:
    """Nobody chose it for this run, which goes on in a directory that is safe, and says so in one line."""
    path = shared(place.base / "project", 0o2770)
    (place.base / "go-on").touch()
    env = {name: str(path), f"{PREFIX}WORKERS_PER_NODE": "1"}
    result = place.run_only(sys.executable, str(HELD), str(place.base), env=env, timeout=60)
    assert result.rc == 0, str(result)
    [said] = [line for line in result.stderr.splitlines() if f"instead of {path}: " in line]
    assert said.startswith(f"{NOTE}scratch is in ")
    assert "local_directory=" in said
    assert [entry.name for entry in path.iterdir() if entry.name.startswith("batchlet-")] == []


def test_the_ranks_still_meet_in_the_directory_of_a_project(place: Place) -> None:
    """People start jobs in directories that their group may write to; the record itself is in one that only they may use."""
    path = shared(place.base / "project", 0o2770)
    meeting = FileRendezvous(str(path / ".batchlet"), "run-1", "n1")
    meeting.check()
    assert (path / ".batchlet").stat().st_mode & 0o777 == 0o700
    assert swapped(path) == [".batchlet"], "what a member can do"
    with pytest.raises(Exception, match="belongs to user"):
        meeting.check()
