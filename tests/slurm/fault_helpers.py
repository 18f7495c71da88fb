"""Break a run, and see what a user would see of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cluster_slurm import ClusterError
from run_helpers import MARK, WORKLOADS, Place, Result, environ_of, poll

import batchlet

FAULTS = WORKLOADS / "faults.py"
WAITING = str(Path(batchlet.__file__).parent / "node" / "wait.sh")
PREFIX = "BATCHLET_DASK_CLUSTER__"
# More than this no failure needs to say.
MOST_LINES = 15
# What a busy machine may need beyond the deadline that a case names.
SLACK = 5.0


def in_step(process: psutil.Process) -> bool:
    """Whether it belongs to a job step."""
    return "SLURM_STEP_ID" in environ_of(process)


def options(**values: object) -> dict[str, str]:
    """Options of Batchlet as environment variables."""
    return {PREFIX + name.upper(): str(value) for name, value in values.items()}


class Running:
    """A program under way: what it has printed so far, its processes by rank, and its end."""

    def __init__(self, place: Place, *command: str, env: Mapping[str, str] | None = None, name: str = "") -> None:
        self.place = place
        self.command = command
        self.began = self.struck = time.monotonic()
        self._out, self._err = place.base / f"{name}out", place.base / f"{name}err"
        self._before = place.files()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=place.cwd,
                env={**place.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until this is printed, or the program has ended."""

        def printed_or_over() -> bool:
            return text in self.stdout or text in self.stderr or self.process.poll() is not None

        if not poll(printed_or_over, seconds, 0.02):
            self._give_up(f"{text!r} was not printed within {seconds} s")
        self.struck = time.monotonic()

    def rank(self, number: int) -> psutil.Process:
        """The process that Slurm has started for a rank: the one with that rank's variables whose parent has none."""
        mine = {}
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                # A rank that waits is a shell.
                of_python = process.name().startswith("python") and (
                    str(FAULTS) in line or {"batchlet.node.rank", "batchlet.node.again"} & {*line}
                )
                if process.environ().get("SLURM_PROCID") == str(number) and (of_python or line[-1:] == [WAITING]):
                    mine[process.pid] = process
        tops = []
        for process in mine.values():
            with contextlib.suppress(psutil.Error):
                # The agent of a node has its own rank's variables, and may outlive it.
                if process.ppid() not in mine and process.ppid() != 1:
                    tops.append(process)
        assert len(tops) == 1, f"rank {number}: {tops}"
        return tops[0]

    def agent(self, rank: int) -> psutil.Process:
        """The agent of a rank's node."""
        node, hosts = self.node(rank), []
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                if "batchlet.node.agent" in process.cmdline() and process.environ().get("SLURMD_NODENAME") == node:
                    hosts.append(process)
        pids = {process.pid for process in hosts}
        # Its fork server and the workers have the same command line.
        tops = [process for process in hosts if process.ppid() not in pids]
        assert len(tops) == 1, f"agent of rank {rank}: {tops}"
        return tops[0]

    def scheduler(self) -> psutil.Process:
        """The scheduler, where it has a process of its own."""
        found = []
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == "dask-scheduler":
                    found.append(process)
        assert len(found) == 1, f"scheduler: {found}"
        return found[0]

    def script(self) -> psutil.Process:
        """The process that runs the script where that is not a rank: in an allocation, or without a launcher."""
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if line[1:2] == [str(FAULTS)] and not in_step(process):
                    return process
        raise AssertionError("the script does not run")

    def wait_for_rank(self, number: int, seconds: float = 20) -> None:
        """Wait until a rank has been started."""

        def started() -> bool:
            with contextlib.suppress(AssertionError):
                self.rank(number)
                return True
            return False

        poll(started, seconds)
        self.rank(number)

    @property
    def job(self) -> str:
        """Id of the job, once it is known."""
        return next(environ_of(process)["SLURM_JOB_ID"] for process in self.place.processes() if in_step(process))

    def node(self, rank: int) -> str:
        """Name of a rank's node."""
        return self.rank(rank).environ()["SLURMD_NODENAME"]

    def scancel(self, *args: str) -> None:
        """Cancel the job."""
        subprocess.run(["scancel", *args, self.job], env=self.place.environ, check=True, timeout=20)
        self.struck = time.monotonic()

    def signal(self, number: int, *ranks: int) -> None:
        """Send a signal to ranks, all in one moment."""
        for process in [self.rank(rank) for rank in ranks]:
            process.send_signal(number)
        self.struck = time.monotonic()

    def go_on(self) -> None:
        """Let a script that waits for this go on."""
        (self.place.base / "go-on").touch()

    def finish(self, seconds: float) -> Result:
        """Wait for the end, which must come within so many seconds (and some slack) after the strike."""
        limit = seconds + SLACK
        try:
            self.process.wait(max(0.1, self.struck + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._give_up(f"still running {limit:g} s after the strike")
        return Result(self.process.returncode, self.stdout, self.stderr, time.monotonic() - self.struck)

    def assert_nothing_left(self, result: Result, *, but_scratch: bool = False) -> None:
        """No process and no file is there any more.

        But for what nobody can remove where Slurm has killed all in one moment: scratch, and the address of the dashboard.
        """
        records = self.place.cwd / ".batchlet"
        stays = {*self.place.tmp.rglob("*"), *records.glob("*.dashboard")} if but_scratch else set()
        if but_scratch and {*records.rglob("*")} <= stays:
            stays.add(records)
        self.place.assert_nothing_left(self._before | stays, result)

    def end(self) -> None:
        """End it, whatever it does."""
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        if self.process.poll() is None:
            # Not srun itself, without which the job would stay.
            for process in filter(in_step, self.place.processes()):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
        if self.process.poll() is None:
            if self.place._on_timeout is not None:
                # What is to be told is why the run did not end, not that Slurm has trouble with that too.
                with contextlib.suppress(ClusterError):
                    self.place._on_timeout()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def _give_up(self, why: str) -> None:
        left = [f"{process.pid} {' '.join(process.cmdline())}" for process in self.place.processes()]
        self.end()
        result = Result(-1, self.stdout, self.stderr, time.monotonic() - self.began)
        raise AssertionError(f"{why}: {' '.join(self.command)}\n{result}\nprocesses: {left}")


Act = Callable[[Running], object]


@dataclass(frozen=True)
class Fault:
    """One line of the matrix.

    Parameters
    ----------
    claim
        What a user may rely on.
    args
        The workload's arguments.
    rc
        The exit code, or several that may be.
    says
        Patterns; each is found in exactly one line on stderr.
    prints
        Lines that are on stdout.
    never
        Text that is neither on stdout nor on stderr.
    srun
        Options of srun.
    env
        Environment of the run.
    act
        What is done to the run from outside, once it has said "strike".
    within
        Seconds from the strike to the end.
    tracebacks
        Tracebacks of the user's code that are printed.
    client_rc
        The exit code of rank 1, where srun's says less.
    prefix
        Command that runs the script on each rank.
    through_dask
        The user's own traceback goes through Dask, as that of `future.result()` does.
    ready
        What the script prints when it is time to act.
    scratch_stays
        Slurm itself kills the whole step, the janitors of the scratch directories included.
    early
        The fault is at the start: there is no strike to wait for, the time is from the start.
    """

    claim: str
    args: str
    rc: int | tuple[int, ...]
    says: Sequence[str] = ()
    prints: Sequence[str] = ()
    never: Sequence[str] = ()
    srun: str = "-n4"
    env: Mapping[str, str] = field(default_factory=dict)
    act: Act | None = None
    within: float = 5
    tracebacks: int = 0
    client_rc: int | None = None
    ready: str = "strike"
    scratch_stays: bool = False
    early: bool = False
    prefix: Sequence[str] = ()
    through_dask: bool = False


# Notes the exit code of each rank, which srun does not tell.
NOTE_RC = ("sh", "-c", 'trap : TERM INT; "$@"; code=$?; echo $code > ../rc-$SLURM_PROCID; exit $code', "sh")


def run_fault(place: Place, fault: Fault) -> Result:
    """Run a line of the matrix and check all that it claims."""
    prefix = [*fault.prefix, *(NOTE_RC if fault.client_rc is not None else ())]
    command = ["srun", *fault.srun.split(), *prefix, sys.executable, str(FAULTS), *fault.args.split()]
    running = Running(place, *command, env=fault.env)
    try:
        if not fault.early:
            running.wait_for(fault.ready)
            assert fault.ready in running.stdout, f"ended before the strike:\n{running.stdout}{running.stderr}"
        if fault.act is not None:
            fault.act(running)
        result = running.finish(fault.within)
        check(fault, result)
        if fault.client_rc is not None:
            assert (place.base / "rc-1").read_text().strip() == str(fault.client_rc), str(result)
    finally:
        running.end()
    running.assert_nothing_left(result, but_scratch=fault.scratch_stays)
    return result


def check(fault: Fault, result: Result) -> None:
    """Exit code, messages, silence."""
    codes = (fault.rc,) if isinstance(fault.rc, int) else fault.rc
    assert result.rc in codes, f"{fault.claim}\nexit code {result.rc}, not {fault.rc}: {result}"
    for pattern in fault.says:
        found = [line for line in result.errors if re.search(pattern, line)]
        assert len(found) == 1, f"{fault.claim}\n{pattern!r} is said {len(found)} times: {result}"
    for line in fault.prints:
        assert line in result.stdout.splitlines(), f"{fault.claim}\n{line!r} is not printed: {result}"
    for text in fault.never:
        assert text not in result.stdout + result.stderr, f"{fault.claim}\n{text!r} is printed: {result}"
    check_tidy(result, fault.tracebacks, through_dask=fault.through_dask)


INSIDES = ("/batchlet/", "/distributed/", "/asyncio/", "/tornado/", "Exception ignored", "never retrieved")


def check_tidy(result: Result, tracebacks: int = 0, *, through_dask: bool = False) -> None:
    """What is printed is short, and no traceback is of the insides of Batchlet or Dask."""
    assert result.stderr.count("Traceback (most recent call last)") == tracebacks, str(result)
    for part in INSIDES:
        assert part not in result.stderr or (through_dask and part == "/distributed/"), f"{part!r} is printed: {result}"
    ours = [line for line in result.errors if not line.startswith((" ", "Traceback", "slurmstepd-", "Killed"))]
    assert len(ours) <= MOST_LINES, f"{len(ours)} lines: {result}"
    for message in (line for line in ours if line.startswith("batchlet: ")):
        assert ours.count(message) == 1, f"said {ours.count(message)} times: {message}\n{result}"


def slurmd_of(node: str) -> psutil.Process:
    """The daemon of a node of the test cluster."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "slurmd" and f"-N {node}" in " ".join(process.cmdline()):
                return process
    raise AssertionError(f"no slurmd of {node}")


def in_node(node: str, *command: str) -> str:
    """Run a command in the namespaces of a node of the test cluster, as its administrator."""
    enter = ["nsenter", f"--target={slurmd_of(node).pid}", "--net", "--uts", "--mount"]
    return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=20, check=True).stdout


@contextlib.contextmanager
def link_cut(node: str) -> Iterator[None]:
    """Pull the cable of a node."""
    in_node(node, "ip", "link", "set", "eth0", "down")
    try:
        yield
    finally:
        in_node(node, "ip", "link", "set", "eth0", "up")


__all__ = [
    "FAULTS", "MARK", "PREFIX", "Fault", "Running", "check", "check_tidy", "in_node", "link_cut", "options", "run_fault",
]  # fmt: skip
