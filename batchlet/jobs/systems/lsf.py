"""LSF: bjobs with fields of its own choice, which knows ended jobs for an hour."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import ClassVar

from .base import BatchSystem, Seen, State, in_order, moment, number, signalled

__all__ = ["Lsf"]

_STATES: dict[str, State] = {
    "PEND": "pending", "PSUSP": "pending", "PROV": "pending", "WAIT": "pending", "FWD_PEND": "pending",
    "RUN": "running", "SSUSP": "running", "USUSP": "running", "UNKWN": "running",
    "DONE": "ended", "EXIT": "failed", "ZOMBI": "failed",
}  # fmt: skip
_FIELDS = ("jobid", "jobindex", "stat", "exit_code", "exec_host", "finish_time", "exit_reason", "pend_reason")
_YEAR = 365 * 86400


class Lsf(BatchSystem):
    """LSF, as of 10.1.

    It has arrays, but only by the name of the job, which dask-jobqueue gives already: jobs are submitted one by one.
    """

    name: ClassVar[str] = "lsf"
    title: ClassVar[str] = "LSF"
    job_class: ClassVar[str] = "dask_jobqueue.lsf.LSFJob"
    # For CLEAN_PERIOD, one hour by default.
    settled_by_query: ClassVar[bool] = True

    # LSF configuration reference, "Environment variables set for job execution".
    variables: ClassVar[tuple[str, ...]] = ("LSB_", "LS_EXEC_T", "LS_JOBPID", "LS_SUBCWD", "LSFUSER", "LSF_LIM_")
    kept: ClassVar[frozenset[str]] = frozenset(("LSB_DEFAULTPROJECT", "LSB_DEFAULTQUEUE", "LSB_DEFAULT_JOBGROUP"))
    mark: ClassVar[str] = "LSB_JOBID"

    def misleads(self, name: str) -> bool:
        """A format of the user's own for bjobs."""
        return name == "LSB_BJOBS_FORMAT"

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["bjobs", "-a", "-noheader", "-o", f"{' '.join(_FIELDS)} delimiter='|'", *in_order(job_ids)]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        seen = {}
        for line in text.splitlines():
            # The last field is the one that may hold anything.
            fields = [field.strip() for field in line.split("|", len(_FIELDS) - 1)]
            if len(fields) != len(_FIELDS) or not fields[0].isdecimal():
                continue
            job, index, word, code, hosts, finish, exit_reason, pend_reason = ("" if f == "-" else f for f in fields)
            state = _STATES.get(word, "unknown")
            over = state in ("ended", "failed")
            seen[f"{job}[{index}]" if index not in ("", "0") else job] = Seen(
                state=state,
                word=word,
                reason=(exit_reason if over else pend_reason if state == "pending" else "").strip(),
                exit_code=(0 if state == "ended" else signalled(number(code))) if over else None,
                # 4*host1:2*host2
                node=re.sub(r"^\d+\*", "", hosts.partition(":")[0]),
                # E marks a guess, for a job without a limit.
                end=_moment(finish)
                if state != "pending" and not (state == "running" and finish.endswith("E"))
                else None,
            )
        return seen

    def none_left(self, code: int, errors: str) -> bool:
        """Bjobs fails where it does not know one of the jobs, and tells of the others all the same."""
        lines = [line for line in errors.splitlines() if line.strip()]
        ended = ("is not found", "No unfinished job found", "No job found")
        return code != 0 and bool(lines) and all(any(words in line for words in ended) for line in lines)

    def gpus(self, count: int) -> tuple[str, ...]:
        """See the base class; on one host, and LSF counts the GPUs of a host."""
        return (f'-gpu "num={count}"',)

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["bkill", *in_order(job_ids)]


def _moment(text: str) -> float | None:
    """Read ``Nov 25 23:01``, which may have an ``L`` (the limit) or ``E`` (a guess) behind it, and has no year."""
    text = re.sub(r"\s+[LEX]$", "", text.strip())
    now = time.time()
    found = [moment(f"{year} {text}", "%Y %b %d %H:%M") for year in range(time.localtime(now).tm_year - 1, 9999)[:3]]
    near = [each for each in found if each is not None and abs(each - now) < _YEAR]
    return min(near, key=lambda each: abs(each - now), default=None)
