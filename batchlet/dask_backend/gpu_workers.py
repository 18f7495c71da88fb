"""What makes a worker one that has GPUs: its variables, Dask's resource ``GPU``, and the CPUs near them.

Dask itself knows nothing of GPUs. dask-cuda's ``CUDAWorker``, where that is the class, brings memory pools, spilling from the
device and the context; it makes a Nanny for each device in ``CUDA_VISIBLE_DEVICES`` of the process that makes it, which hosts
several workers here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..cuda_workers import CUDA_WORKER, INSTALL, OPTIONS, PLAIN_INSTEAD, cannot_be_used
from ..errors import SettingsError
from ..nvidia import driver_problem, near_cpus
from ..planned import WorkerPlan
from . import rank_preload
from .compat import dask_internals
from .processes import NotMadeError

__all__ = [
    "RESOURCE",
    "cuda_worker",
    "for_dask_cuda",
    "give_gpus",
    "instead",
    "is_dask_cudas",
    "keep_to_cpus",
    "only_own_visible",
    "show_peers",
    "spill_here",
]

#: What a task asks for that is to have a GPU: ``dask.annotate(resources={"GPU": 1})``.
RESOURCE = "GPU"


def give_gpus(options: dict[str, Any], plan: WorkerPlan, given: Mapping[str, Any]) -> None:
    """Give a worker its GPUs; what the user has given stays.

    Parameters
    ----------
    options : dict of str to object
        The Nanny's keyword arguments.
    plan : WorkerPlan
        The worker.
    given : mapping of str to object
        Keyword arguments from the user.
    """
    if not plan.gpus:
        return
    options["resources"] = {RESOURCE: len(plan.gpus), **(given.get("resources") or {})}
    env = {**(options.get("env") or {}), **plan.environ, **(given.get("env") or {})}
    place = json.loads(env.get(rank_preload.VARIABLE, "{}"))
    allowed = frozenset(place.get("cpus") or (os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()))
    near = allowed.intersection(*map(near_cpus, plan.gpus))
    if near != allowed and len(near) >= plan.threads:
        env[rank_preload.VARIABLE] = json.dumps({**place, "cpus": sorted(near)})
    options["env"] = env


def is_dask_cudas(cls: type | None) -> bool:
    """Whether a class is one of dask-cuda's."""
    return cls is not None and cls.__module__.partition(".")[0] == "dask_cuda"


def cuda_worker(given: Mapping[str, Any], tell: Callable[[str], object]) -> type | None:
    """Import the class that was chosen since dask-cuda is installed; `None` if it cannot be imported after all.

    Parameters
    ----------
    given : mapping of str to object
        Keyword arguments from the user.
    tell : callable
        Says a line to the user.

    Raises
    ------
    SettingsError
        If it cannot be imported, and there are options that no other class takes.
    """
    module, _, name = CUDA_WORKER.rpartition(".")
    try:
        cls: type = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - it asks for CUDA's bindings and the driver when it is imported
        problem = f"{error} ({INSTALL})"
        asked = sorted(OPTIONS & given.keys())
        if asked:
            raise SettingsError(cannot_be_used(asked, problem, socket.gethostname())) from None
        tell(PLAIN_INSTEAD + problem)
        return None
    return cls


def instead(
    error: Exception, cls: type, given: Mapping[str, Any], tell: Callable[[str], object], *, chosen: bool
) -> None:
    """Say that a worker of dask-cuda's could not be made; returns where one of Dask's own is to take its place.

    Parameters
    ----------
    error : Exception
        What it has raised.
    cls : type
        Its class.
    given : mapping of str to object
        Keyword arguments from the user.
    tell : callable
        Says a line to the user.
    chosen : bool
        Whether the class was chosen by itself, rather than named by the user.

    Raises
    ------
    NotMadeError
        If the user has asked for what only this class can do.
    """
    cause = f"{type(error).__name__}: {str(error).rstrip('.')}"
    problem = driver_problem()
    if not chosen:
        where, name = socket.gethostname(), f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
        raise NotMadeError(
            f'worker_class="{name}" cannot be used on node {where}: {problem or cause}. '
            + ("Take a node, and a container, with NVIDIA's driver; or l" if problem else "Check worker_options=; or l")
            + "eave worker_class out: workers are Dask's own then, with their GPUs."
        ) from error
    if problem is None and not OPTIONS.isdisjoint(given):
        # As dask-cuda says it, of an option that it cannot fulfil.
        raise NotMadeError(
            f"dask-cuda's worker could not be made on node {socket.gethostname()}: {cause}. Check worker_options=."
        )
    asked = sorted(OPTIONS & given.keys())
    if asked:
        raise NotMadeError(cannot_be_used(asked, problem or cause, socket.gethostname()))
    tell(PLAIN_INSTEAD + (problem or cause))


def for_dask_cuda(cls: type, options: dict[str, Any], named: set[str]) -> None:
    """Write the resources as dask-cuda's class takes them, which is as on its command line.

    Parameters
    ----------
    cls : type
        The class.
    options : dict of str to object
        Its keyword arguments.
    named : set of str
        Those that this version of it knows.

    Raises
    ------
    SettingsError
        If there are options that only other versions of it have, or only LocalCUDACluster.
    """
    unknown = sorted((OPTIONS & options.keys()) - named)
    if unknown:
        raise SettingsError(
            f"worker_options= has {', '.join(unknown)}, which {cls.__name__} of {_version()} does not take. Leave that out"
            + (", or install a dask-cuda that has it." if unknown != ["log_spilling"] else ".")
        )
    resources = options.get("resources")
    if isinstance(resources, Mapping):
        options["resources"] = ",".join(f"{name}={number}" for name, number in resources.items())


def spill_here(given: Mapping[str, Any], plans: Sequence[WorkerPlan]) -> None:
    """Have cuDF spill in this process too, which is client and scheduler of dask-cuda's workers, as LocalCUDACluster does.

    Parameters
    ----------
    given : mapping of str to object
        Keyword arguments from the user for the workers.
    plans : sequence of WorkerPlan
        The workers.
    """
    if not given.get("enable_cudf_spill") or not any(plan.worker_class == CUDA_WORKER for plan in plans):
        return
    # As dask-cuda has it: cuDF must not choose a device before the workers are there.
    os.environ["RAPIDS_NO_INITIALIZE"] = "True"
    with contextlib.suppress(ImportError):
        cudf = importlib.import_module("cudf")
        cudf.set_option("spill", True)
        cudf.set_option("spill_stats", given.get("cudf_spill_stats", 0))


def _version() -> str:
    try:
        return f"dask-cuda {version('dask-cuda')}"
    except PackageNotFoundError:
        return "this dask-cuda"


@contextlib.contextmanager
def only_own_visible(plan: WorkerPlan) -> Iterator[None]:
    """Have this process see the worker's own GPUs alone, while a server is made that makes Nannies for all it sees."""
    own = {name: ",".join(text.split(",")[: len(plan.gpus)]) for name, text in plan.environ.items()}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def keep_to_cpus(server: Any, options: Mapping[str, Any]) -> None:
    """Have dask-cuda bind a worker to those CPUs alone, of the ones near its GPU, that are the worker's.

    Parameters
    ----------
    server : object
        The server.
    options : mapping of str to object
        The keyword arguments of the worker.
    """
    place = json.loads((options.get("env") or {}).get(rank_preload.VARIABLE, "{}"))
    own = set(place.get("cpus") or (os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()))
    for plugin in dask_internals.worker_plugins_of(server):
        if type(plugin).__name__ == "CPUAffinity" and own:
            plugin.cores = sorted(own.intersection(plugin.cores) or own)


def show_peers(server: Any, plan: WorkerPlan) -> None:
    """Have the worker see the other GPUs behind its own, where the server has made one Nanny as planned."""
    nannies = dask_internals.nannies_of(server)
    if plan.environ and len(nannies) == 1:
        nannies[0].env.update(plan.environ)
