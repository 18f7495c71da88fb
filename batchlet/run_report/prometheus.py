"""A report as metrics for Prometheus, in the text form that node_exporter's textfile collector takes.

See https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["text"]

_STATES = ("running", "done", "ended", "failed")
_OF_WORKERS = (
    ("cpu_seconds", "cpu_seconds_total", "counter", "User and system time of a worker's processes."),
    ("memory_limit", "memory_limit_bytes", "gauge", "Memory limit of a worker."),
    ("memory_peak", "memory_peak_bytes", "gauge", "The most memory that a worker had."),
    ("spilled_peak", "spilled_peak_bytes", "gauge", "The most data that a worker had on disk."),
    ("sent", "sent_bytes_total", "counter", "Bytes that a worker has sent."),
    ("received", "received_bytes_total", "counter", "Bytes that a worker has received."),
    ("tasks", "tasks_total", "counter", "Tasks that a worker has done."),
    ("busy_seconds", "task_seconds_total", "counter", "Seconds of a worker's threads in tasks."),
    ("restarts", "restarts_total", "counter", "How many times a worker's process was started anew."),
)
_OF_GROUPS = (
    ("tasks", "group_tasks_total", "counter", "Tasks that were done, by prefix."),
    ("failed", "group_failed_total", "counter", "Tasks that raised, by prefix."),
    ("seconds", "group_seconds_total", "counter", "Seconds of threads in tasks, by prefix."),
)
_OF_RUN = (
    ("cpu_seconds", "run_cpu_seconds_total", "counter", "CPU time of all workers."),
    ("cpu_granted_seconds", "run_cpu_granted_seconds_total", "counter", "CPU time that they could have used."),
    ("spilled", "run_spilled_bytes_total", "counter", "Bytes that were written to disk."),
    ("sent", "run_sent_bytes_total", "counter", "Bytes sent between processes of the run."),
)


def text(report: Mapping[str, Any]) -> str:
    """Write a report as metrics.

    Parameters
    ----------
    report : mapping
        See `schema.json`.
    """
    run, time, outcome = report["run"], report["time"], report["outcome"]
    of_run = {"run": run["id"]}
    lines: list[str] = []

    def family(name: str, kind: str, about: str, samples: Iterable[tuple[Mapping[str, str], float | None]]) -> None:
        found = [
            f"batchlet_{name}{_labels({**of_run, **labels})} {_number(value)}"
            for labels, value in samples
            if value is not None
        ]
        if found:
            lines.extend((f"# HELP batchlet_{name} {about}", f"# TYPE batchlet_{name} {kind}", *found))

    about = {"mode": run["mode"], "job": run["job"]}
    family("run_info", "gauge", "The run that this is about.", [(about, 1)])
    state = [({"state": name}, float(outcome["state"] == name)) for name in _STATES]
    family("run_state", "gauge", "1 for the state that the run is in.", state)
    family("run_start_time_seconds", "gauge", "When the run began, in seconds since 1970.", [({}, time["began"])])
    updated = time["began"] + time["updated"]
    family("run_updated_time_seconds", "gauge", "When these figures were taken.", [({}, updated)])
    limit = None if time["limit"] is None else time["began"] + time["limit"]
    family("run_limit_time_seconds", "gauge", "When the allocation ends.", [({}, limit)])
    family("run_blocks_total", "counter", "With blocks that were entered.", [({}, outcome["blocks"])])
    for field, name, kind, what in _OF_RUN:
        family(name, kind, what, [({}, report["use"][field])])
    workers = report["workers"]
    for field, name, kind, what in _OF_WORKERS:
        samples = (({"worker": one, "node": row["node"]}, row[field]) for one, row in workers.items())
        family(f"worker_{name}", kind, what, samples)
    for field, name, kind, what in _OF_GROUPS:
        family(name, kind, what, (({"prefix": row["name"]}, row[field]) for row in report["task_groups"]))
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(round(value, 6)) if isinstance(value, float) else str(value)
