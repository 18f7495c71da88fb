"""Slurm: squeue, which knows ended jobs for a while, then sacct where there is accounting; ``sbatch --test-only``; arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ...launch_variables import SLURM_JOB_ID
from .base import Array, BatchSystem, Seen, Spread, State, in_order, moment

__all__ = ["Slurm"]

# squeue(1), section "JOB STATE CODES"; sacct(1) has the same words.
_STATES: dict[str, State] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending",
    "RESV_DEL_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "POWER_UP_NODE": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "ended",
    "BOOT_FAIL": "failed",
    "CANCELLED": "failed",
    "DEADLINE": "failed",
    "FAILED": "failed",
    "LAUNCH_FAILED": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "PREEMPTED": "failed",
    "RECONFIG_FAIL": "failed",
    "REVOKED": "failed",
    "TIMEOUT": "failed",
}
_QUEUE = ("JobArrayID", "State", "Reason", "exit_code", "EndTime", "BatchHost")
_ACCOUNTS = ("JobID", "State", "Reason", "ExitCode", "End", "NodeList")
# What slurmstepd ends with where it cannot open a job's output file, or enter its directory: nothing of the job has run.
_NO_OUTPUT = -53
# With something behind it a field is as wide as it must be.
_SEPARATOR = "|"
_MIB, _GIB = 1 << 20, 1 << 30
# What --test-only says where a node is down or drained, or reserved, too; sbatch takes the job then, and it pends.
_PERHAPS_LATER = (
    "Requested node configuration is not available",
    "Requested partition configuration not available now",
    "Required node not available",
    "Requested nodes are busy",
    "Nodes required for job are DOWN, DRAINED or reserved",
    "Unable to contact slurm controller",
    "Socket timed out",
)


class Slurm(BatchSystem):
    """Slurm, as of 20.11; tried with 22.05."""

    name: ClassVar[str] = "slurm"
    title: ClassVar[str] = "Slurm"
    job_class: ClassVar[str] = "dask_jobqueue.slurm.SLURMJob"
    # MaxArraySize is 1001 by default, and the numbers begin at 0.
    most_in_array: ClassVar[int] = 1000
    # For MinJobAge, 300 s by default.
    settled_by_query: ClassVar[bool] = True

    # sbatch(1), section "OUTPUT ENVIRONMENT VARIABLES". All other SBATCH_* the user has set, as defaults for sbatch.
    variables: ClassVar[tuple[str, ...]] = (
        "SLURM_", "SLURMD_", "SBATCH_CPU_BIND", "SBATCH_CPU_BIND_", "SBATCH_MEM_BIND", "SBATCH_MEM_BIND_",
    )  # fmt: skip

    kept: ClassVar[frozenset[str]] = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"))
    mark: ClassVar[str] = SLURM_JOB_ID
    added: ClassVar[Mapping[str, str]] = {"SLURM_TIME_FORMAT": "standard"}

    def misleads(self, name: str) -> bool:
        """Filters and formats of squeue and sacct."""
        return name.startswith(("SQUEUE_", "SACCT_"))

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        fields = ",".join(f"{field}:{_SEPARATOR}" for field in _QUEUE)
        return ["squeue", "--noheader", "--array", "--states=all", f"--Format={fields}", f"--jobs={_whole(job_ids)}"]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        return {
            job_id: _seen(word, reason, _wait_status(code), end, node)
            for job_id, word, reason, code, end, node in _rows(text, len(_QUEUE))
        }

    def none_left(self, code: int, errors: str) -> bool:
        """Squeue fails where it knows none of several jobs, or not the only one."""
        return code != 0 and "Invalid job id specified" in errors

    def finished(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class; fails where there is no accounting."""
        return [
            "sacct", "--noheader", "--parsable2", "--allocations", "--array", f"--format={','.join(_ACCOUNTS)}",
            f"--jobs={_whole(job_ids)}",
        ]  # fmt: skip

    def parse_finished(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        return {
            job_id: _seen(word, reason, _exit_and_signal(code), end, node)
            for job_id, word, reason, code, end, node in _rows(text, len(_ACCOUNTS))
        }

    def check(self, script: str) -> list[str]:
        """See the base class."""
        return ["sbatch", "--test-only", script]

    def refused(self, code: int, output: str) -> bool:
        """What may be otherwise in an hour, with other nodes up or idle, sbatch itself may well take."""
        return code != 0 and not any(words in output for words in _PERHAPS_LATER)

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class; ids that Slurm does not know any more do no harm."""
        return ["scancel", "--quiet", *_in_ranges(job_ids)]

    def exact(self, memory: int) -> dict[str, str]:
        """See the base class: from 1 GiB on, dask-jobqueue asks for the next whole number of GiB."""
        return {"job_mem": f"{math.ceil(memory / _MIB)}M"} if memory > _GIB and memory % _GIB else {}

    def gpus(self, count: int) -> tuple[str, ...]:
        """See the base class."""
        return (f"--gres=gpu:{count}",)

    def array(self, count: int) -> Array:
        """See the base class."""
        return Array((f"--array=0-{count - 1}",), "SLURM_ARRAY_TASK_ID", range(count))

    def array_logs(self, directory: str, name: str) -> tuple[str, ...]:
        """See the base class; dask-jobqueue's %J is another number in each job of an array."""
        return f"-e {directory}/{name}-%A_%a.err", f"-o {directory}/{name}-%A_%a.out"

    def spread(self, nodes: int, cores: int) -> Spread:  # noqa: ARG002
        """See the base class."""
        return Spread(
            directives=(f"-N {nodes}", "--ntasks-per-node=1"),
            skip=("#SBATCH -n 1",),
            # What the job has of a node, be it less than it asked for, is all for the one process there, which divides it.
            # It has the environment of the job's script, also where the job's own was not to be the client's (--export=NONE).
            command=(
                "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none", "--mpi=none",
                "--export=ALL", "--kill-on-bad-exit=0", "--wait=0", "--quiet",
            ),
        )  # fmt: skip


def _whole(job_ids: Sequence[str]) -> str:
    """Name jobs, of arrays the whole: a thousand jobs may be one word."""
    return ",".join(in_order(job_id.partition("_")[0] for job_id in job_ids))


def _in_ranges(job_ids: Sequence[str]) -> list[str]:
    """Name jobs, those of an array together (``42_[0-2,5]``): scancel asks the controller once for each word."""
    arrays: dict[str, list[int]] = {}
    words = []
    for job_id in in_order(job_ids):
        array, _, index = job_id.partition("_")
        if index.isdecimal():
            arrays.setdefault(array, []).append(int(index))
        else:
            words.append(job_id)
    return [*words, *(f"{array}_{_ranges(sorted(indices))}" for array, indices in arrays.items())]


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return f"[{','.join('-'.join(map(str, run)) for run in runs)}]"


def _rows(text: str, columns: int) -> list[list[str]]:
    """Give the lines that have so many fields; what follows the last separator is not looked at."""
    rows = [[field.strip() for field in line.split(_SEPARATOR)] for line in text.splitlines()]
    return [row[:columns] for row in rows if len(row) >= columns and re.match(r"\d", row[0])]


def _seen(word: str, reason: str, code: int | None, end: str, node: str) -> Seen:
    # sacct says who: "CANCELLED by 1000"; some versions append a "+" to a word that is cut off.
    state = _STATES.get(word.partition(" ")[0].rstrip("+"), "unknown")
    over = state in ("ended", "failed")
    if state == "failed" and code == _NO_OUTPUT:
        reason = "its output file cannot be opened (is there no such directory, or no room?)"
    return Seen(
        state=state,
        word=word,
        reason="" if reason in ("None", "N/A", "(null)") else reason,
        exit_code=code if over else None,
        node="" if node in ("n/a", "N/A", "(null)", "None assigned") else node,
        # Of a job that pends it is a guess, years ahead at times.
        end=None if state == "pending" else moment(end, "%Y-%m-%dT%H:%M:%S"),
    )


def _wait_status(text: str) -> int | None:
    """Read what squeue prints: the status of wait(2), as a number."""
    if not text.isdecimal():
        return None
    status = int(text)
    return _code(status >> 8, status & 127)


def _exit_and_signal(text: str) -> int | None:
    """Read what sacct prints: ``3:0`` or ``0:9``."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        return None
    return _code(int(match[1]), int(match[2]))


def _code(code: int, number: int) -> int | None:
    # Slurm has "signal 125" for a job that was out of memory.
    return code if not number else -number if number <= 64 else None
