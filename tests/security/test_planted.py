"""What somebody else has put where a run puts its own is not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from held_runs import HELD, PREFIX, Held
from run_helpers import Place, Result, eventually
from strangers import AS_NOBODY, LOOPBACK, NOBODY, as_nobody, foreign_python, here

from batchlet.rendezvous import CoordinatorRecord

ERROR = "batchlet: error: "
RECORDS = ".batchlet"


def test_plan_has_no_secret(place: Place) -> None:
    """`--plan` shows settings and figures."""
    result = place.run(sys.executable, "-m", "batchlet", "--plan", "--json", timeout=30)
    assert result.rc == 0, str(result)
    assert "KEY" not in result.stdout
    assert not re.search(r"\b[0-9a-f]{32}", result.stdout), result.stdout


# What somebody else has put there -------------------------------------------------------------------------------


def link_to(path: Path, target: Path, owner: int = NOBODY) -> None:
    path.symlink_to(target)
    os.lchown(path, owner, owner)


def folder_of(path: Path, owner: int, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, owner, owner)


PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "symlink to a directory of the attacker": lambda path, away: link_to(path, away),
    "symlink of our own": lambda path, away: link_to(path, away, 0),
    "dangling symlink": lambda path, away: link_to(path, away / "gone"),
    "directory of the attacker": lambda path, _: folder_of(path, NOBODY, 0o700),
    "directory of the attacker, for all": lambda path, _: folder_of(path, NOBODY, 0o777),
    "our directory, for all": lambda path, _: folder_of(path, 0, 0o777),
    "our directory, for reading": lambda path, _: folder_of(path, 0, 0o755),
    "a file": lambda path, _: path.write_text("planted"),
    "a FIFO": lambda path, _: os.mkfifo(path),
}


@pytest.fixture(scope="module")
def refused(cluster: Any) -> Iterator[dict[str, tuple[Place, Result]]]:
    """A run at each such place, all at once: none gets far."""
    places = {plant: Place(cluster.env(), on_timeout=cluster.end_jobs) for plant in PLANTED}
    with ThreadPoolExecutor(len(places)) as pool:

        def run(plant: str) -> tuple[Place, Result]:
            place = places[plant]
            folder_of(place.base / "away", NOBODY, 0o777)
            PLANTED[plant](place.cwd / RECORDS, place.base / "away")
            return place, place.run_only("srun", "-N2", "-n2", sys.executable, str(HELD), str(place.base), timeout=40)

        yield dict(zip(places, pool.map(run, places), strict=True))
    for place in places.values():
        place.close()


@pytest.mark.slurm
@pytest.mark.parametrize("plant", PLANTED)
def test_a_directory_for_records_that_is_not_ours_alone_is_refused(
    refused: dict[str, tuple[Place, Result]], plant: str
) -> None:
    """A `.batchlet` that is not ours alone is refused: exit code 2, one message that names it, nothing written to it."""
    place, result = refused[plant]
    planted = place.cwd / RECORDS
    assert result.rc == 2, str(result)
    said = [line for line in result.stderr.splitlines() if line.startswith(ERROR)]
    assert len(said) == 1, str(result)
    assert str(planted) in said[0]
    assert "Traceback" not in result.stderr, str(result)
    assert list((place.base / "away").iterdir()) == []
    if planted.is_dir() and not planted.is_symlink():
        assert list(planted.iterdir()) == []
    assert planted.lstat(), "what is not ours was removed"


@contextlib.contextmanager
def trap() -> Iterator[tuple[int, list[Any]]]:
    """A port where an attacker waits for ranks to be led astray, and who came."""
    came: list[Any] = []
    with socket.create_server(("0.0.0.0", 0)) as server:

        def wait() -> None:
            with contextlib.suppress(OSError):
                while True:
                    came.append(server.accept()[1])

        threading.Thread(target=wait, daemon=True).start()
        yield server.getsockname()[1], came


def test_control_the_trap_notes_who_comes() -> None:
    with trap() as (port, came):
        socket.create_connection((LOOPBACK, port)).close()
        eventually(lambda: came, 5, "the trap has not noted it")


def put(path: Path, run_id: str, host: str, port: int) -> None:
    """Write a record that leads to the attacker."""
    path.write_text(CoordinatorRecord(run_id, "00", "n", host, port, "00" * 32).to_json())


def link_of(record: Path, away: Path, owner: int) -> None:
    away.chmod(0o600)
    os.chown(away, owner, owner)
    record.symlink_to(away)


# What is at the place of the record when the ranks look for it: before rank 0 has come. `away` leads to the attacker.
RECORD: dict[str, Callable[[Path, Path], Any]] = {
    "of another user": lambda record, away: (shutil.copy(away, record), os.chown(record, NOBODY, NOBODY)),
    "writable for all": lambda record, away: (shutil.copy(away, record), record.chmod(0o666)),
    "writable for the group": lambda record, away: (shutil.copy(away, record), record.chmod(0o660)),
    "dangling symlink": lambda record, away: record.symlink_to(f"{away}.gone"),
    "FIFO": lambda record, _: os.mkfifo(record, 0o600),
    "damaged": lambda record, _: (record.write_text("{"), record.chmod(0o600)),
    "symlink to one of ours": lambda record, away: link_of(record, away, 0),
    # The last is still there when rank 0 comes.
    "symlink to one of the attacker": lambda record, away: link_of(record, away, NOBODY),
}


@pytest.mark.slurm
def test_a_planted_record_leads_no_rank_astray(slurm_place: Place) -> None:
    """A record that somebody else may have written leads no rank astray; the run's own takes its place."""
    away, directory = slurm_place.base / "away.json", slurm_place.cwd / RECORDS
    with trap() as (port, came):
        run = Held(slurm_place, "srun", "-N2", "-n4", env={"LATE_RANK": "0"})
        try:
            run.wait(directory.exists, 30, "no rank has come")
            environ = next(each for process in run.processes() if "SLURM_STEP_ID" in (each := process.environ()))
            run_id = "slurm-{SLURM_CLUSTER_NAME}-{SLURM_JOB_ID}.{SLURM_STEP_ID}".format_map(environ)
            record = directory / f"{run_id}.json"
            for plant, make in RECORD.items():
                record.unlink(missing_ok=True)
                put(away, run_id, _login(slurm_place), port)
                make(record, away)
                # Longer than a rank pauses between two looks.
                time.sleep(0.4)
                assert came == [], f"a rank went to the attacker: {plant}"
            (run.base / "come").touch()
            assert run.told()["run_id"] == run_id, "planted in the wrong place"
            result = run.finish()
            assert result.rc == 0, str(result)
            assert not directory.exists()
            assert '"00"' in away.read_text(), "written through a symlink"
            assert not Path(f"{away}.gone").exists()
        finally:
            run.end()
    assert came == [], "a rank went to the attacker"


def _login(place: Place) -> str:
    conf = Path(place.environ["SLURM_CONF"]).read_text()
    match = re.search(r"^SlurmctldHost=\S+\((\S+)\)", conf, re.M)
    assert match is not None
    return match[1]


SCRATCH: dict[str, Callable[[Path, Path], None]] = {
    "directory of another user": lambda path, _: folder_of(path, NOBODY, 0o777),
    "symlink of another user": lambda path, away: link_to(path, away),
    "for all, without the sticky bit": lambda path, _: folder_of(path, 0, 0o777),
}


@pytest.mark.parametrize(
    ("plant", "how"), [*((plant, "TMPDIR") for plant in SCRATCH), ("directory of another user", "local_directory")]
)
def test_scratch_in_a_directory_of_somebody_else_is_refused(place: Place, plant: str, how: str) -> None:
    """Scratch in a directory whose owner is somebody else is refused: they could put their own in its place.

    Workers read pickles from their scratch (spilled data), and the fork server takes orders from a socket there.
    """
    away = place.base / "away"
    folder_of(away, NOBODY, 0o777)
    path = place.base / "scratch"
    SCRATCH[plant](path, away)
    env = {"TMPDIR": str(path)} if how == "TMPDIR" else {f"{PREFIX}LOCAL_DIRECTORY": str(path)}
    (place.base / "go-on").touch()
    result = place.run_only(sys.executable, str(HELD), str(place.base), env=env, timeout=60)
    assert result.rc == 2, str(result)
    said = [line for line in result.stderr.splitlines() if line.startswith(ERROR)]
    assert len(said) == 1, str(result)
    assert str(path) in said[0]


def test_scratch_cannot_be_taken_away(place: Place) -> None:
    """The attack itself: who owns the directory above puts a directory of their own in the place of the run's scratch."""
    base = place.base / "scratch"
    folder_of(base, NOBODY, 0o777)
    run = Held(place, env={f"{PREFIX}LOCAL_DIRECTORY": str(base), f"{PREFIX}WORKERS_PER_NODE": "1"})
    try:
        with contextlib.suppress(AssertionError):
            run.told(30)
        code = (
            "import os, sys\n"
            "for name in os.listdir(sys.argv[1]):\n"
            "    path = os.path.join(sys.argv[1], name)\n"
            "    os.rename(path, path + '.taken')\n"
            "    os.mkdir(path)\n"
            "    print(name)\n"
        )
        done = as_nobody(here(), str(base), code=code)
        assert done.stdout == "", f"taken away: {done.stdout}"
    finally:
        run.end()


SQUAT = """
import socket, sys, time
while True:
    try:
        server = socket.create_server((sys.argv[1], int(sys.argv[2])))
    except OSError:
        continue
    print("squatted", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(b"\\x00" * 64)
"""


def test_a_squatter_on_a_workers_port_learns_nothing(place: Place) -> None:
    """Another user takes the port of a worker that has died: nothing is said to them, and the run still ends well."""
    run = Held(place, env={f"{PREFIX}WORKERS_PER_NODE": "2"})
    squatter = None
    try:
        told = run.told()
        address = told["workers"][0]
        host, port = re.sub(r"^\w+://", "", address).split(":")
        squatter = subprocess.Popen(
            [*AS_NOBODY, foreign_python(), "-I", "-c", SQUAT, host, port], stdout=subprocess.PIPE, text=True, cwd="/"
        )
        time.sleep(0.5)
        victim = next(
            process
            for process in run.processes()
            for connection in _connections(process)
            if connection.status == "LISTEN" and connection.laddr.port == int(port)
        )
        victim.send_signal(signal.SIGKILL)
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "squatted\n"
        run.wait(lambda: "started again" in run.stderr, 20, "the death was not noticed")
        result = run.finish(60)
        assert result.rc == 0, str(result)
        assert json.loads(result.stdout.split("RESULT ")[1])[0] == 328350, str(result)
        assert "Traceback" not in result.stderr, str(result)
    finally:
        if squatter is not None:
            squatter.kill()
            squatter.wait()
        run.end()


def _connections(process: psutil.Process) -> list[Any]:
    with contextlib.suppress(psutil.Error, OSError):
        return getattr(process, "net_connections", process.connections)("tcp")
    return []
