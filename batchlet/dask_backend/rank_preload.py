"""Preloaded by workers: puts one on its rank's CPUs, gives and takes what its rank has and has not, has its warnings kept.

A worker is forked from the host of its node, which another rank may have started.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.config

from . import worker_logs
from .compat.figures import count_traffic

__all__ = ["UPLOADS", "VARIABLE", "bind", "dask_setup", "dask_teardown", "preload"]

VARIABLE = "BATCHLET_RANK_PLACE"
#: Where the worker's Nanny puts what is uploaded for it (Dask's ``UploadDirectory``).
UPLOADS = "BATCHLET_WORKER_UPLOADS"


def bind(options: dict[str, Any], given: Mapping[str, Any], cpus: tuple[int, ...]) -> None:
    """Have a worker run on CPUs of its own, and not on all those of its rank.

    Parameters
    ----------
    options : dict of str to object
        The Nanny's keyword arguments.
    given : mapping of str to object
        Those that the user has given.
    cpus : tuple of int
        The CPUs; none leaves it where its rank is.
    """
    if cpus:
        env = options.get("env") or {}
        place = {**json.loads(env.get(VARIABLE, "{}")), "cpus": list(cpus)}
        options["env"] = {**env, VARIABLE: json.dumps(place)}
        options |= preload(given)


def preload(given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the Nanny's options for preloading this module first and then what the user wants preloaded."""
    modules = given.get("preload", dask.config.get("distributed.worker.preload")) or []
    arguments = given.get("preload_argv", dask.config.get("distributed.worker.preload-argv")) or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if arguments and isinstance(arguments[0], str):
        arguments = [arguments] * len(modules)
    arguments = list(arguments) or [[] for _ in modules]
    return {"preload": [__name__, *modules], "preload_argv": [[], *arguments]}


def dask_setup(worker: Any) -> None:
    """Do it, in the worker's process, before it has threads that compute."""
    count_traffic(worker)
    uploads = os.environ.pop(UPLOADS, None)
    if uploads and uploads not in sys.path:
        # Behind the worker's own directory, as under plain Dask.
        sys.path.insert(1, uploads)
    words = os.environ.pop(worker_logs.VARIABLE, None)
    if words:
        worker_logs.speak(words)
    place = json.loads(os.environ.pop(VARIABLE, "{}"))
    for name in place.get("unset", ()):
        os.environ.pop(name, None)
    cpus = place.get("cpus")
    if cpus:
        for thread in Path("/proc/self/task").iterdir():
            # A thread that ends meanwhile; a CPU that was taken from the job.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), cpus)


def dask_teardown(worker: Any) -> None:  # noqa: ARG001
    """Say what still waits to be said."""
    worker_logs.stop_speaking()
