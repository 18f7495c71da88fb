"""Dask inside a batch job: the processes that srun or mpirun started become one Dask cluster."""

from __future__ import annotations

from .runner import BatchletRunner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .errors import BatchletError, ClusterLostError, InputError, StartTimeoutError

__version__ = "0.1.0"
__all__ = ["BatchletError", "BatchletRunner", "ClusterLostError", "InputError", "StartTimeoutError", "__version__"]


def __getattr__(name: str) -> object:
    """Give the exceptions; a rank that only waits for the end needs none of them."""
    if name in __all__:
        from . import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
