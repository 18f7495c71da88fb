"""Moab: showq, with the jobs that have ended behind those that have not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from .base import BatchSystem, Seen, State, in_order, number, signalled
from .pbs import Pbs

__all__ = ["Moab"]

_QUERY = 'showq -u "$(id -un)" && { showq -c -u "$(id -un)" 2>/dev/null || :; }'
# Moab's documentation, "Job States", and what showq has for a job's hold.
_STATES: dict[str, State] = {
    "Idle": "pending", "Hold": "pending", "Deferred": "pending", "NotQueued": "pending", "Staged": "pending",
    "BatchHold": "pending", "UserHold": "pending", "SystemHold": "pending", "Blocked": "pending", "Migrated": "pending",
    "Running": "running", "Starting": "running", "Suspended": "running", "Completed": "ended",
    "Removed": "failed", "Vacated": "failed", "Lost": "failed",
}  # fmt: skip


class Moab(BatchSystem):
    """Moab above Torque."""

    name: ClassVar[str] = "moab"
    title: ClassVar[str] = "Moab"
    job_class: ClassVar[str] = "dask_jobqueue.moab.MoabJob"
    settled_by_query: ClassVar[bool] = True

    variables: ClassVar[tuple[str, ...]] = ("MOAB_", *Pbs.variables)
    mark: ClassVar[str] = "PBS_JOBID"

    def query(self, job_ids: Sequence[str]) -> list[str]:  # noqa: ARG002
        """See the base class; tells of all jobs of the user."""
        return ["sh", "-c", _QUERY]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        seen = {}
        for line in text.splitlines():
            columns = line.split()
            # JOBID USERNAME STATE ..., or JOBID S CCODE ... of a job that has ended; a job of an array is 123[4].
            match = re.fullmatch(r"(?:Moab\.)?(\d+(?:\[\d+\])?)(?:\..*)?\*?", columns[0]) if len(columns) >= 4 else None
            if match is None:
                continue
            if len(columns[1]) == 1 and not columns[2].isalpha():
                seen[match[1]] = _ended(columns[2])
            elif columns[3].isdecimal() and len(columns) > 4 and ":" in columns[4]:
                word = columns[2]
                state = _STATES.get(word, "unknown")
                seen[match[1]] = Seen(state, word, word if state == "pending" and word != "Idle" else "")
        return seen

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["canceljob", *in_order(job_ids)]


def _ended(text: str) -> Seen:
    """Read a completion code: a number, ``CNCLD`` with its place in brackets, or another word."""
    code = number(text)
    if code is None:
        return Seen("failed", "Removed" if text.startswith("CNCLD") else "Completed", text)
    return Seen("ended" if code == 0 else "failed", "Completed", exit_code=signalled(code) if code >= 0 else None)
