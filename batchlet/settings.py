"""What the user asked for: keyword, else ``BATCHLET_DASK_CLUSTER__<NAME>``, else the default; each with its source.

`Settings` is the one definition of every option: the runner's keywords, the environment variables, the flags of
``python -m batchlet`` and the table in the documentation are all made from its fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from . import entry_points, protocols
from .errors import SettingsError
from .values import (
    LEAST_WORKER_MEMORY,
    TRUTH,
    choice,
    class_name,
    count,
    count_or_none,
    describe_bytes,
    filled_text,
    flag,
    headroom,
    lines,
    mapping,
    memory,
    parse_bytes,
    quorum,
    seconds,
    size_of_memory,
)

__all__ = [
    "LEAST_WORKER_MEMORY",
    "LOG_LEVELS",
    "MODES",
    "OF_JOBS",
    "OF_RUNS",
    "PREFIX",
    "SWITCH_VALUES",
    "Settings",
    "describe_bytes",
    "parse_bytes",
]

PREFIX = "BATCHLET_DASK_CLUSTER__"
#: What `mode` can be without any other package.
MODES = ("auto", "mpi", "slurm", "allocation", "local")
RENDEZVOUS = ("auto", "file", "mpi")
LOG_LEVELS = ("debug", "info", "warning", "error")


class _UnusableError(ValueError):
    """A value that cannot be used, where what is needed instead depends on more than the option."""


def _mode(value: object) -> str:
    """Name of an environment: of one of ours, or of one that another package has brought."""
    if value in MODES:
        return str(value)
    others = entry_points.found(entry_points.ENVIRONMENTS)
    if value not in others:
        raise _UnusableError("One of " + ", ".join(f'"{name}"' for name in (*MODES, *others)))
    return str(value)


def _auto_or_flag(value: object) -> str:
    """One of "auto", True, False."""
    return "auto" if value == "auto" else str(flag(value)).lower()


def _security(value: object) -> object:
    """One of True, False, a `distributed.Security`."""
    return value if hasattr(value, "get_connection_args") else flag(value)


#: Options that mean nothing unless jobs are submitted.
OF_JOBS = (
    "jobs", "nodes_per_job", "cores", "gpus", "memory", "memory_per_thread", "walltime", "max_restarts", "max_pending",
    "job_lifetime", "retire_before", "setup_script_commands", "job_options",
)  # fmt: skip
#: Options that mean nothing where jobs are submitted.
OF_RUNS = ("time_limit", "stop_before", "requeue", "max_attempts")
#: What an option that is on or off may be given as on a command line; given as nothing it is on.
SWITCH_VALUES = (*TRUTH, "auto")


def _option(parse: Callable[[object], Any], default: Any, text: str) -> Any:
    metadata = {"parse": parse, "help": text, "switch": parse in (flag, _auto_or_flag, _security)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything a user can ask for. Made by `Settings.resolve`, which checks each value.

    The help text of each field is its documentation; ``python -m batchlet --help`` prints them all.
    """

    mode: str = _option(_mode, "auto", "how to start: auto finds out from the environment")
    workers_per_node: int | None = _option(count, None, "workers on each node (default: one per worker rank)")
    threads_per_worker: int | None = _option(
        count, None, "threads of each worker (default: its share of the node's CPUs)"
    )
    memory_per_worker: int | float | None = _option(
        memory,
        None,
        "memory limit of each worker: auto, bytes, 4GiB, or a fraction of the node's usable memory (0.25)",
    )
    memory_headroom_frac: float = _option(
        headroom, 0.0, "part of each node's memory that Batchlet leaves alone, 0 to below 1"
    )
    gpus_per_worker: int | None = _option(
        count_or_none, None, "GPUs of each worker, of which there is one for each GPU by default; 0 leaves GPUs alone"
    )
    workers_per_gpu: int = _option(count, 1, "workers that share a GPU")
    gpu_peers: bool = _option(
        flag, True, "whether a worker sees, behind its own GPUs, the others that were granted on its node"
    )
    colocate: str = _option(
        _auto_or_flag,
        "auto",
        "whether the ranks of the scheduler and the client also host workers: auto, true or false",
    )
    share_node: bool = _option(
        flag,
        True,
        "whether one process of each node hosts the workers of all its ranks; ranks with GPUs or limits of their own never do",
    )
    bind: str = _option(
        _auto_or_flag,
        "auto",
        "whether each of the workers that share a node is bound to whole cores of one NUMA domain: auto (where a job has CPUs "
        "of several), true or false",
    )
    min_workers: int | float | None = _option(
        quorum, None, "go on with this many workers (or this fraction: 0.9) if not all are there at the deadline"
    )
    start_timeout: float = _option(seconds, 120.0, "seconds until all workers must have joined")
    stop_timeout: float = _option(
        seconds, 15.0, "seconds that stopping may take before processes are ended the hard way"
    )
    grace: float = _option(
        seconds, 20.0, "seconds that the script has to end by itself after SIGTERM or Ctrl-C (Slurm's KillWait is 30)"
    )
    scheduler_timeout: float = _option(
        seconds, 60.0, "seconds that the scheduler's process may be unresponsive before the run ends"
    )
    rendezvous: str = _option(
        choice(*RENDEZVOUS), "auto", "how the ranks find each other: auto, file, or mpi (in memory, through mpi4py)"
    )
    rendezvous_dir: str = _option(
        filled_text, ".batchlet", "directory on a file system that all nodes share, in which the ranks meet"
    )
    join: bool = _option(
        flag, False, "whether other jobs may bring their nodes while the run is under way: python -m batchlet join RUN"
    )
    attach: bool = _option(
        flag,
        False,
        "whether you can look at the run, and use its cluster, from outside: python -m batchlet ps, top, attach",
    )
    security: object = _option(
        _security,
        True,
        "TLS between all processes and a secret dashboard address: true, false, or a distributed.Security",
    )
    node_links: bool = _option(
        flag,
        True,
        "whether processes on one node talk through Unix sockets that are yours alone, in the clear, instead of TLS",
    )
    time_limit: float | None = _option(
        seconds, None, "seconds after which the run ends (2h, 90min), where the batch system's own limit is not earlier"
    )
    stop_before: float | None = _option(
        seconds,
        None,
        "how long before the end the script gets TimeIsUpError: 5min (default: never; with requeue a tenth of the time, "
        "from 30 s to 5 min)",
    )
    requeue: bool = _option(
        flag, False, "whether a Slurm job that has no time left, is preempted or has lost its cluster is started again"
    )
    max_attempts: int = _option(count, 10, "with requeue, how many times a job may run")
    report: str | None = _option(
        filled_text,
        None,
        "directory for a report of the run: report.json, for its owner alone, and a page made from it",
    )
    metrics: str | None = _option(
        filled_text, None, "file for figures of the run as node_exporter's textfile collector takes them: run.prom"
    )
    performance_report: str | None = _option(filled_text, None, "file for Dask's own performance report: dask.html")
    timeline: bool = _option(flag, False, "whether to print at the end what took how long at the start")
    interface: str | None = _option(
        filled_text, None, "network interface to use, such as ib0 (default: the node's own name)"
    )
    protocol: str | None = _option(filled_text, None, "Dask's protocol, such as tcp, or ucx for InfiniBand and NVLink")
    local_directory: str | None = _option(
        filled_text,
        None,
        "node-local scratch for spilled data (default: $SLURM_TMPDIR, $TMPDIR or the temporary directory)",
    )
    scheduler_options: Mapping[str, Any] = _option(mapping, {}, "keyword arguments for Dask's Scheduler, as JSON")
    worker_options: Mapping[str, Any] = _option(mapping, {}, "keyword arguments for Dask's Worker, as JSON")
    submit: str | None = _option(
        filled_text, None, "batch system to submit jobs to, such as slurm: a BatchletCluster is made"
    )
    jobs: int = _option(count_or_none, 0, "jobs to submit at the start")
    nodes_per_job: int = _option(count, 1, "nodes of each submitted job")
    cores: int | None = _option(count, None, "CPUs of each node of a submitted job")
    gpus: int | None = _option(
        count, None, "GPUs of each node of a submitted job (default: as many as gpus_per_worker needs)"
    )
    memory: int | None = _option(size_of_memory, None, "memory of each node of a submitted job: bytes, or 8GiB")
    memory_per_thread: int | None = _option(
        size_of_memory, None, "memory for each CPU of a submitted job, instead of memory"
    )
    walltime: str | None = _option(filled_text, None, "time limit of a submitted job, as the batch system writes it")
    max_restarts: int = _option(count_or_none, 3, "how many lost jobs are submitted anew before one has come up")
    max_pending: int = _option(count, 100, "how many submitted jobs may wait in the batch system's queue at one moment")
    job_lifetime: float | None = _option(
        seconds, None, "seconds after which a submitted job is replaced, even if its time limit would leave it longer"
    )
    retire_before: float | None = _option(
        seconds,
        None,
        "seconds before its end at which a submitted job retires (default: a tenth of its time, 15 to 300)",
    )
    setup_script_commands: tuple[str, ...] = _option(
        lines, (), "commands of a job's script before Batchlet starts, as a JSON list"
    )
    job_options: Mapping[str, Any] = _option(mapping, {}, "keyword arguments for dask-jobqueue's jobs, as JSON")
    worker_class: str | type | None = _option(
        class_name,
        None,
        "class to use instead of Dask's Worker, by its dotted name (default: dask-cuda's, where that is installed and fits)",
    )
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def resolve(cls, keywords: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
        """Settle every option: a keyword wins over the environment, which wins over the default.

        Parameters
        ----------
        keywords : mapping of str to object
            What the caller passed. `None` means "not given".
        environ : mapping of str to str
            The environment; ``BATCHLET_DASK_CLUSTER__<NAME>`` variables are read from it.

        Raises
        ------
        SettingsError
            If a name is unknown or a value is not one that the option can have.
        """
        options = {option.name: option for option in fields(cls) if option.metadata}
        submits = keywords.get("submit") is not None or PREFIX + "SUBMIT" in environ
        _refuse_unknown(keywords, environ, list(options), () if submits else OF_JOBS)
        if submits:
            _refuse_for_jobs(keywords, environ)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for name, option in options.items():
            variable = PREFIX + name.upper()
            if keywords.get(name) is not None:
                given, source = keywords[name], f"{name}="
            elif variable in environ:
                given, source = environ[variable], variable
            else:
                sources[name] = "default"
                continue
            parse = option.metadata["parse"]
            try:
                values[name] = parse(given)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                text = str(error) if isinstance(error, _UnusableError) else parse.__doc__ or ""
                needed = " ".join(text.split()).rstrip(".")
                raise SettingsError(
                    f"{_shown(name, given, source)} cannot be used. Needed: {needed[:1].lower()}{needed[1:]}."
                ) from None
            sources[name] = source
        settings = cls(**values, sources=sources)
        if not getattr(settings.security, "require_encryption", True):
            raise SettingsError(
                "security= is a Security object that does not require encryption, which would leave the run open to everybody. "
                f"Say so with security=False ({PREFIX}SECURITY=false), make it with require_encryption=True, or leave it out."
            )
        if settings.protocol is not None:
            secure = settings.security is not False
            problem = protocols.problem_with(settings.protocol, secure=secure, variable=f"{PREFIX}SECURITY")
            if problem is not None:
                raise SettingsError(f"{_shown('protocol', settings.protocol, sources['protocol'])} {problem}")
        return settings

    def path(self, name: str) -> str | None:
        """Give a file or directory that was asked for, as seen from the directory in which this process is."""
        value = getattr(self, name)
        return None if value is None else str(Path(value).expanduser().absolute())

    @property
    def stays_open(self) -> bool:
        """Whether others of the same user may come while the run is under way: its record stays."""
        return self.join or self.attach

    @property
    def given(self) -> dict[str, Any]:
        """What is other than by default, as keywords for a process elsewhere."""
        usual = Settings()
        return {name: getattr(self, name) for name in self.sources if getattr(self, name) != getattr(usual, name)}


def _less(known: list[str], without: tuple[str, ...]) -> list[str]:
    return [name for name in known if name not in without]


def _shown(name: str, value: object, source: str) -> str:
    return f"{source if source.startswith(PREFIX) else name}={value!r}"


def _refuse_for_jobs(keywords: Mapping[str, object], environ: Mapping[str, str]) -> None:
    for name in OF_RUNS:
        if keywords.get(name) is not None or PREFIX + name.upper() in environ:
            given = f"{name}=" if keywords.get(name) is not None else PREFIX + name.upper()
            raise SettingsError(
                f"{given} is for a run within its job, not for a cluster that submits jobs: leave it out. "
                "walltime= is the time limit of a submitted job."
            )


def _refuse_unknown(
    keywords: Mapping[str, object], environ: Mapping[str, str], known: list[str], without: tuple[str, ...]
) -> None:
    for given, prefix, names in (
        ([name for name in keywords if keywords[name] is not None or name not in without], "", _less(known, without)),
        ([name for name in environ if name.startswith(PREFIX)], PREFIX, [name.upper() for name in known]),
    ):
        for name in given:
            bare = name[len(prefix) :]
            if bare in names:
                continue
            near = difflib.get_close_matches(bare.upper() if prefix else bare, names, n=1, cutoff=0.0)[0]
            what = "environment variable" if prefix else "keyword"
            raise SettingsError(f"Unknown {what} {name}. Did you mean {prefix}{near}?")
