"""OAR: oarstat in JSON, which knows ended jobs too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from .base import BatchSystem, Seen, State, in_order, number

__all__ = ["Oar"]

# oarstat(1) and OAR's documentation, "Job states".
_STATES: dict[str, State] = {
    "Waiting": "pending", "Hold": "pending", "toLaunch": "pending", "toAckReservation": "pending", "Launching": "pending",
    "Running": "running", "Suspended": "running", "Resuming": "running", "Finishing": "running",
    "Terminated": "ended", "toError": "failed", "Error": "failed",
}  # fmt: skip


class Oar(BatchSystem):
    """OAR 2.5.

    Its arrays are jobs with ids of their own, of which dask-jobqueue reads the first only.
    """

    name: ClassVar[str] = "oar"
    title: ClassVar[str] = "OAR"
    job_class: ClassVar[str] = "dask_jobqueue.oar.OARJob"
    settled_by_query: ClassVar[bool] = True

    variables: ClassVar[tuple[str, ...]] = ("OAR_", "OARDO_")
    mark: ClassVar[str] = "OAR_JOB_ID"

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        numbers = [job_id for job_id in in_order(job_ids) if job_id.isdecimal()]
        return ["oarstat", "-J", "--sql", f"job_id IN ({','.join(numbers)})"]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        try:
            jobs = json.loads(text)
        except ValueError:
            return {}
        if not isinstance(jobs, dict):
            return {}
        return {job_id: _seen(job) for job_id, job in jobs.items() if job_id.isdecimal() and isinstance(job, dict)}

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["oardel", *in_order(job_ids)]


def _seen(job: dict[str, Any]) -> Seen:
    word = str(job.get("state"))
    state = _STATES.get(word, "unknown")
    status = number(job.get("exit_code"))
    code = None if status is None else -(status & 127) if status & 127 else status >> 8
    if state == "ended" and code:
        state = "failed"
    over = state in ("ended", "failed")
    hosts = job.get("assigned_network_address")
    start, walltime, stop = (number(job.get(name)) for name in ("startTime", "walltime", "stopTime"))
    limit = start + walltime if start and walltime else None
    return Seen(
        state=state,
        word=word,
        reason=str(job.get("message") or "") if state in ("pending", "failed") else "",
        exit_code=code if over else None,
        node=str(hosts[0]) if isinstance(hosts, list) and hosts else "",
        end=float(stop) if over and stop else float(limit) if state == "running" and limit else None,
    )
