"""What a run leaves on disk and shows in /proc is for its owner alone; what somebody else has put there is not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mpi_launchers import open_mpi
from run_helpers import Place
from stand import AS_NOBODY, HELD, NOBODY, PREFIX, Held, as_nobody, foreign_python, here

ERROR = "batchlet: error: "
RECORDS = ".batchlet"


# Files and /proc -----------------------------------------------------------------------------------------------


def test_only_the_owner_reads_the_record(slurm_place: Place) -> None:
    """While a run waits for a late rank, its record is there: for its owner alone, and so is all of its scratch."""
    run = Held(slurm_place, "srun", "-N2", "-n5", env={"LATE_RANK": "4"})
    try:
        directory = slurm_place.cwd / RECORDS
        run.wait(lambda: list(directory.glob("*.json")) and list(slurm_place.tmp.glob("batchlet-*")), 30, "no record")
        paths = [directory, *directory.iterdir(), *slurm_place.tmp.glob("batchlet-*"), *slurm_place.tmp.glob("pymp-*")]
        assert "PRIVATE KEY" in next(directory.glob("*.json")).read_text(), "what this test is about is elsewhere"
        assert_closed(paths)
        (run.base / "come").touch()
        run.told()
        assert not directory.exists(), "the record outlives the meeting"
        assert_closed([*slurm_place.tmp.glob("batchlet-*"), *slurm_place.tmp.glob("pymp-*")])
        result = run.finish()
        assert result.rc == 0, str(result)
    finally:
        run.end()


def assert_closed(paths: list[Path]) -> None:
    """Each belongs to us, with no right for anybody else, and another user can indeed not look into it."""
    assert paths
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            assert found.st_uid == os.geteuid(), path
            assert not stat.S_IMODE(found.st_mode) & 0o077, f"{path} has mode {stat.S_IMODE(found.st_mode):o}"
    code = (
        "import os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        print(os.listdir(path) if os.path.isdir(path) else open(path).read())\n"
        "    except OSError as error:\n"
        "        pass\n"
    )
    done = as_nobody(here(), *map(str, paths), code=code)
    assert done.stdout == "", done


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("srun", marks=pytest.mark.slurm),
        pytest.param("allocation", marks=pytest.mark.slurm),
        pytest.param("mpirun", marks=pytest.mark.mpirun),
        "local",
    ],
)
def test_no_secret_in_argv_or_environment(request: pytest.FixtureRequest, mode: str) -> None:
    """No process of the run, its launcher and helpers included, has key, secret or token in what `ps` can show."""
    run = held(request, mode)
    try:
        told = run.told()
        processes = run.processes(launchers=True)
        assert len(processes) >= 3
        checked = 0
        for process in processes:
            with contextlib.suppress(OSError, psutil.Error):
                seen = (
                    Path(f"/proc/{process.pid}/cmdline").read_bytes()
                    + Path(f"/proc/{process.pid}/environ").read_bytes()
                )
                assert not secrets_in(seen, told), (process.pid, process.cmdline())
                checked += 1
        assert checked >= 3
        assert run.finish().rc == 0
    finally:
        run.end()


def held(request: pytest.FixtureRequest, mode: str, **env: str) -> Held:
    """Start a run in a mode."""
    if mode == "local":
        return Held(request.getfixturevalue("place"), env={f"{PREFIX}WORKERS_PER_NODE": "2", **env})
    if mode.startswith("mpirun"):
        launcher = open_mpi()
        env = {**env, **({"USE_MPI": "1"} if mode != "mpirun" else {})}
        return Held(request.getfixturevalue("place"), launcher.mpirun, "-n", "4", env={**launcher.variables, **env})
    start = {"srun": ("srun", "-N2", "-n4"), "allocation": ("salloc", "-N2", "-n4")}[mode]
    return Held(request.getfixturevalue("slurm_place"), *start, env=env)


def secrets_in(data: bytes, told: dict[str, Any], *names: str) -> list[str]:
    """Names of the run's secrets that are in there, in whatever spelling."""
    wanted = {name: told.get(name) for name in names or ("token", "secret")}
    lines = told.get("key", "").splitlines()
    # The second line of the PEM is all of the key itself.
    wanted["key"] = lines[2] if len(lines) > 2 else None
    found = [name for name, text in wanted.items() if text and text.encode() in data]
    return found + (["a private key"] if b"PRIVATE KEY" in data else [])


# Output ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [pytest.param("srun", marks=pytest.mark.slurm), "local"])
def test_no_secret_in_the_log(request: pytest.FixtureRequest, mode: str) -> None:
    """Not even at level "debug" is a secret logged; the dashboard's address is said once."""
    run = held(request, mode, BATCHLET_LOG_LEVEL="debug")
    try:
        told = run.told()
        result = run.finish()
        assert result.rc == 0, str(result)
        text = result.stdout + result.stderr
        assert secrets_in(text.encode(), told, "secret") == []
        assert len([line for line in text.splitlines() if told["token"] in line]) <= 1
    finally:
        run.end()


@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["srun ", ""], ids=["srun", "allocation"])
def test_the_address_of_the_dashboard_is_in_no_file_for_everybody(slurm_place: Place, launcher: str) -> None:
    """Slurm makes the job's output file, with a mode by which every user reads it: the secret must not be in there."""
    job = slurm_place.base / "job.sh"
    job.write_text(f'#!/bin/sh\n{launcher}"$@"\n')
    job.chmod(0o755)
    run = Held(slurm_place, "sbatch", "--wait", "--output=job.out", "-N2", "-n4", str(job))
    try:
        told = run.told()
        assert run.finish(60).rc == 0
        output = slurm_place.cwd / "job.out"
        text = output.read_text()
        assert "batchlet: slurm" in text or "batchlet: allocation" in text, text
        readable = bool(output.stat().st_mode & 0o044)
        assert not readable or told["token"] not in text, f"mode {output.stat().st_mode:o}:\n{text}"
    finally:
        run.end()


@pytest.mark.slurm
@pytest.mark.parametrize(
    "variables",
    [{"SLURM_LABELIO": "1"}, {"SLURM_STDOUTMODE": "step.out"}, {"SLURM_UNBUFFEREDIO": "1"}],
    ids=lambda each: next(iter(each)),
)
def test_variables_of_srun_do_not_spill_the_record(slurm_place: Place, variables: dict[str, str]) -> None:
    """In an allocation the record comes through the step's output: no variable of srun brings it to any other place."""
    env = {**variables, f"{PREFIX}START_TIMEOUT": "20"}
    run = Held(slurm_place, "salloc", "-N2", "-n4", env=env)
    try:
        with contextlib.suppress(AssertionError):
            run.told(40)
            run.finish()
        run.end()
        for path in [
            run.base / "out",
            run.base / "err",
            *(path for path in slurm_place.cwd.rglob("*") if path.is_file()),
        ]:
            text = path.read_text()
            assert "PRIVATE KEY" not in text, f"the private key is in {path.name}"
            assert '"secret"' not in text, f"the secret is in {path.name}"
        assert run.result().rc == 0, str(run.result())
    finally:
        run.end()


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


@pytest.mark.slurm
@pytest.mark.parametrize("plant", PLANTED)
def test_planted_rendezvous(slurm_place: Place, plant: str) -> None:
    """A `.batchlet` that is not ours alone is refused: exit code 2, one message that names it, nothing written to it."""
    away = slurm_place.base / "away"
    folder_of(away, NOBODY, 0o777)
    planted = slurm_place.cwd / RECORDS
    PLANTED[plant](planted, away)
    result = slurm_place.run_only("srun", "-N2", "-n4", sys.executable, str(HELD), str(slurm_place.base), timeout=40)
    assert result.rc == 2, str(result)
    said = [line for line in result.stderr.splitlines() if line.startswith(ERROR)]
    assert len(said) == 1, str(result)
    assert str(planted) in said[0]
    assert "Traceback" not in result.stderr, str(result)
    assert list(away.iterdir()) == []
    if planted.is_dir() and not planted.is_symlink():
        assert list(planted.iterdir()) == []
    assert planted.lstat(), "what is not ours was removed"


@contextlib.contextmanager
def trap() -> Iterator[tuple[int, list[Any]]]:
    """A port where an attacker waits for ranks to be led astray."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(0.1)
        came: list[Any] = []
        yield server.getsockname()[1], came
        with contextlib.suppress(TimeoutError):
            came.append(server.accept()[1])


# What is at the place of the record when the ranks look for it: before rank 0 has come.
RECORD = {
    "of another user": "os.open(record, os.O_CREAT | os.O_WRONLY, 0o600); put(record); os.chown(record, NOBODY, NOBODY)",
    "writable for all": "put(record); os.chmod(record, 0o666)",
    "writable for the group": "put(record); os.chmod(record, 0o660)",
    "symlink to one of the attacker": "put(away); os.chown(away, NOBODY, NOBODY); os.symlink(away, record)",
    "symlink to one that is ours": "put(away); os.chmod(away, 0o600); os.symlink(away, record)",
    "dangling symlink": "os.symlink(away + '.gone', record)",
    "FIFO": "os.mkfifo(record)",
    "damaged": "open(record, 'w').write('{'); os.chmod(record, 0o600)",
}


@pytest.mark.slurm
@pytest.mark.parametrize("plant", RECORD)
def test_planted_record(slurm_place: Place, plant: str) -> None:
    """A record that somebody else may have written leads no rank astray; the run's own takes its place."""
    away, planted = slurm_place.base / "away.json", slurm_place.base / "planted"
    with trap() as (port, came):
        prepare = textwrap.dedent(
            f"""
            import json, os
            NOBODY, away = {NOBODY}, {str(away)!r}
            run_id = "slurm-{{}}-{{}}.0".format(os.environ["SLURM_CLUSTER_NAME"], os.environ["SLURM_JOB_ID"])
            os.mkdir("{RECORDS}", 0o700)
            record = "{RECORDS}/" + run_id + ".json"
            open({str(planted)!r}, "w").write(run_id)
            def put(path):
                values = dict(run_id=run_id, nonce="00", node="n", host={_login(slurm_place)!r}, port={port})
                with open(path, "w") as file:
                    json.dump(dict(values, secret="00" * 32, certificate="", key=""), file)
            {RECORD[plant]}
            """
        )
        path = slurm_place.base / "prepare.py"
        path.write_text(prepare)
        python = sys.executable
        command = f"{python} {path} && srun {python} {HELD} {slurm_place.base}"
        env = {"LATE_RANK": "0"}
        run = Held(slurm_place, "salloc", "-N2", "-n4", "sh", "-c", command, env=env)
        try:
            run.wait((slurm_place.cwd / RECORDS).exists, 30, "not prepared")
            time.sleep(2)
            (run.base / "come").touch()
            assert planted.read_text() == run.told()["run_id"], "planted in the wrong place"
            assert came == []
            result = run.finish()
            assert result.rc == 0, str(result)
            assert not (slurm_place.cwd / RECORDS).exists()
            if away.exists():
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


@pytest.mark.parametrize("how", ["local_directory", "TMPDIR"])
@pytest.mark.parametrize("plant", SCRATCH)
def test_planted_scratch(place: Place, plant: str, how: str) -> None:
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


def test_scratch_that_is_taken_away(place: Place) -> None:
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


def test_squatted_port_of_a_worker(place: Place) -> None:
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
        time.sleep(3)
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


# The key after the run --------------------------------------------------------------------------------------------


def kill_client(run: Held) -> None:
    kill_rank(run, "1")


def kill_scheduler(run: Held) -> None:
    kill_rank(run, "0")


def kill_rank(run: Held, rank: str) -> None:
    found = [
        process
        for process in run.processes()
        if process.environ().get("SLURM_PROCID", process.environ().get("OMPI_COMM_WORLD_RANK")) == rank
        and str(HELD) in process.cmdline()
    ]
    # The oldest: others were forked from it.
    min(found, key=lambda process: process.create_time()).kill()


def kill_all(run: Held) -> None:
    for process in run.processes(launchers=True):
        with contextlib.suppress(psutil.Error):
            process.suspend()
    for process in run.processes(launchers=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_script(run: Held) -> None:
    run.process.kill()


def scancel(run: Held) -> None:
    job = next(process.environ()["SLURM_JOB_ID"] for process in run.processes() if "SLURM_JOB_ID" in process.environ())
    subprocess.run(["scancel", "--full", "--signal=KILL", job], env=run.place.environ, check=True, timeout=20)


def go_on(run: Held) -> None:
    (run.base / "go-on").touch()


ENDS = [
    *(
        pytest.param(mode, end, marks=pytest.mark.slurm, id=f"{mode}, {end.__name__}")
        for mode in ("srun", "allocation")
        for end in (go_on, kill_client, kill_scheduler, scancel)
        if not (mode == "allocation" and end in (kill_client, kill_scheduler))
    ),
    *(pytest.param("mpirun", end, marks=pytest.mark.mpirun, id=f"mpirun, {end.__name__}") for end in (go_on, kill_all)),
    pytest.param(
        "mpirun of the script's own", kill_all, marks=pytest.mark.mpirun, id="mpirun of the script's own, kill_all"
    ),
    pytest.param("allocation", kill_all, marks=pytest.mark.slurm, id="allocation, kill_all"),
    pytest.param("local", go_on, id="local, go_on"),
    pytest.param("local", kill_script, id="local, kill_script"),
    pytest.param("local", kill_all, id="local, kill_all"),
]


@pytest.mark.parametrize(("mode", "end"), ENDS)
def test_no_file_has_the_key_afterwards(request: pytest.FixtureRequest, mode: str, end: Callable[[Held], None]) -> None:
    """However a run ended, its private key is in no file: not where it ran, nor in a temporary or shared-memory one."""
    run = held(request, mode)
    try:
        told = run.told()
        # Nor while it runs.
        assert files_with(run, told) == []
        end(run)
        run.ended(60)
        time.sleep(0.5)
        run.place.kill_processes()
        assert files_with(run, told) == []
    finally:
        run.end()


@pytest.mark.slurm
@pytest.mark.parametrize("end", [scancel, kill_all])
def test_no_file_has_the_key_after_a_start_that_was_killed(slurm_place: Place, end: Callable[[Held], None]) -> None:
    """Killed while the ranks still meet, all of them in one moment: the record, which nobody can remove, has no key in it."""
    run = Held(slurm_place, "srun", "-N2", "-n5", env={"LATE_RANK": "4"})
    try:
        directory = slurm_place.cwd / RECORDS
        run.wait(lambda: list(directory.glob("*.json")), 30, "no record")
        time.sleep(1)
        end(run)
        run.ended(60)
        left = [
            str(path) for path in slurm_place.base.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
        ]
        assert left == []
    finally:
        run.end()


def files_with(run: Held, told: dict[str, Any]) -> list[str]:
    """The files that hold the run's private key."""
    needle = told["key"].splitlines()[2].encode()
    found = []
    for top in (run.base, Path("/dev/shm"), Path("/tmp"), Path("/var/tmp")):
        for folder, folders, names in os.walk(top):
            # Of the temporary directories what is new; other people's tests have keys of their own.
            folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink()]
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_mtime >= run.began - 1 and status.st_size < 1 << 26:
                        data = path.read_bytes()
                        if needle in data or (top == run.base and b"PRIVATE KEY" in data):
                            found.append(str(path))
    return found
