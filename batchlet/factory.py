"""`batchlet.cluster()`: the runner, or a cluster of submitted jobs, by the same settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .environments import detected
from .settings import OF_JOBS, PREFIX

__all__ = ["cluster", "submits"]

_SUBMIT = "submit"


def submits(options: Mapping[str, Any]) -> bool:
    """Whether jobs are to be submitted: the program says so, or the site does and no launcher has started this process."""
    if options.get(_SUBMIT) is not None:
        return True
    return bool(os.environ.get(PREFIX + _SUBMIT.upper())) and detected(os.environ).name == "local"


def cluster(**options: Any) -> Any:
    """Make the cluster that the settings ask for: jobs that are submitted, or whatever this process was started in.

    Parameters
    ----------
    **options
        The fields of `batchlet.settings.Settings`. With ``submit`` (or where ``BATCHLET_DASK_CLUSTER__SUBMIT`` is set and
        no launcher has started this process) jobs are submitted; those options that are of jobs alone mean nothing otherwise.

    Returns
    -------
    BatchletCluster or BatchletRunner
        Both are to be entered with ``with``, and are cluster objects for Dask's `Client`.

    Examples
    --------
    >>> with batchlet.cluster(cores=8, memory="16GiB", jobs=4) as cluster:  # doctest: +SKIP
    ...     client = Client(cluster)
    """
    if submits(options):
        from .jobs.cluster import BatchletCluster

        return BatchletCluster(options.pop(_SUBMIT, None), **options)
    from .runner import BatchletRunner

    return BatchletRunner(**{name: value for name, value in options.items() if name not in (*OF_JOBS, _SUBMIT)})
