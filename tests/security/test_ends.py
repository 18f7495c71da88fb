"""However a run ends, its private key is in no file afterwards, and no secret is in what it printed."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from held_runs import HELD, PREFIX, Held
from mpi_launchers import open_mpi
from run_helpers import Place, Result, environ_of
from secrets_search import files_with, secrets_in
from strangers import as_nobody, here

RECORDS = ".batchlet"
# Ends that wait most of the time, and a machine with few cores.
SIDE_BY_SIDE = 4


def go_on(run: Held) -> None:
    (run.base / "go-on").touch()


def kill_client(run: Held) -> None:
    kill_rank(run, "1")


def kill_scheduler(run: Held) -> None:
    kill_rank(run, "0")


def cmdline_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error, OSError):
        return process.cmdline()
    return []


def kill_rank(run: Held, rank: str) -> None:
    found = [
        process
        for process in run.processes()
        if (environ := environ_of(process)).get("SLURM_PROCID", environ.get("OMPI_COMM_WORLD_RANK")) == rank
        and str(HELD) in cmdline_of(process)
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
    job = next(job for process in run.processes() if (job := environ_of(process).get("SLURM_JOB_ID")))
    subprocess.run(["scancel", "--full", "--signal=KILL", job], env=run.place.environ, check=True, timeout=20)


@dataclass(frozen=True)
class Case:
    """A run and its end."""

    mode: str
    end: Callable[[Held], None]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join([self.mode, self.end.__name__, *self.env])


@dataclass(frozen=True)
class Ended:
    """What was found of it."""

    during: list[str]
    after: list[str]
    printed: list[str]
    result: Result


DEBUG = {"BATCHLET_LOG_LEVEL": "debug"}
CASES = [
    Case("srun", go_on, DEBUG),
    Case("srun", kill_client),
    Case("srun", kill_scheduler),
    Case("srun", kill_all),
    Case("srun", scancel),
    Case("allocation", scancel),
    # In an allocation the record comes through the step's output: no variable of srun may bring it to any other place.
    Case("allocation", go_on, {"SLURM_LABELIO": "1", "SLURM_UNBUFFEREDIO": "1"}),
    Case("allocation", go_on, {"SLURM_STDOUTMODE": "step.out"}),
    Case("allocation", kill_all),
    Case("mpirun", kill_all),
    # With the MPI that the script itself has started.
    Case("mpirun", kill_all, {"USE_MPI": "1"}),
    Case("local", go_on, DEBUG),
    Case("local", kill_script),
    Case("local", kill_all),
]
MARKS = {"srun": [pytest.mark.slurm], "allocation": [pytest.mark.slurm], "mpirun": [pytest.mark.mpirun], "local": []}


@pytest.fixture(scope="module")
def ends(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Ended]]]:
    """What is found of all cases that are to be tested; some run side by side."""
    chosen = [item.callspec.params["case"] for item in request.session.items if "ends" in item.fixturenames]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool, contextlib.ExitStack() as stack:
        found: dict[str, Future[Ended]] = {}
        for case in chosen:
            try:
                start = prepared(request, case, stack)
                found[case.name] = pool.submit(watch, case, start)
            except pytest.skip.Exception as reason:
                found[case.name] = Future()
                found[case.name].set_exception(reason)
        yield found


def prepared(request: pytest.FixtureRequest, case: Case, stack: contextlib.ExitStack) -> Callable[[], Held]:
    """Make a place for a run, and what starts it there."""
    if case.mode in ("srun", "allocation"):
        cluster = request.getfixturevalue("cluster")
        place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    else:
        place = Place()
    stack.callback(place.close)
    env = {f"{PREFIX}WORKERS_PER_NODE": "1", **case.env}
    command: list[str] = []
    if case.mode == "srun":
        command = ["srun", "-N2", "-n3"]
    if case.mode == "allocation":
        command = ["salloc", "-N2", "-n2"]
    if case.mode == "mpirun":
        launcher = open_mpi()
        command, env = [launcher.mpirun, "-n", "3"], {**launcher.variables, **case.env}
    return lambda: Held(place, *command, env=env)


def watch(case: Case, start: Callable[[], Held]) -> Ended:
    """See a run through."""
    run = start()
    try:
        told = run.told()
        during = files_with(run, told)
        case.end(run)
        result = run.ended()
        if case.end is not go_on:
            # Some have outlived it, and some of those might tidy up.
            time.sleep(1)
            run.place.kill_processes()
        printed = secrets_in((result.stdout + result.stderr).encode(), told, "secret", "key")
        lines = [line for line in result.stderr.splitlines() if told["token"] in line]
        # Pipes outside Slurm are private; at any other place here others can read it.
        allowed = 1 if case.mode == "mpirun" else 0
        return Ended(during, files_with(run, told), printed + ["token"] * (len(lines) - allowed), result)
    finally:
        run.end()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=MARKS[case.mode]) for case in CASES])
def test_no_secret_is_left(ends: dict[str, Future[Ended]], case: Case) -> None:
    """The key is in no file, not even for a while; what was printed has no key, and the dashboard's secret at most once."""
    ended = ends[case.name].result()
    assert ended.during == []
    assert ended.after == []
    assert ended.printed == [], str(ended.result)
    assert case.end is not go_on or ended.result.rc == 0, str(ended.result)


# The start --------------------------------------------------------------------------------------------------------


@pytest.mark.slurm
def test_only_the_owner_reads_the_record(slurm_place: Place) -> None:
    """While a run waits for a late rank, its record is there: for its owner alone, and so is all of its scratch."""
    run = Held(slurm_place, "srun", "-N2", "-n4", env={"LATE_RANK": "3"})
    try:
        directory = slurm_place.cwd / RECORDS
        run.wait(lambda: list(directory.glob("*.json")) and list(slurm_place.tmp.glob("batchlet-*")), 30, "no record")
        paths = [directory, *directory.iterdir(), *slurm_place.tmp.glob("batchlet-*"), *slurm_place.tmp.glob("pymp-*")]
        assert '"secret"' in next(directory.glob("*.json")).read_text(), "what this test is about is elsewhere"
        assert_closed(paths)
        (run.base / "come").touch()
        run.told()
        (note,) = directory.iterdir()
        assert note.suffix == ".dashboard", "the record outlives the meeting"
        assert_closed([directory, note, *slurm_place.tmp.glob("batchlet-*"), *slurm_place.tmp.glob("pymp-*")])
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
        "        print(type(error).__name__)\n"
    )
    done = as_nobody(here(), *map(str, paths), code=code)
    assert set(done.stdout.split()) <= {"PermissionError", "FileNotFoundError"}, done
    assert "PermissionError" in done.stdout


@pytest.mark.slurm
def test_those_who_are_left_remove_the_address_of_the_dashboard(slurm_place: Place) -> None:
    """The client, whose file it is, and rank 0 are killed: the hosts of the workers tidy up."""
    run = Held(slurm_place, "srun", "-N2", "-n4")
    try:
        run.told()
        assert [path.suffix for path in (slurm_place.cwd / RECORDS).iterdir()] == [".dashboard"]
        kill_client(run)
        kill_scheduler(run)
        result = run.ended()
        assert result.rc == 137, str(result)
        assert list(slurm_place.cwd.iterdir()) == []
    finally:
        run.end()


@pytest.mark.slurm
@pytest.mark.parametrize("end", [scancel, kill_all])
def test_no_file_has_the_key_after_a_start_that_was_killed(slurm_place: Place, end: Callable[[Held], None]) -> None:
    """Killed while the ranks still meet, all of them in one moment: the record, which nobody can remove, has no key in it."""
    run = Held(slurm_place, "srun", "-N2", "-n3", env={"LATE_RANK": "2"})
    try:
        directory = slurm_place.cwd / RECORDS
        run.wait(lambda: list(directory.glob("*.json")), 30, "no record")
        time.sleep(0.5)
        end(run)
        run.ended(60)
        files = [path for path in slurm_place.base.rglob("*") if path.is_file()]
        assert [str(path) for path in files if b"PRIVATE KEY" in path.read_bytes()] == []
    finally:
        run.end()
