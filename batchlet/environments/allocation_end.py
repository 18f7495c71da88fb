"""When the allocation ends: the batch system's time limit, from the job's variables and from what the system answers.

`questions` and `allocation_end` do and change nothing; `find_allocation_end` runs the commands. For Slurm see scontrol(1) and
sbatch(1) ("OUTPUT ENVIRONMENT VARIABLES", from 23.02 on), for gridengine qstat(1) and queue_conf(5), for PBS Pro and Torque
qstat(1B), for LSF bjobs(1), for OAR oarsub(1). HTCondor has no limit that a job could ask for.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..launch_variables import SLURM_JOB_END_TIME, SLURM_JOB_ID, SLURM_JOB_START_TIME, whole_number

__all__ = [
    "ANSWER_TIMEOUT",
    "AllocationEnd",
    "allocation_end",
    "answer_of",
    "commands_environ",
    "find_allocation_end",
    "job_line",
    "job_started",
    "questions",
]

#: Seconds for all of a batch system's answers together; without them the variables decide, or nothing is known.
ANSWER_TIMEOUT = 10.0
# Slurm gives a job without a limit this one: 365 days, in SLURM_JOB_END_TIME, and where the backfill scheduler has started it
# (seen with 22.05) in the controller's answer as well.
_SLURM_UNLIMITED = 365 * 24 * 3600
# Seconds. Slurm tells whole seconds, and a moment passes on the way: less than this is no difference between clocks.
_CLOCKS_AGREE = 2.0

Command = tuple[str, ...]


@dataclass(frozen=True)
class AllocationEnd:
    """When the batch system ends the job.

    Parameters
    ----------
    at : float
        Seconds since the epoch, by the clock of this host.
    source : str
        The variable or command that said so.
    """

    at: float
    source: str


def questions(environ: Mapping[str, str]) -> tuple[Command, ...]:
    """Give the commands whose output `allocation_end` needs.

    Parameters
    ----------
    environ : mapping of str to str
        The process's environment.

    Returns
    -------
    tuple of tuple of str
        Command lines, none where the variables tell all there is. `commands_environ` makes the environment for them.
    """
    system = _system_of(environ)
    return () if system is None else system.ask(environ)


def commands_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment in which `questions` are to be asked: times in UTC, and in the form that is read here."""
    path = [part for part in (environ.get("PATH"), environ.get("SGE_BINARY_PATH")) if part]
    return {**environ, "PATH": os.pathsep.join(path), "TZ": "UTC0", "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}


def allocation_end(environ: Mapping[str, str], answer: str = "", *, now: float, started: float) -> AllocationEnd | None:
    """Read when the job around this process ends.

    Parameters
    ----------
    environ : mapping of str to str
        The process's environment.
    answer : str
        What the commands of `questions` have printed; may be empty.
    now : float
        When they were asked, in seconds since the epoch.
    started : float
        When the job's first process on this host started, in seconds since the epoch: where the system tells how long the job
        may take, and not when it began.

    Returns
    -------
    AllocationEnd or None
        `None` where there is no job, no limit, or nothing that says so.
    """
    system = _system_of(environ)
    return None if system is None else system.read(environ, answer, now, started)


def find_allocation_end(environ: Mapping[str, str]) -> AllocationEnd | None:
    """Ask the batch system, for at most `ANSWER_TIMEOUT` seconds, and read when the job ends; one process per run does so."""
    now = time.time()
    return allocation_end(environ, answer_of(questions(environ), environ), now=now, started=job_started(environ, now))


# Slurm


def _ask_slurm(environ: Mapping[str, str]) -> tuple[Command, ...]:
    # --all: of a partition that is hidden, too. The configuration begins with the time by the controller's clock.
    job = environ[SLURM_JOB_ID].strip()
    if not job.isdigit():
        return ()
    return ("scontrol", "--all", "--detail", "--oneliner", "show", "job", job), ("scontrol", "show", "config")


def _read_slurm(environ: Mapping[str, str], answer: str, now: float, _started: float) -> AllocationEnd | None:
    """The controller's word first: the limit may have been changed, and its clock is the one that counts."""
    job = environ[SLURM_JOB_ID].strip()
    line = job_line(answer, job)
    limit, end = _field(line, "TimeLimit"), _utc(_field(line, "EndTime"))
    days = re.match(r"(\d+)-", limit)
    if limit == "UNLIMITED" or (days and int(days[1]) * 24 * 3600 >= _SLURM_UNLIMITED):
        return None
    if end is not None and limit:
        said = re.search(r"^Configuration data as of (\S+)$", answer, re.MULTILINE)
        clock = _utc(said[1]) if said else None
        ahead = clock - now if clock is not None else 0.0
        return AllocationEnd(end - (ahead if abs(ahead) > _CLOCKS_AGREE else 0.0), f"scontrol show job {job}")
    start, until = (whole_number(environ.get(name)) for name in (SLURM_JOB_START_TIME, SLURM_JOB_END_TIME))
    if not until or (start is not None and until - start >= _SLURM_UNLIMITED):
        return None
    return AllocationEnd(float(until), SLURM_JOB_END_TIME)


def job_line(answer: str, job: str) -> str:
    """Give the line about one job in what ``scontrol --oneliner show job`` has printed; nothing if there is none.

    The number of a job array is also that of one of its jobs: scontrol then shows all of them.
    """
    return next((line for line in answer.splitlines() if re.match(rf"\s*JobId={re.escape(job)}\b", line)), "")


# Gridengine


def _ask_gridengine(environ: Mapping[str, str]) -> tuple[Command, ...]:
    job, queue = environ.get("JOB_ID", ""), environ.get("QUEUE", "")
    commands: list[Command] = [("qstat", "-j", job)] if job.isdigit() else []
    # A queue has limits of its own, for jobs that ask for none as well.
    if re.fullmatch(r"[\w.][\w.-]*", queue):
        commands.append(("qconf", "-sq", queue))
    return tuple(commands)


def _read_gridengine(_environ: Mapping[str, str], answer: str, _now: float, started: float) -> AllocationEnd | None:
    """The least of h_rt and s_rt, each of the job's (``-l``) and of its queue's; after s_rt comes SIGUSR1, which ends too."""
    hard = re.search(r"^hard[ _]resource_list:(.*)$", answer, re.MULTILINE)
    found = []
    for name in ("h_rt", "s_rt"):
        for text, source in (
            (re.search(rf"\b{name}=([\d:]+)", hard[1]) if hard else None, f"{name} (qstat -j)"),
            (re.search(rf"^{name}\s+([\d:]+)", answer, re.MULTILINE), f"{name} (qconf -sq)"),
        ):
            limit = _duration(text[1]) if text else None
            if limit:
                found.append(AllocationEnd(started + limit, source))
    return min(found, key=lambda end: end.at, default=None)


# PBS Pro (OpenPBS) and Torque


def _ask_pbs(environ: Mapping[str, str]) -> tuple[Command, ...]:
    job = environ["PBS_JOBID"].strip()
    return (("qstat", "-f", job),) if re.fullmatch(r"\w[\w.\[\]-]*", job) else ()


def _read_pbs(environ: Mapping[str, str], answer: str, _now: float, started: float) -> AllocationEnd | None:
    """Limit and start as the server knows them; Torque's ``PBS_WALLTIME`` and the job's first process without its answer."""
    text = re.sub(r"\n\t", "", answer)
    limit = _duration(_line(text, r"Resource_List\.walltime"))
    if limit:
        begun = _ctime(_line(text, "stime") or _line(text, "start_time"))
        return AllocationEnd((started if begun is None else begun) + limit, "walltime (qstat -f)")
    limit = _duration(environ.get("PBS_WALLTIME", ""))
    return AllocationEnd(started + limit, "PBS_WALLTIME") if limit else None


# LSF


def _ask_lsf(environ: Mapping[str, str]) -> tuple[Command, ...]:
    job, index = environ["LSB_JOBID"].strip(), environ.get("LSB_JOBINDEX", "0").strip()
    if not job.isdigit():
        return ()
    one = f"{job}[{index}]" if index.isdigit() and index != "0" else job
    return (("bjobs", "-noheader", "-o", "time_left", one),)


def _read_lsf(_environ: Mapping[str, str], answer: str, now: float, _started: float) -> AllocationEnd | None:
    """Hours and minutes that are left; ``L`` marks a limit, ``E`` and ``X`` what is only an estimate."""
    left = re.search(r"^\s*(\d+):(\d\d) +L\s*$", answer, re.MULTILINE)
    return AllocationEnd(now + int(left[1]) * 3600 + int(left[2]) * 60, "bjobs -o time_left") if left else None


# OAR


def _read_oar(environ: Mapping[str, str], _answer: str, _now: float, started: float) -> AllocationEnd | None:
    limit = _duration(environ.get("OAR_JOB_WALLTIME_SECONDS", ""))
    return AllocationEnd(started + limit, "OAR_JOB_WALLTIME_SECONDS") if limit else None


@dataclass(frozen=True)
class _System:
    """How a batch system is asked, and how its answer is read."""

    ask: Callable[[Mapping[str, str]], tuple[Command, ...]]
    read: Callable[[Mapping[str, str], str, float, float], AllocationEnd | None]


# By the variable that is in each job of the system and nowhere else.
_SYSTEMS = {
    SLURM_JOB_ID: _System(_ask_slurm, _read_slurm),
    "SGE_TASK_ID": _System(_ask_gridengine, _read_gridengine),
    "PBS_JOBID": _System(_ask_pbs, _read_pbs),
    "LSB_JOBID": _System(_ask_lsf, _read_lsf),
    "OAR_JOB_ID": _System(lambda _: (), _read_oar),
}


def _system_of(environ: Mapping[str, str]) -> _System | None:
    return next((system for mark, system in _SYSTEMS.items() if environ.get(mark)), None)


# What is read


def _field(text: str, name: str) -> str:
    """Value of ``Name=value`` among words."""
    match = re.search(rf"(?:^|\s){name}=([^\s,]+)", text)
    return match[1] if match else ""


def _line(text: str, name: str) -> str:
    """Value of a line ``    name = value``."""
    match = re.search(rf"^\s+{name} = (.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _duration(text: str) -> int | None:
    """Seconds of ``3600``, ``60:00`` or ``1:00:00``; `None` if it is none of these, or nothing."""
    match = re.fullmatch(r"(?:(?:(\d{1,6}):)?(\d{1,6}):)?(\d{1,10})", text.strip())
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + int(match[3]) if match else None


def _utc(text: str) -> float | None:
    """Read ``2026-11-28T20:37:22``, which is UTC, as seconds since the epoch; `None` if it is none, such as "Unknown"."""
    return _epoch(text, "%Y-%m-%dT%H:%M:%S")


def _ctime(text: str) -> float | None:
    """Read ``Sat Nov 28 20:37:22 2026``, which is UTC."""
    return _epoch(text, "%a %b %d %H:%M:%S %Y")


def _epoch(text: str, form: str) -> float | None:
    try:
        return float(calendar.timegm(time.strptime(text, form)))
    except (ValueError, OverflowError):
        return None


# What is asked


def answer_of(commands: Sequence[Command], environ: Mapping[str, str]) -> str:
    """Run the commands of `questions`, one after the other; what fails or is late says nothing."""
    until, said = time.monotonic() + ANSWER_TIMEOUT, []
    for command in commands:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=commands_environ(environ),
                timeout=max(0.1, until - time.monotonic()),
                check=False,
                # Ctrl-C at the terminal is for the user's program alone.
                start_new_session=True,
            )
            said += [done.stdout] if done.returncode == 0 else []
    return "\n".join(said)


def job_started(environ: Mapping[str, str], now: float) -> float:
    """Say when the job began on this host, as far as can be seen: by gridengine's spool, else by the session's process."""
    with contextlib.suppress(OSError):
        spool = environ.get("SGE_JOB_SPOOL_DIR")
        if spool:
            return min(now, (Path(spool) / "environment").stat().st_mtime)
    for process in ("getsid", "getpid"):
        with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
            number = os.getsid(0) if process == "getsid" else os.getpid()
            ticks = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
            return now - max(0.0, age)
    return now
