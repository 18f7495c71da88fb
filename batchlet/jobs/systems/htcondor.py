"""HTCondor: condor_q and condor_history in JSON; a job on hold will not start by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .base import BatchSystem, Seen, State, in_order, listed, number

__all__ = ["HTCondor"]

# HTCondor manual, "Job ClassAd Attributes", JobStatus.
_STATES: dict[int, tuple[State, str]] = {
    1: ("pending", "Idle"),
    2: ("running", "Running"),
    3: ("failed", "Removed"),
    4: ("ended", "Completed"),
    5: ("failed", "Held"),
    6: ("running", "Transferring output"),
    7: ("running", "Suspended"),
}
_HELD = 5
_ATTRIBUTES = (
    "ClusterId", "ProcId", "JobStatus", "HoldReason", "RemoveReason", "ExitBySignal", "ExitCode", "ExitSignal",
    "RemoteHost", "LastRemoteHost", "EnteredCurrentStatus",
)  # fmt: skip


class HTCondor(BatchSystem):
    """HTCondor, as of 8.6.

    It has arrays (``Queue N``), but dask-jobqueue's template queues one job.
    """

    name: ClassVar[str] = "htcondor"
    title: ClassVar[str] = "HTCondor"
    job_class: ClassVar[str] = "dask_jobqueue.htcondor.HTCondorJob"

    # _CONDOR_* would be taken for configuration; these are what a job's starter sets.
    variables: ClassVar[tuple[str, ...]] = (
        "_CONDOR_SLOT", "_CONDOR_JOB_", "_CONDOR_SCRATCH_DIR", "_CONDOR_MACHINE_AD", "_CONDOR_CHIRP_", "_CONDOR_WRAPPER_",
        "_CONDOR_ANCESTOR_", "_CONDOR_BIN", "_CONDOR_CREDS",
    )  # fmt: skip
    mark: ClassVar[str] = "_CONDOR_SCRATCH_DIR"

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["condor_q", "-json", "-attributes", ",".join(_ATTRIBUTES), *in_order(job_ids)]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        seen = {}
        for job in listed(text):
            cluster, process = number(job.get("ClusterId")), number(job.get("ProcId"))
            if cluster is not None and process is not None:
                seen[f"{cluster}.{process}"] = _seen(job)
        return seen

    def finished(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class; reads no more of the history than it must."""
        wanted = in_order(job_ids)
        return ["condor_history", "-json", "-attributes", ",".join(_ATTRIBUTES), "-match", str(len(wanted)), *wanted]

    def check(self, script: str) -> list[str]:
        """See the base class."""
        return ["condor_submit", "-dry-run", "/dev/null", script]

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["condor_rm", *in_order(job_ids)]


def _seen(job: dict[str, Any]) -> Seen:
    status = number(job.get("JobStatus"))
    state, word = _STATES.get(status if status is not None else -1, ("unknown", str(job.get("JobStatus"))))
    code = -(number(job.get("ExitSignal")) or 0) if job.get("ExitBySignal") is True else number(job.get("ExitCode"))
    if state == "ended" and code != 0:
        state = "failed"
    over = state in ("ended", "failed")
    host = str(job.get("RemoteHost") or job.get("LastRemoteHost") or "")
    end = number(job.get("EnteredCurrentStatus"))
    return Seen(
        state=state,
        word=word,
        reason=str(job.get("HoldReason" if status == _HELD else "RemoveReason") or "") if over else "",
        exit_code=code if over and status != _HELD else None,
        # slot1_2@node.domain
        node=host.rpartition("@")[2],
        end=float(end) if over and end is not None else None,
        stuck=status == _HELD,
    )
