"""A job that follows one that Slurm must not requeue: the same batch script with the same options, once that job has ended.

Slurm keeps the script of a job (``scontrol write batch_script``), and not the options of the command line with which it was
submitted: those that ``scontrol show job`` shows are given anew. How many attempts there were stands in the script itself, for
a variable of the environment might not get there (``--export=NONE``), or get to jobs that have nothing to do with this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..launch_variables import SLURM_JOB_ID
from .allocation_end import commands_environ
from .slurm_job import BEFORE, command

__all__ = ["FIRST_JOB", "options", "submit", "with_attempt"]

#: The number of the job that was submitted first, for files whose name has one.
FIRST_JOB = "BATCHLET_FIRST_JOB"
# The launcher's variables say what the predecessor was; these say where its Slurm is.
_LAUNCHER = ("SLURM", "PMI", "SRUN_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SUBMIT_DIR")
_NONE = ("", "(null)", "N/A", "None", "Unknown", "UNLIMITED", "*", "0")
# What `scontrol show job` shows, and the option of sbatch by which it is asked for.
_OPTIONS = {
    "JobName": "--job-name",
    "Account": "--account",
    "QOS": "--qos",
    "Partition": "--partition",
    "Reservation": "--reservation",
    "TimeLimit": "--time",
    "NumNodes": "--nodes",
    "NumTasks": "--ntasks",
    "MinMemoryNode": "--mem",
    "MinMemoryCPU": "--mem-per-cpu",
    "MinTmpDiskNode": "--tmp",
    "Features": "--constraint",
    "ReqNodeList": "--nodelist",
    "ExcNodeList": "--exclude",
    "Licenses": "--licenses",
    "WCKey": "--wckey",
    "MailUser": "--mail-user",
    "MailType": "--mail-type",
    "Nice": "--nice",
    "StdIn": "--input",
    "StdOut": "--output",
    "StdErr": "--error",
    "WorkDir": "--chdir",
}
_SHARED = {"NO": "--exclusive", "YES": "--oversubscribe", "USER": "--exclusive=user"}
_SHELL = re.compile(r"#!\s*(?:\S*/env\s+(?:-S\s+)?)?(?:\S*/)?(?:ba|da|k|z)?sh(?:\s|$)")


def options(facts: Mapping[str, str], job: str) -> list[str]:
    """Give the options of sbatch for a job like another one.

    Parameters
    ----------
    facts : mapping of str to str
        What ``scontrol show job`` shows of that.
    job : str
        Its number.
    """
    given = {option: facts[field] for field, option in _OPTIONS.items() if facts.get(field, "") not in _NONE}
    for option in ("--output", "--error"):
        if option in given:
            # A file that is called after the job is another one; one that is not gets what the successor says as well.
            given[option] = re.sub(rf"(?<!\d){re.escape(job)}(?!\d)", "%j", given[option])
    if given.get("--error") == given.get("--output"):
        given.pop("--error", None)
    found = [f"{option}={value}" for option, value in given.items()]
    each = facts.get("CPUs/Task", "1")
    found += [f"--cpus-per-task={each}"] if each not in (*_NONE, "1") else []
    per_node = facts.get("NtasksPerN:B:S:C", "0").partition(":")[0]
    found += [f"--ntasks-per-node={per_node}"] if per_node not in _NONE else []
    found += [_SHARED[facts["OverSubscribe"]]] if facts.get("OverSubscribe") in _SHARED else []
    found += [
        f"{option}={found_gres[1]}"
        for field, option, pattern in (
            ("TresPerNode", "--gres", r"gres[:/](.+)"),
            ("TresPerJob", "--gpus", r"gres[:/]gpu:([^,]+)"),
            ("TresPerTask", "--gpus-per-task", r"gres[:/]gpu:([^,]+)"),
        )
        if (found_gres := re.search(pattern, facts.get(field, "")))
    ]
    return [*found, "--no-requeue", "--open-mode=append", f"--dependency=afterany:{job}"]


def with_attempt(script: str, attempts: int, first: str) -> str | None:
    """Have a batch script say how many attempts there were before it; `None` if it is not one of a shell.

    Parameters
    ----------
    script : str
        Its text.
    attempts : int
        How many.
    first : str
        The number of the job that was submitted first.
    """
    if not _SHELL.match(script):
        return None
    ours = (f"export {BEFORE}=", f"export {FIRST_JOB}=")
    lines = [line for line in script.splitlines() if not line.startswith(ours)]
    # sbatch reads its options up to the first line that is neither a comment nor empty.
    place = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    lines[place:place] = [f"{ours[0]}{attempts}/$SLURM_JOB_ID", f"{ours[1]}{first}"]
    return "\n".join(lines) + "\n"


def submit(environ: Mapping[str, str], facts: Mapping[str, str], attempts: int) -> tuple[str, str]:
    """Submit a job that begins when the one around this process has ended.

    Parameters
    ----------
    environ : mapping of str to str
        The process's environment.
    facts : mapping of str to str
        What ``scontrol show job`` shows of the job.
    attempts : int
        How many there were, this one included.

    Returns
    -------
    job : str
        The number of the new one; empty if there is none.
    problem : str
        What prevents it.
    """
    job = environ.get(SLURM_JOB_ID, "").strip()
    if environ.get("SLURM_ARRAY_JOB_ID") or environ.get("SLURM_HET_SIZE"):
        return "", f"job {job} must not be requeued, and is part of a job array or of a heterogeneous job"
    script, problem = command(["scontrol", "write", "batch_script", job, "-"], commands_environ(environ))
    if problem:
        return "", problem
    new = with_attempt(script, attempts, environ.get(FIRST_JOB, "").strip() or job)
    if new is None:
        return (
            "",
            f"job {job} must not be requeued, and its batch script is no shell's; submit it with sbatch --requeue",
        )
    # The words behind the script on the command line of sbatch.
    words = facts.get("Command", "").split()[1:]
    own = {name: value for name, value in environ.items() if name in _KEPT or not name.startswith(_LAUNCHER)}
    # What is submitted keeps its user's time zone and language, and `SLURM_SUBMIT_DIR`.
    said, problem = command(["sbatch", "--parsable", *options(facts, job), "/dev/stdin", *words], own, new, "sbatch")
    return said.strip().partition(";")[0], problem
