"""What a cluster of jobs was asked for: Batchlet's own options, the site's configuration, and the rest for dask-jobqueue."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import dask.config

from ..environments import Figure
from ..errors import SettingsError
from ..settings import Settings, parse_bytes
from .job import python_command
from .sizing import JobSize, size_of_job
from .systems import BatchSystem, batch_system

__all__ = ["JobOptions", "resolve"]

_OURS = frozenset(option.name for option in fields(Settings) if option.metadata)
# What JobQueueCluster would take and Batchlet settles itself, and the option that says it instead.
_SETTLED = {
    "processes": "workers_per_node=",
    "nanny": "worker_options=",
    "worker_command": "worker_class=",
    "worker_extra_args": "worker_options=",
    "dashboard_address": "scheduler_options=",
    "host": "interface=",
    "shared_temp_directory": "rendezvous_dir=",
    "extra": "worker_options=",
}


@dataclass(frozen=True)
class JobOptions:
    """What each job of a cluster is like.

    Parameters
    ----------
    system : BatchSystem
        Where jobs are submitted.
    settings : Settings
        What the user and the site have asked for.
    size : JobSize
        Nodes and workers of a job.
    keywords : mapping of str to object
        For dask-jobqueue's class of jobs.
    """

    system: BatchSystem
    settings: Settings
    size: JobSize
    keywords: Mapping[str, Any]

    @property
    def scheduler_interface(self) -> str | None:
        """The network interface of the client's machine; it may have another name than that of the nodes."""
        return self.settings.scheduler_options.get("interface") or self.settings.interface

    def for_record(self, record: str, logs: str | None) -> dict[str, Any]:
        """Give the keywords of jobs that find their cluster by this record and write their logs into that directory."""
        words = ["--record", record, "--workers", str(self.size.workers_per_node)]
        found = {**self.keywords, "worker_extra_args": words}
        return found if logs is None else {**found, "log_directory": logs}


def resolve(given: Mapping[str, Any]) -> JobOptions:
    """Settle the options of a cluster.

    Parameters
    ----------
    given : mapping of str to object
        All keywords that the user has given.

    Raises
    ------
    SettingsError
        If one of them cannot be used.
    PlanError
        If more workers were asked for than fit.
    """
    settings = Settings.resolve({name: value for name, value in given.items() if name in _OURS}, os.environ)
    if settings.submit is None:
        raise SettingsError('Where jobs are to be submitted, nobody has said: BatchletCluster("slurm"), for example.')
    system = batch_system(settings.submit)
    section = given.get("config_name") or system.name
    job = {**settings.job_options, **{name: value for name, value in given.items() if name not in _OURS}}
    for name, instead in _SETTLED.items():
        if job.get(name) is not None:
            raise SettingsError(f"{name}= is settled by Batchlet: say it with {instead}")

    def of_site(name: str) -> Any:
        return dask.config.get(f"jobqueue.{section}.{name}", None)

    cores, memory = _node(settings, of_site, section)
    changes: dict[str, Any] = {
        name: value
        for name, value in (
            ("interface", settings.interface or of_site("interface")),
            ("local_directory", settings.local_directory or of_site("local-directory")),
            ("scheduler_options", {**_closed(of_site("scheduler-options")), **settings.scheduler_options}),
        )
        if value
    }
    if settings.workers_per_node is None and of_site("processes"):
        changes["workers_per_node"] = max(1, int(of_site("processes")) // settings.nodes_per_job)
        changes["sources"] = {**settings.sources, "workers_per_node": f"jobqueue.{section}.processes"}
    settings = replace(settings, **changes)
    size = size_of_job(settings, cores, memory)
    extra = job.pop("job_extra_directives", None)
    extra = of_site("job-extra-directives") if extra is None else extra
    # HTCondor's are a mapping.
    directives = _several(extra, None)
    said = [*directives, str(job.get("resource_spec") or of_site("resource-spec") or "")]
    chosen = {name: job.pop(name) if name in job else of_site(name.replace("_", "-")) for name in system.options}
    own = system.directives(
        size.cores, size.memory, said, **{name: value for name, value in chosen.items() if value is not None}
    )
    own = (*own, *_for_gpus(system, size, said))
    skip = _several(job.pop("job_directives_skip", None), of_site("job-directives-skip"))
    prefix: tuple[str, ...] = ()
    if size.nodes > 1:
        spread = system.spread(size.nodes, size.cores)
        if spread is None:
            raise SettingsError(
                f"nodes_per_job={size.nodes} cannot be: Batchlet knows no way to start a process on each node of a job of "
                f"{system.title}. Ask for more jobs of one node."
            )
        own, skip, prefix = (*own, *spread.directives), [*skip, *spread.skip], spread.command
    for name, value in system.exact(size.memory).items():
        if job.get(name) is None and of_site(name.replace("_", "-")) is None:
            job[name] = value
    prologue = _several(job.pop("job_script_prologue", None), of_site("job-script-prologue"))
    job |= {
        "cores": size.cores,
        "memory": str(size.memory),
        "processes": size.workers,
        "worker_command": "batchlet.job",
        "job_extra_directives": extra if isinstance(extra, Mapping) else [*directives, *own],
        "job_directives_skip": skip,
        "job_script_prologue": [*prologue, *settings.setup_script_commands],
        "python": python_command(job.pop("python", None) or of_site("python"), prefix),
    }
    for name in ("walltime", "local_directory"):
        if getattr(settings, name) is not None:
            job[name] = getattr(settings, name)
    return JobOptions(system, settings, size, job)


def _node(settings: Settings, of_site: Any, section: str) -> tuple[Figure[int], Figure[int]]:
    """CPUs and memory of each node of a job."""
    cores, source = settings.cores, settings.sources["cores"]
    if cores is None and of_site("cores"):
        cores, source = int(of_site("cores")), f"jobqueue.{section}.cores"
    if cores is None:
        raise SettingsError(
            "How many CPUs a job is to have, nobody has said: add cores=8, for example "
            f"(BATCHLET_DASK_CLUSTER__CORES, or jobqueue.{section}.cores in Dask's configuration)."
        )
    memory, memory_source = settings.memory, settings.sources["memory"]
    if memory is None and settings.memory_per_thread is not None:
        memory, memory_source = cores * settings.memory_per_thread, f"memory_per_thread x {cores} CPUs"
    if memory is None and of_site("memory"):
        memory, memory_source = parse_bytes(str(of_site("memory"))), f"jobqueue.{section}.memory"
    if memory is None:
        raise SettingsError(
            'How much memory a job is to have, nobody has said: add memory="16GiB", for example '
            f"(BATCHLET_DASK_CLUSTER__MEMORY, or jobqueue.{section}.memory in Dask's configuration)."
        )
    return Figure(cores, source), Figure(memory, memory_source)


def _for_gpus(system: BatchSystem, size: JobSize, said: Sequence[str]) -> tuple[str, ...]:
    """Directives for the GPUs of a job, unless the user's own speak of GPUs."""
    if not size.gpus or any("gpu" in text.lower() for text in said):
        return ()
    directives = system.gpus(size.gpus)
    if directives is None:
        raise SettingsError(
            f"A job is to have {size.gpus} GPUs on each node, but each site has its own way to ask {system.title} for them: "
            "name it in job_extra_directives (or resource_spec)."
        )
    return directives


def _closed(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give a site's options of the scheduler without those that would show the dashboard to everybody."""
    return {name: value for name, value in (options or {}).items() if not name.startswith("dashboard")}


def _several(given: Any, of_site: Any) -> list[str]:
    """Give a list that may be one text, or a mapping as dask-jobqueue takes it for some systems."""
    found = of_site if given is None else given
    if isinstance(found, str):
        return [found]
    return list(found or ())
