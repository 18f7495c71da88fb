"""Gridengine in all its kinds: qstat with the scheduler's reasons, qacct, ``qsub -w v``; the parallel environment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

from .base import Array, BatchSystem, Seen, in_order, moment, number, seconds, signalled

__all__ = ["GridEngine"]

# What the jobs do, each task of an array by itself, and then why they pend, which fails where one of them has ended.
_QUERY = 'qstat -g d -s prs -u "$(id -un)" && { qstat -j "$1" 2>/dev/null || :; }'
# The accounting file has no index, so it is read once for all jobs. Nobody asks after jobs that ended two days ago.
_FINISHED = 'qacct -d 2 -o "$(id -un)" -j'
# job-ID, prior, name, user, state, submit/start at; then queue (where it runs), slots and task.
_ROW = re.compile(
    r"\s*(\d+)\s+[\d.]+\s+(?:\S.*?\s)?(\S+)\s+([a-zA-Z]+)\s+(\d\d/\d\d/\d{4} \d\d:\d\d:\d\d)(?:\.\d+)?\s+(.*)"
)
_MIB = 2**20
# accounting(5), "failed": the job has run, and a signal has ended it.
_KILLED = "100"


class GridEngine(BatchSystem):
    """Gridengine and its descendants; tried with 8.1.9, Debian's. A job runs on one node, which its slots are granted on.

    Options
    -------
    pe : str
        The parallel environment that grants several slots on one node, one for each of the job's cores; ``"smp"`` by default,
        an empty word for none.
    h_vmem, mem_free : str or bool
        Memory for each slot, such as ``"4G"``; `True` for the job's memory, divided by its slots. Not asked for by default:
        whether a slot's memory is counted, and under which of these names, every site decides.
    """

    name: ClassVar[str] = "sge"
    title: ClassVar[str] = "gridengine"
    job_class: ClassVar[str] = "dask_jobqueue.sge.SGEJob"
    options: ClassVar[tuple[str, ...]] = ("pe", "h_vmem", "mem_free")
    # max_aj_instances is 2000 by default.
    most_in_array: ClassVar[int] = 1000

    # submit(1) and qsub(1), section "ENVIRONMENTAL VARIABLES".
    variables: ClassVar[tuple[str, ...]] = (
        "SGE_O_", "SGE_TASK_", "SGE_STDIN_PATH", "SGE_STDOUT_PATH", "SGE_STDERR_PATH", "SGE_JOB_SPOOL_DIR", "SGE_CWD_PATH",
        "SGE_ACCOUNT", "SGE_CKPT", "SGE_BINDING", "SGE_HGR_", "JOB_ID", "JOB_NAME", "JOB_SCRIPT", "NSLOTS", "NHOSTS",
        "NQUEUES", "PE", "QUEUE", "REQNAME", "REQUEST", "RESTARTED", "TASK_ID", "ARC",
    )  # fmt: skip
    mark: ClassVar[str] = "SGE_TASK_ID"

    def query(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        whole = {job_id.partition(".")[0] for job_id in job_ids}
        return ["sh", "-c", _QUERY, "qstat", ",".join(in_order(whole))]

    def parse(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        errors, reasons, limits = _details(text)
        seen = {}
        for line in text.splitlines():
            match = _ROW.fullmatch(line)
            if match is None:
                continue
            job, _, word, since, rest = match.groups()
            columns = rest.split()
            queue = next((column for column in columns if "@" in column), "")
            numbers = [column for column in columns if column.isdecimal()]
            # A range of tasks ("2-4:1") there is only without -g d.
            task = numbers[1] if len(numbers) > 1 else ""
            reason = errors.get(f"{job}.{task or 1}", "") if "E" in word else reasons.get(job, "")
            seen[f"{job}.{task}" if task else job] = _seen(
                word, reason, queue, moment(since, "%m/%d/%Y %H:%M:%S"), limits.get(job)
            )
        return seen

    def finished(self, job_ids: Sequence[str]) -> list[str]:  # noqa: ARG002
        """See the base class; tells of all jobs of the user."""
        return ["sh", "-c", _FINISHED]

    def parse_finished(self, text: str) -> dict[str, Seen]:
        """See the base class."""
        seen = {}
        for block in re.split(r"(?m)^=+\s*$", text):
            values = dict(re.findall(r"(?m)^(\w+) +(.*?)\s*$", block))
            job, task = values.get("jobnumber", ""), values.get("taskid", "")
            if not job.isdecimal() or "exit_status" not in values:
                continue
            failed, _, words = values.get("failed", "").partition(":")
            code = signalled(number(values["exit_status"].split(" ")[0]))
            fine = failed.strip() == "0" and code == 0
            seen[f"{job}.{task}" if task.isdecimal() else job] = Seen(
                state="ended" if fine else "failed",
                word="" if failed.strip() == "0" else f"failed {failed.strip()}",
                # Its own words for a job that was killed are "assumedly after job".
                reason="killed by qdel or for a limit" if failed.strip() == _KILLED else words.strip(),
                exit_code=code,
                node=values.get("hostname", ""),
                end=moment(values.get("end_time", "").partition(".")[0], "%a %b %d %H:%M:%S %Y"),
            )
        return seen

    def check(self, script: str) -> list[str]:
        """See the base class; verified as if the cluster were empty."""
        return ["qsub", "-w", "v", script]

    def refused(self, code: int, output: str) -> bool:
        """A queue that is closed, or a node that is down, may come back."""
        return code != 0 and "no suitable queues" not in output

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """See the base class."""
        return ["qdel", *in_order(job_ids)]

    def array(self, count: int) -> Array:
        """See the base class."""
        return Array((f"-t 1-{count}",), "SGE_TASK_ID", range(1, count + 1))

    def array_id(self, job_id: str, number: int) -> str:
        """See the base class."""
        return f"{job_id}.{number}"

    def directives(self, cores: int, memory: int, own: Iterable[str] = (), **options: object) -> tuple[str, ...]:
        """See the base class; dask-jobqueue's script asks for neither cores nor memory."""
        words = " ".join(own)
        asked = []
        pe = options.get("pe", "smp")
        if pe and not re.search(r"(^|\s)-pe\s", words):
            asked.append(f"-pe {pe} {cores}")
        for name in ("h_vmem", "mem_free"):
            value = options.get(name)
            if value is True:
                value = f"{math.ceil(memory / max(1, cores if pe else 1) / _MIB)}M"
            if value and f"{name}=" not in words:
                asked.append(f"-l {name}={value}")
        return tuple(asked)


def _details(text: str) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """Read, from ``qstat -j``, each job's errors (by job and task), why it pends, and for how long it may run."""
    errors: dict[str, str] = {}
    reasons: dict[str, list[str]] = {}
    limits: dict[str, int] = {}
    job = name = ""
    for line in text.splitlines():
        match = re.match(r"([a-z_][a-z_ ]*?)(?: +(\d+))?: +(.*)", line)
        if match is not None:
            name = match[1]
        task, value = (match[2], match[3].strip()) if match else ("", line.strip())
        if name == "job_number":
            job = value
        elif name == "error reason" and task:
            errors[f"{job}.{task}"] = _error(value)
        elif name == "scheduling info" and line.startswith((" ", name)):
            reasons.setdefault(job, []).append(value)
        elif name == "hard resource_list" and (found := re.search(r"\bh_rt=([\d:]+)", value)):
            limit = seconds(found[1])
            if limit is not None:
                limits[job] = limit
    return errors, {job: _reason(lines) for job, lines in reasons.items()}, limits


def _reason(lines: list[str]) -> str:
    """Give the scheduler's words without those about each queue of each node, of which there may be a thousand."""
    general = [line for line in lines if not line.startswith("queue instance")]
    return "; ".join(dict.fromkeys(general or lines[:1]))


def _error(text: str) -> str:
    """Give an error's words, without the time and the process that they come with."""
    return re.sub(r"^[\d/: .]+\[[\d:]+\]: *(error: *)?", "", text).strip()


def _seen(word: str, reason: str, queue: str, since: float | None, limit: int | None) -> Seen:
    node = queue.partition("@")[2]
    if "E" in word:
        return Seen("failed", word, reason or "it could not be started", stuck=True)
    if "q" in word or "w" in word:
        return Seen("pending", word, reason)
    if set(word) <= set("rtRsSTNdPn"):
        return Seen("running", word, node=node, end=None if since is None or limit is None else since + limit)
    return Seen("unknown", word, reason, node=node)
