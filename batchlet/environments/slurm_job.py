"""What Slurm's controller says of the job around this process besides its end, and having it requeued; see scontrol(1)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..launch_variables import SLURM_JOB_ID, SLURM_RESTART_COUNT, whole_number
from .allocation_end import ANSWER_TIMEOUT, answer_of, commands_environ, job_line, questions

__all__ = ["BEFORE", "JobState", "ask", "attempt", "command", "read", "requeue"]

#: Of a job that was submitted to follow another one: how many attempts there were before / the job that this is told.
BEFORE = "BATCHLET_ATTEMPTS_BEFORE"

# Until a job has one, `PreemptTime` is one of these.
_NEVER = ("None", "Unknown", "N/A", "")


@dataclass(frozen=True)
class JobState:
    """A job as the controller knows it.

    Parameters
    ----------
    state : str
        Such as "RUNNING"; "COMPLETING" as soon as it is being ended, by whatever.
    batch : bool
        Whether ``sbatch`` has submitted it. Only such a job has a script that can be run again.
    requeue : bool
        Whether it may be requeued (``sbatch --requeue``, ``JobRequeue`` in slurm.conf).
    preempted : bool
        Whether another job has been given its place.
    facts : mapping of str to str
        All that ``scontrol show job`` shows, by its names.
    """

    state: str
    batch: bool
    requeue: bool
    preempted: bool
    facts: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def attempt(environ: Mapping[str, str]) -> int:
    """Say how many times the job around this process has been started, this one included; 1 without a job.

    Those that it follows, since they could not be requeued, count as well.
    """
    count, _, job = environ.get(BEFORE, "").partition("/")
    # A job that was submitted from within such a job has inherited what is not its own.
    before = whole_number(count) if job and job == environ.get(SLURM_JOB_ID, "").strip() else None
    return 1 + (before or 0) + (whole_number(environ.get(SLURM_RESTART_COUNT)) or 0)


def read(environ: Mapping[str, str], answer: str) -> JobState | None:
    """Read what ``scontrol show job`` has printed; `None` if this job is not in it.

    Parameters
    ----------
    environ : mapping of str to str
        The process's environment.
    answer : str
        What was printed for `batchlet.environments.allocation_end.questions`.
    """
    line = job_line(answer, environ.get(SLURM_JOB_ID, "").strip())
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([\w/:]+)=(.*?)(?=\s+[\w/:]+=|\s*$)", line):
        fields.setdefault(name, value)
    if "JobState" not in fields:
        return None
    return JobState(
        state=fields["JobState"],
        batch=fields.get("BatchFlag", "0") != "0",
        requeue=fields.get("Requeue", "0") != "0",
        preempted=fields.get("PreemptTime", "") not in _NEVER,
        facts=fields,
    )


def ask(environ: Mapping[str, str]) -> JobState | None:
    """Ask the controller, for at most `ANSWER_TIMEOUT` seconds."""
    return read(environ, answer_of(questions(environ), environ))


def requeue(environ: Mapping[str, str]) -> str:
    """Have the job put back into the queue, from where it starts again under its number; the job's processes end.

    Returns
    -------
    str
        What prevents it; nothing if it has been done.
    """
    return command(["scontrol", "requeue", environ.get(SLURM_JOB_ID, "").strip()], commands_environ(environ))[1]


def command(words: Sequence[str], environ: Mapping[str, str], given: str = "", shown: str = "") -> tuple[str, str]:
    """Run a command of Slurm's, for at most `ANSWER_TIMEOUT` seconds, in the directory from which the job was submitted.

    Parameters
    ----------
    words : sequence of str
        The command line.
    environ : mapping of str to str
        Its environment.
    given : str
        Its input.
    shown : str
        What to call it in a message, if not by all its words.

    Returns
    -------
    said : str
        What it has printed.
    problem : str
        What was wrong; nothing if nothing was.
    """
    shown, place = shown or " ".join(words), environ.get("SLURM_SUBMIT_DIR", "")
    try:
        done = subprocess.run(
            words,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            cwd=place if os.path.isdir(place) else None,  # noqa: PTH112
            timeout=ANSWER_TIMEOUT,
            check=False,
            # The signal by which Slurm ends this step must not end the question.
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"`{shown}` failed: {error}"
    if done.returncode == 0:
        return done.stdout, ""
    said = " ".join((done.stderr or done.stdout).split()).rstrip(".")
    return "", f"`{shown}` failed: {said or f'exit code {done.returncode}'}"
