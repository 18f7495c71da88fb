"""What makes a worker one that has GPUs: its variables, Dask's resource ``GPU``, and the CPUs near them.

Dask itself knows nothing of GPUs. Where ``worker_class`` is dask-cuda's ``CUDAWorker``, that brings memory pools, spilling from
the device and the context; it makes a Nanny for each device in ``CUDA_VISIBLE_DEVICES`` of the process that makes it, which
hosts several workers here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..nvidia import near_cpus
from ..planned import WorkerPlan
from . import rank_preload
from .compat import dask_internals

__all__ = ["RESOURCE", "for_dask_cuda", "give_gpus", "only_own_visible", "show_peers"]

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


def for_dask_cuda(options: dict[str, Any]) -> None:
    """Write the resources as dask-cuda's class takes them, which is as on its command line."""
    resources = options.get("resources")
    if isinstance(resources, Mapping):
        options["resources"] = ",".join(f"{name}={number}" for name, number in resources.items())


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


def show_peers(server: Any, plan: WorkerPlan) -> None:
    """Have the worker see the other GPUs behind its own, where the server has made one Nanny as planned."""
    nannies = dask_internals.nannies_of(server)
    if plan.environ and len(nannies) == 1:
        nannies[0].env.update(plan.environ)
