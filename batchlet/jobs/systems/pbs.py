"""PBS: ``qstat -f``, whose form PBS Pro (OpenPBS) and Torque share; the history of PBS Pro."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from .base import BatchSystem, Seen, State, in_order, moment, number, seconds, signalled

__all__ = ["Pbs"]

# pbs_job_attributes(7B), job_state. C is Torque's; B, F, M, U and X are those of PBS Pro (X: a job of an array that has ended).
_STATES: dict[str, State] = {
    "Q": "pending", "H": "pending", "W": "pending", "T": "pending", "M": "pending",
    "R": "running", "E": "running", "S": "running", "U": "running", "B": "running",
    "C": "ended", "F": "ended", "X": "ended",
}  # fmt: skip
# PBS Pro and Torque: what the server, rather than the job's script, makes of an exit status; others are a signal.
_CODES = {
    -1: "the job could not be started", -2: "the job could not be started", -3: "the job could not be started",
    -10: "over its memory or another limit", -11: "over its time limit", -23: "over its memory limit",
    -24: "over its memory limit", -25: "over its CPU time limit", -29: "over its time limit",
}  # fmt: skip
_MOMENT = "%a %b %d %H:%M:%S %Y"


class Pbs(BatchSystem):
    """PBS Pro and OpenPBS; Torque where the two do the same.

    It has arrays (``-J``), which Batchlet has not been tried with.
    """

    name: ClassVar[str] = "pbs"
    title: ClassVar[str] = "PBS"
    job_class: ClassVar[str] = "dask_jobqueue.pbs.PBSJob"
    # qsub(1B), section "Environment Variables". The rest of PBS_* says where the server is, or is the user's.
    variables: ClassVar[tuple[str, ...]] = (
        "PBS_O_", "PBS_JOBID", "PBS_JOBNAME", "PBS_JOBDIR", "PBS_JOBCOOKIE", "PBS_ARRAY_", "PBS_ARRAYID", "PBS_NODEFILE",
        "PBS_NODENUM", "PBS_NUM_", "PBS_TASKNUM", "PBS_MOMPORT", "PBS_QUEUE", "PBS_WALLTIME", "PBS_ENVIRONMENT",
        "PBS_GPUFILE", "PBS_MICFILE", "PBS_NP", "PBS_PPN", "PBS_VNODENUM", "PBS_VERSION", "PBS_TMPDIR", "NCPUS",
    )  # fmt: skip
    mark: ClassVar[str] = "PBS_JOBID"

    def misleads(self, name: str) -> bool:
        """Torque's qstat leaves jobs out by these."""
        return name in ("PBS_QSTAT_NO_COMPLETE", "PBS_QSTAT_EXECONLY")

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["qstat", "-f", *in_order(job_ids)]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        seen = {}
        # A value goes on in the next line behind a tab.
        for block in re.split(r"(?m)^Job Id: *", text.replace("\n\t", ""))[1:]:
            job_id, _, rest = block.partition("\n")
            values = dict(re.findall(r"(?m)^ +([\w.]+) = (.*?)\s*$", rest))
            # The submit command has printed 123.server or 123[].server, of which dask-jobqueue keeps the number.
            match = re.match(r"\d+(\[\d+\])?", job_id)
            if match is not None and "job_state" in values:
                seen[match[0]] = _seen(values)
        return seen

    def none_left(self, code: int, errors: str) -> bool:
        """Qstat fails where one of the jobs has ended, and tells of the others all the same."""
        lines = [line for line in errors.splitlines() if line.strip()]
        ended = ("Unknown Job Id", "has finished", "Job has finished", "Unknown Job")
        return code != 0 and bool(lines) and all(any(words in line for words in ended) for line in lines)

    def finished(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class. Torque still has ended jobs in `query`; its answer to this makes no sense, and so no harm."""
        return ["qstat", "-x", "-f", *in_order(job_ids)]

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["qdel", *in_order(job_ids)]


def _seen(values: dict[str, str]) -> Seen:
    word = values["job_state"]
    state = _STATES.get(word, "unknown")
    code = number(values.get("Exit_status", values.get("exit_status")))
    reason = values.get("comment", "")
    if state == "ended" and code != 0:
        # Without an exit status: deleted before it has started.
        state = "failed"
        reason = _CODES.get(code, reason) if code is not None else reason or "deleted"
    # PBS Pro counts signals from 256 on, Torque from 256 too; a shell in between has them from 128 on.
    exit_code = 256 - code if code is not None and code > 256 else signalled(code)
    if code is not None and code < 0:
        exit_code = None
    return Seen(
        state=state,
        word=word,
        reason=reason,
        exit_code=exit_code if state in ("ended", "failed") else None,
        node=re.split(r"[/+.:]", values.get("exec_host", ""), maxsplit=1)[0],
        end=_end(state, values),
    )


def _end(state: State, values: dict[str, str]) -> float | None:
    if state in ("ended", "failed"):
        return moment(values.get("obittime", values.get("comp_time", values.get("mtime", ""))), _MOMENT)
    start = moment(values.get("stime", values.get("start_time", "")), _MOMENT)
    limit = seconds(values.get("Resource_List.walltime", ""))
    return None if state != "running" or start is None or limit is None else start + limit
