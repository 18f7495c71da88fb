"""What Slurm's controller says of the job around this process besides its end, and having it requeued; see scontrol(1)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from ..launch_variables import SLURM_JOB_ID, SLURM_RESTART_COUNT, whole_number
from .allocation_end import ANSWER_TIMEOUT, answer_of, commands_environ, job_line, questions

__all__ = ["JobState", "ask", "attempt", "read", "requeue"]

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
    """

    state: str
    batch: bool
    requeue: bool
    preempted: bool


def attempt(environ: Mapping[str, str]) -> int:
    """Say how many times the job around this process has been started, this one included; 1 without a job."""
    return 1 + (whole_number(environ.get(SLURM_RESTART_COUNT)) or 0)


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
    fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
    if "JobState" not in fields:
        return None
    return JobState(
        state=fields["JobState"],
        batch=fields.get("BatchFlag", "0") != "0",
        requeue=fields.get("Requeue", "0") != "0",
        preempted=fields.get("PreemptTime", "") not in _NEVER,
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
    command = ["scontrol", "requeue", environ.get(SLURM_JOB_ID, "").strip()]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=commands_environ(environ),
            timeout=ANSWER_TIMEOUT,
            check=False,
            # The signal by which Slurm ends this step must not end the question.
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"`{' '.join(command)}` failed: {error}"
    if done.returncode == 0:
        return ""
    said = " ".join((done.stderr or done.stdout).split()).rstrip(".")
    return f"`{' '.join(command)}` failed: {said or f'exit code {done.returncode}'}"
