"""Run a program as a user would, and see what it printed, how it ended and what it left behind."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import pytest
from foreign_variables import FOREIGN

REPOSITORY = Path(__file__).parents[1]
WORKLOADS = REPOSITORY / "tests" / "slurm" / "workloads"

# In the environment of all that a test starts, on whichever node: by this a process is known as the test's own.
MARK = "TEST_RUN_MARK"
# What the launcher says about a run is not ours.
LAUNCHER_LINES = ("srun: ", "slurmstepd: ", "salloc: ")
# The launcher's last helpers may outlive it by a moment.
GRACE = 2.0


@dataclass(frozen=True)
class Result:
    """What a user sees of a program that has ended."""

    rc: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that the launcher did not write."""
        return [line for line in self.stderr.splitlines() if not line.startswith(LAUNCHER_LINES)]

    def __str__(self) -> str:
        return f"rc {self.rc} after {self.seconds:.1f} s\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


Run = Callable[..., Result]
T = TypeVar("T")


def poll(condition: Callable[[], T], seconds: float, pause: float = 0.05) -> T:
    """Look until there is something (a true value) or the time is up, and give what was seen last."""
    deadline = time.monotonic() + seconds
    while not (seen := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return seen


def eventually(
    condition: Callable[[], T], seconds: float, otherwise: Callable[[], object] | object = "", pause: float = 0.05
) -> T:
    """Wait until there is something (a true value), and give it; fail with `otherwise` if there is nothing in time."""
    seen = poll(condition, seconds, pause)
    assert seen, f"not within {seconds:g} s: {otherwise() if callable(otherwise) else otherwise}"
    return seen


def environ_of(process: psutil.Process) -> dict[str, str]:
    """Give a process's environment; it has none once it has ended, nor at the moment in which it becomes another program."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ()
    return {}


class Place:
    """A working directory and a temporary directory for one test, with short names: sockets live in the latter.

    Other users can read them, as they could on a cluster; `on_timeout` is called before a program that hangs is killed.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, on_timeout: Callable[[], object] | None = None) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="bt-", dir="/tmp" if Path("/tmp").is_dir() else None))
        self.base.chmod(0o755)
        self.cwd = self.base / "cwd"
        self.tmp = self.base / "tmp"
        self.cwd.mkdir(mode=0o755)
        self.tmp.mkdir(mode=0o755)
        self.mark = secrets.token_hex(8)
        self._on_timeout = on_timeout
        self._scripts = 0
        clean = {key: value for key, value in environ.items() if not key.startswith(FOREIGN) or key == "SLURM_CONF"}
        python = str(Path(sys.executable).parent)
        self.environ = {
            **clean,
            "PATH": f"{python}{os.pathsep}{clean.get('PATH', '/usr/bin:/bin')}",
            "TMPDIR": str(self.tmp),
            # Where runs that can be attached to are entered.
            "XDG_STATE_HOME": str(self.base / "state"),
            MARK: self.mark,
        }

    def script(self, source: str | Path) -> str:
        """Return the path of a script: one that exists, or a new one with this text, outside the working directory."""
        if isinstance(source, Path):
            return str(source)
        self._scripts += 1
        path = self.base / f"app{self._scripts}.py"
        path.write_text(source)
        path.chmod(0o644)
        return str(path)

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 60, stdin: str | None = None
    ) -> Result:
        """Run a command to its end; it must end in time, and leave no process and no file behind."""
        before = self.files()
        result = self.run_only(*command, env=env, timeout=timeout, stdin=stdin)
        self.assert_nothing_left(before, result)
        return result

    def run_only(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 60, stdin: str | None = None
    ) -> Result:
        """Run a command to its end; it must end in time."""
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            if self._on_timeout is not None:
                self._on_timeout()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self.kill_processes()
            stdout, stderr = process.communicate(timeout=10)
            result = Result(process.returncode, stdout, stderr, time.monotonic() - began)
            raise AssertionError(f"still running after {timeout} s: {' '.join(command)}\n{result}") from None
        except BaseException:
            process.kill()
            raise
        return Result(process.returncode, stdout, stderr, time.monotonic() - began)

    def processes(self) -> list[psutil.Process]:
        """List what still runs of all that was started here."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                # Looked into first: psutil takes its time over all processes of a machine, and tests ask again and again.
                environ = Path(f"/proc/{pid}/environ")
                if sys.platform.startswith("linux") and self.mark.encode() not in environ.read_bytes():
                    continue
                process = psutil.Process(pid)
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill_processes(self) -> None:
        """End what still runs of all that was started here."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def files(self) -> set[Path]:
        """List the files in the working directory, and Batchlet's own (and its fork server's) in the temporary one.

        But for those that Python itself leaves beside each module that it imports.
        """
        mine = (path for path in self.cwd.rglob("*") if "__pycache__" not in path.parts)
        return {*mine, *self.tmp.glob("batchlet-*"), *self.tmp.glob("pymp-*")}

    def assert_nothing_left(self, before: set[Path] | None = None, result: object = "") -> None:
        """Fail if a process is still there, or a file that was not there before."""
        poll(lambda: not self.processes(), GRACE)
        described = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                described.append(f"{process.pid} {' '.join(process.cmdline())}")
        self.kill_processes()
        assert not described, f"processes are left: {described}\n{result}"
        files = sorted(str(path.relative_to(self.base)) for path in self.files() - (before or set()))
        assert not files, f"files are left: {files}\n{result}"

    def close(self) -> None:
        """Remove it all."""
        self.kill_processes()
        # What a run leaves that was killed with all its processes, the next one finds by its scratch, which goes now.
        for scratch in self.tmp.glob("batchlet-*"):
            for semaphore in Path("/dev/shm").glob(f"sem.{glob.escape(scratch.name)}-*"):
                semaphore.unlink(missing_ok=True)
        shutil.rmtree(self.base, ignore_errors=True)


def without_runpy(lines: Sequence[str]) -> list[str]:
    """Leave out of a traceback what Python's own `-m` adds to it; Python 3.10 shows these frames with their source."""
    kept, ours = [], False
    for line in lines:
        ours = "runpy" in line if line.startswith("  File ") else ours and line.startswith("    ")
        if not ours:
            kept.append(line)
    return kept


def open_files(kind: str, limit: int) -> tuple[str, ...]:
    """Begin a command that may have so many files open: "-S" for the soft limit, "" for both."""
    return ("sh", "-c", f'ulimit {kind} -n {limit} && exec "$0" "$@"')


def json_line(text: str, prefix: str = "RESULT ") -> str:
    """Return the one line of a script's output that starts with `prefix`, without it."""
    lines = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    assert len(lines) == 1, f"not one line that starts with {prefix!r}:\n{text}"
    return lines[0]


def report_of(directory: Path) -> dict[str, Any]:
    """Read the report of the run that wrote last; it must be whole, and of the schema's form."""
    import jsonschema

    import batchlet

    schema = Path(batchlet.__file__).parent / "run_report" / "schema.json"
    found = json.loads((directory / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(found)
    return found


@dataclass(frozen=True)
class Job:
    """A batch job that has ended."""

    rc: int
    output: str
    start: str
    end: str


class BatchJob:
    """A batch job, submitted as a user would, from the working directory."""

    def __init__(self, place: Place, *args: str, script: str | None = None) -> None:
        self._place = place
        submitted = place.run_only("sbatch", "--parsable", *args, timeout=10, stdin=script)
        assert submitted.rc == 0, submitted
        self.id = submitted.stdout.strip()

    @classmethod
    def of(cls, place: Place, number: str) -> BatchJob:
        """Give a job that somebody else has submitted."""
        job = cls.__new__(cls)
        job._place, job.id = place, number
        return job

    def wait(self, timeout: float = 60) -> Job:
        """Wait for its end; it must end in time. Its output file is read and removed."""
        facts = poll(self._facts_of_its_end, timeout, 0.2)
        if facts is None:
            subprocess.run(["scancel", self.id], env=self._place.environ, check=False)
            output = Path(self._facts()["StdOut"])
            said = output.read_text() if output.exists() else "no output"
            raise AssertionError(f"the batch job is still running after {timeout} s: {self._facts()}\n{said}")
        path = Path(facts["StdOut"])
        output = path.read_text()
        path.unlink()
        return Job(int(facts["ExitCode"].split(":")[0]), output, facts["StartTime"], facts["EndTime"])

    def _facts_of_its_end(self) -> dict[str, str] | None:
        facts = self._facts()
        return None if facts["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") else facts

    def _facts(self) -> dict[str, str]:
        shown = self._place.run_only("scontrol", "--oneliner", "show", "job", self.id, timeout=10)
        return dict(re.findall(r"(\S+?)=(\S*)", shown.stdout))


def unavailable(reason: str, need: str = "slurm") -> NoReturn:
    """Skip, or fail where Slurm, or what else is needed, is a must."""
    if need in os.environ.get("BATCHLET_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"BATCHLET_REQUIRE contains {need}, but: {reason}", pytrace=False)
    pytest.skip(reason)


@contextlib.contextmanager
def reserved_instance(system: str = "slurm") -> Iterator[int]:
    """Reserve the number of a test cluster; the kernel takes it back when this process ends, however that happens."""
    first = int(os.environ.get(f"BATCHLET_TEST_{system.upper()}_INSTANCE", "1"))
    for instance in range(first, first + 20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
            try:
                holder.bind(f"\0batchlet-tests-{system}-{instance}")
            except OSError:
                continue
            yield instance
            return
    pytest.fail(f"20 other test sessions use the {system} instances from {first} on")
