"""Dask inside a batch job: the processes that srun or mpirun started become one Dask cluster."""

from __future__ import annotations

from .runner import BatchletRunner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .errors import BatchletError, ClusterLostError, InputError, StartTimeoutError
    from .factory import cluster
    from .jobs.cluster import BatchletCluster
    from .visits.attaching import attach

__version__ = "0.1.0"
__all__ = [
    "BatchletCluster",
    "BatchletError",
    "BatchletRunner",
    "ClusterLostError",
    "InputError",
    "StartTimeoutError",
    "__version__",
    "attach",
    "cluster",
]


def __getattr__(name: str) -> object:
    """Give what most processes do without: a rank that only waits for the end needs none of it."""
    if name == "BatchletCluster":
        from .jobs.cluster import BatchletCluster

        return BatchletCluster
    if name == "cluster":
        from .factory import cluster

        return cluster
    if name == "attach":
        from .visits.attaching import attach

        return attach
    if name in __all__:
        from . import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
