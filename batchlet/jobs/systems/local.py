"""Jobs that are processes of this host, as dask-jobqueue's LocalCluster has them: for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .base import BatchSystem, Seen, in_order

__all__ = ["LocalProcesses"]

# $1 the script, of which only the text stays; $2 the directory for the output. The process has a session of its own.
_SUBMIT = """
script=$(cat "$1")
setsid sh -c 'exec </dev/null >"$1/local-$$.out" 2>&1; eval "$2"' sh "$2" "$script" >/dev/null 2>&1 &
echo $!
"""


class LocalProcesses(BatchSystem):
    """No batch system: a job is a process in a session of its own, and its id that of the process."""

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "this host"
    job_class: ClassVar[str] = "dask_jobqueue.local.LocalJob"

    def submit(self, script: str, logs: str | None) -> list[str]:
        """See the base class; dask-jobqueue's own way waits for what a worker of Dask prints."""
        return ["sh", "-c", _SUBMIT, "sh", script, logs or "/tmp"]  # noqa: S108

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["ps", "-o", "pid=,stat=", "-p", ",".join(in_order(job_ids))]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        rows = [line.split() for line in text.splitlines()]
        return {
            row[0]: Seen("running", row[1])
            for row in rows
            # A process that has ended and that nobody has waited for is no job any more.
            if len(row) == 2 and row[0].isdecimal() and row[1][0] in "DIRSTt"
        }

    def none_left(self, code: int, errors: str) -> bool:
        """Ps fails where none of the processes is there."""
        return code == 1 and not errors.strip()

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["kill", *in_order(job_ids)]
