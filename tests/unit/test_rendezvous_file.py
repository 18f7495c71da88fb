"""Meeting through a file: complete when seen, owner-only, named after the run, gone at the end; never a wait without end."""

from __future__ import annotations

import os
import pickle
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchlet.errors import RendezvousError, StartTimeoutError
from batchlet.rendezvous import CoordinatorRecord, FileRendezvous

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def record(run_id: str = "run", **other: object) -> CoordinatorRecord:
    fields = {"nonce": "ab", "node": "n1", "host": "127.0.0.1", "port": 4242, "secret": "5ec2e7"} | other
    return CoordinatorRecord(run_id=run_id, **fields)  # type: ignore[arg-type]


def meet(directory: Path, run_id: str = "run") -> FileRendezvous:
    return FileRendezvous(str(directory), run_id, "n1")


def soon(seconds: float = 0.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "meet"


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(RendezvousError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    assert "on node n1" in message
    assert "BATCHLET_DASK_CLUSTER__RENDEZVOUS_DIR" in message
    return message


def timed_out(rendezvous: FileRendezvous, seconds: float = 0.0) -> str:
    with pytest.raises(StartTimeoutError) as caught:
        rendezvous.wait(soon(seconds))
    assert caught.value.code == 80
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_nobody(action: Callable[[], object]) -> object:
    """Call `action` in a child process that is an unprivileged user; return or raise what it did."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                answer = (True, action())
            except Exception as error:
                answer = (False, (type(error), str(error)))
            os.write(writer, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        fine, answer = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    if fine:
        return answer
    kind, text = answer
    raise kind(text)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


# The record


@given(st.builds(CoordinatorRecord, st.text(), st.text(), st.text(), st.text(), st.integers(0, 65535), st.text()))
def test_a_record_is_read_as_it_was_written(record):
    assert CoordinatorRecord.from_json(record.to_json()) == record


def test_what_rank_0_publishes_the_others_read(place):
    meet(place).publish(record())
    assert meet(place).wait(soon(1)) == record()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_record_and_directory_are_for_the_owner_alone_whatever_the_umask(place, umask):
    before = os.umask(umask)
    try:
        rendezvous = meet(place)
        rendezvous.check()
        rendezvous.publish(record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in place.iterdir()} == {"run.json": 0o600}


def test_the_others_wait_until_the_record_is_there(place):
    publisher = threading.Timer(0.2, meet(place).publish, [record()])
    publisher.start()
    began = time.monotonic()
    assert meet(place).wait(soon(10)) == record()
    assert time.monotonic() - began < 2
    publisher.join()


def test_a_record_is_whole_whenever_it_is_read(place):
    publisher, ends = meet(place), threading.Event()
    publisher.publish(record())

    def publish_again_and_again() -> None:
        for number in range(60):
            publisher.publish(record(secret="5" * (number * 97)))
        ends.set()

    thread = threading.Thread(target=publish_again_and_again)
    thread.start()
    reads = 0
    while not ends.is_set():
        assert CoordinatorRecord.from_json((place / "run.json").read_text()).run_id == "run"
        reads += 1
    thread.join()
    assert reads > 10
    publisher.withdraw()
    assert not place.exists()


# The end


def test_nothing_is_left_at_the_end_and_the_end_may_come_twice(place):
    rendezvous = meet(place)
    rendezvous.check()
    rendezvous.publish(record())
    rendezvous.withdraw()
    assert not place.exists()
    rendezvous.withdraw()
    assert list(place.parent.iterdir()) == []


def test_a_run_that_ends_leaves_the_record_of_another_run_alone(place):
    first, second = meet(place, "first"), meet(place, "second")
    first.publish(record("first"))
    second.publish(record("second"))
    first.withdraw()
    assert meet(place, "second").wait(soon()) == record("second")
    second.withdraw()
    assert not place.exists()


def test_a_rank_that_has_published_nothing_removes_no_record(place):
    meet(place).publish(record())
    meet(place).withdraw()
    assert meet(place).wait(soon()) == record()


def test_a_file_of_the_user_in_the_directory_is_left_alone(place):
    place.mkdir(mode=0o700)
    (place / "thesis.tex").write_text("years")
    rendezvous = meet(place)
    rendezvous.publish(record())
    rendezvous.withdraw()
    assert (place / "thesis.tex").read_text() == "years"


# Waiting ends


def test_a_wait_ends_at_its_deadline_and_says_what_was_seen_and_what_to_type(place):
    began = time.monotonic()
    message = timed_out(meet(place), 0.3)
    assert 0.3 <= time.monotonic() - began < 1
    assert "No word from rank 0" in message
    assert "node n1 sees no record of this run" in message
    assert str(place) in message
    assert "start_timeout" in message
    assert "BATCHLET_DASK_CLUSTER__RENDEZVOUS_DIR" in message


DAMAGED = {
    "empty": b"",
    "cut off": record().to_json()[:-9].encode(),
    "no object": b"[1, 2]",
    "no JSON": b"run=run",
    "no text": b"\xff\xfe",
    "a field is missing": b'{"run_id": "run", "nonce": "", "node": "n1", "host": "h", "port": 1}',
    "a field too many": record().to_json().replace("{", '{"x": "y", ').encode(),
    "port is a text": record().to_json().replace("4242", '"4242"').encode(),
    "secret is a number": record().to_json().replace('"5ec2e7"', "5").encode(),
    "null": b"null",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_named_at_the_deadline(place, content):
    place.mkdir(mode=0o700)
    (place / "run.json").write_bytes(content)
    (place / "run.json").chmod(0o600)
    assert "a record that is damaged" in timed_out(meet(place))


def test_a_record_of_another_run_under_this_name_is_not_taken(place):
    place.mkdir(mode=0o700)
    (place / "run.json").write_text(record("another").to_json())
    (place / "run.json").chmod(0o600)
    assert "a record of another run (another)" in timed_out(meet(place))


def test_a_record_under_another_name_is_not_looked_at(place):
    meet(place, "another").publish(record("another"))
    assert "no record of this run" in timed_out(meet(place))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_record_that_others_can_write_is_not_taken(place, mode):
    meet(place).publish(record())
    (place / "run.json").chmod(mode)
    assert "a record that others may have written" in timed_out(meet(place))


@needs_root
def test_a_record_of_another_user_is_not_taken(place):
    meet(place).publish(record())
    os.chown(place / "run.json", NOBODY, NOBODY)
    assert "a record that others may have written" in timed_out(meet(place))


def test_a_symbolic_link_is_not_taken_for_a_record(place, tmp_path):
    meet(tmp_path / "elsewhere").publish(record())
    place.mkdir(mode=0o700)
    (place / "run.json").symlink_to(tmp_path / "elsewhere" / "run.json")
    assert "a record that cannot be read" in timed_out(meet(place))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_does_not_make_a_rank_hang(place, make):
    place.mkdir(mode=0o700)
    make(place / "run.json", 0o600)
    assert "a record that" in timed_out(meet(place))


def test_a_bad_record_is_forgotten_when_the_right_one_comes(place):
    place.mkdir(mode=0o700)
    (place / "run.json").write_text("half a rec")
    publisher = threading.Timer(0.1, meet(place).publish, [record()])
    publisher.start()
    assert meet(place).wait(soon(5)) == record()
    publisher.join()


# The directory


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777, 0o701, 0o1777])
@pytest.mark.parametrize("action", ["check", "publish"])
def test_a_directory_that_others_may_use_is_refused_with_its_mode(place, action, mode):
    place.mkdir()
    place.chmod(mode)
    rendezvous = meet(place)
    message = refused(rendezvous.check if action == "check" else lambda: rendezvous.publish(record()))
    assert f"others may use it (mode {mode:04o}, needed 0700)" in message
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("action", ["check", "publish"])
def test_a_symbolic_link_to_a_directory_is_refused(place, tmp_path, action):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "elsewhere")
    rendezvous = meet(place)
    message = refused(rendezvous.check if action == "check" else lambda: rendezvous.publish(record()))
    assert "symbolic links are not followed" in message
    assert list((tmp_path / "elsewhere").iterdir()) == []


@needs_root
@pytest.mark.parametrize("action", ["check", "publish"])
def test_a_directory_of_another_user_is_refused_by_his_number(place, action):
    place.mkdir(mode=0o700)
    os.chown(place, NOBODY, NOBODY)
    rendezvous = meet(place)
    message = refused(rendezvous.check if action == "check" else lambda: rendezvous.publish(record()))
    assert f"it belongs to user {NOBODY}, not to you (0)" in message


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_file_in_the_way_is_refused(place, below):
    place.write_text("a file")
    refused(meet(place / below).check)
    refused(lambda: meet(place / below).publish(record()))
    assert place.read_text() == "a file"


def test_a_dangling_symbolic_link_is_refused(place):
    place.symlink_to(place.parent / "nowhere")
    refused(meet(place).check)
    assert not (place.parent / "nowhere").exists()


def test_a_name_that_is_too_long_is_refused(tmp_path):
    refused(meet(tmp_path / ("x" * 300)).check)


def test_the_home_of_a_user_who_does_not_exist_is_refused():
    refused(lambda: FileRendezvous("~no-such-user/meet", "run", "n1").check())


def test_a_relative_directory_stays_where_it_was_when_the_script_changes_directory(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    rendezvous = FileRendezvous(".batchlet", "run", "n1")
    monkeypatch.chdir(tmp_path / "b")
    rendezvous.publish(record())
    assert (tmp_path / "a" / ".batchlet" / "run.json").exists()
    rendezvous.withdraw()
    assert list((tmp_path / "a").iterdir()) == list((tmp_path / "b").iterdir()) == []


def read_only_refusals(place: Path) -> tuple[str, str]:
    return refused(meet(place).check), refused(lambda: meet(place).publish(record()))


def test_a_place_in_which_nothing_can_be_made_is_refused(open_place):
    read_only = open_place / "read-only"
    read_only.mkdir(mode=0o555)
    place = read_only / "meet"
    messages = as_nobody(lambda: read_only_refusals(place)) if os.geteuid() == 0 else read_only_refusals(place)
    assert all("Permission denied" in message or "cannot be written" in message for message in messages)


def test_a_directory_of_ones_own_that_cannot_be_written_is_refused(open_place):
    place = open_place / "meet"
    place.mkdir()
    place.chmod(0o500)
    if os.geteuid() == 0:
        os.chown(place, NOBODY, NOBODY)
        messages = as_nobody(lambda: read_only_refusals(place))
    else:
        messages = read_only_refusals(place)
    assert all("Permission denied" in message or "cannot be written" in message for message in messages)
    assert list(place.iterdir()) == []


@needs_root
def test_another_user_can_neither_read_the_record_nor_publish_one(open_place):
    place = open_place / "meet"
    meet(place).publish(record())
    assert "a record that cannot be read" in str(as_nobody(lambda: timed_out(meet(place))))
    assert "belongs to user 0" in str(as_nobody(lambda: refused(lambda: meet(place).publish(record()))))


# Many runs at once


def run_together(actions: list[Callable[[], None]]) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[action]) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return errors


def test_many_runs_can_come_and_go_in_one_directory(place):
    def come_and_go(name: str) -> None:
        for number in range(15):
            run_id = f"{name}-{number}"
            rendezvous = meet(place, run_id)
            rendezvous.publish(record(run_id))
            assert meet(place, run_id).wait(soon(5)) == record(run_id)
            rendezvous.withdraw()

    assert run_together([lambda name=name: come_and_go(name) for name in "abcdef"]) == []  # type: ignore[misc]
    assert not place.exists()


def test_a_run_can_check_the_directory_while_others_remove_it(place):
    def check_and_leave(name: str) -> None:
        for _ in range(150):
            rendezvous = meet(place, name)
            rendezvous.check()
            rendezvous.withdraw()

    assert run_together([lambda name=name: check_and_leave(name) for name in "abcd"]) == []  # type: ignore[misc]
    assert not place.exists()


# The note for the owner


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_note_is_for_the_owner_alone_and_goes_with_its_directory(place, umask):
    before = os.umask(umask)
    try:
        path = meet(place).leave_note("secret\n")
    finally:
        os.umask(before)
    assert path == place / "run.dashboard"
    assert path.read_text() == "secret\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    # As rank 0 does it for a client that was killed.
    other = meet(place)
    other.remove_note()
    other.remove_note()
    assert not place.exists()


def test_a_note_takes_the_place_of_what_a_killed_run_has_left_and_is_not_written_through_a_link(place, tmp_path):
    meet(place).leave_note("old")
    assert meet(place).leave_note("new").read_text() == "new"
    meet(place).remove_note()
    place.mkdir(mode=0o700)
    (tmp_path / "away").write_text("untouched")
    (place / "run.dashboard").symlink_to(tmp_path / "away")
    assert meet(place).leave_note("new").read_text() == "new"
    assert (tmp_path / "away").read_text() == "untouched"


def test_a_note_outlives_the_meeting_and_goes_with_a_dead_rank_0(place):
    rank_0 = meet(place)
    rank_0.publish(record())
    meet(place).leave_note("secret")
    rank_0.withdraw()
    assert [path.name for path in place.iterdir()] == ["run.dashboard"]
    meet(place).withdraw()
    assert place.exists()
    meet(place).withdraw(orphaned=True)
    assert not place.exists()


def test_no_note_is_left_where_others_are_and_none_of_theirs_is_removed(place):
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    (place / "run.dashboard").write_text("theirs")
    assert "mode 0755" in refused(lambda: meet(place).leave_note("secret"))
    meet(place).remove_note()
    assert (place / "run.dashboard").read_text() == "theirs"
