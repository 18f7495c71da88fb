"""Dask inside a batch job: the processes that srun or mpirun started become one Dask cluster."""

from __future__ import annotations

from .errors import BatchletError, ClusterLostError, InputError, StartTimeoutError
from .runner import BatchletRunner

__version__ = "0.1.0"
__all__ = ["BatchletError", "BatchletRunner", "ClusterLostError", "InputError", "StartTimeoutError", "__version__"]
