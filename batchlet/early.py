"""`from batchlet.early import BatchletRunner`: only the client goes further than this line.

Under ``srun`` every rank runs the script up to the ``with``, its imports included, although all but one only wait there. With
this import they wait here already: rank 0 coordinates, the worker ranks have their agents start, and all learn the options that
the script gives the runner later. They run nothing of the script below this line; so it belongs to the first imports of the
script itself, above Dask, where import sorters put it anyway. Everywhere else it does nothing but import `BatchletRunner`:
without a launcher, under other launchers, with fewer than three ranks, in an allocation without ``srun``, under
``python -m batchlet``, and where ``mode``, ``share_node``, ``rendezvous`` or ``start_timeout`` is set by a variable.

This is the one module of Batchlet whose import has an effect.
"""

from __future__ import annotations

import os
import sys

from .launch_variables import SLURM_PROCID
from .node.attach import attach_early, may_attach_early, worker_ranks_attach_early
from .runner import BatchletRunner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["BatchletRunner"]


def _importer() -> str:
    """Name of the module that imports this one, past Python's own frames."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or "importlib" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))


def _wait_here() -> None:
    """Be what this rank is in the run, and end the process with the run; on the client go on."""
    if not worker_ranks_attach_early(os.environ) or "batchlet.cli" in sys.modules:
        return
    rank, importer = os.environ.get(SLURM_PROCID), _importer()
    if importer != "__main__":
        if rank == "0":
            sys.stderr.write(
                f"batchlet: batchlet.early has no effect here: {importer} imports it, and not the script itself\n"
            )
        return
    if rank == "0":
        if "distributed" in sys.modules:
            sys.stderr.write(
                "batchlet: batchlet.early is imported below Dask, which all ranks have imported for nothing: put it above\n"
            )
        _coordinate()
    elif rank == "1":
        from .client.early_client import EarlyClient

        EarlyClient()
    elif may_attach_early(os.environ, {}):
        attach_early(os.environ, {}, early=True)


def _coordinate() -> NoReturn:
    from .errors import EndError
    from .node.rank_roles import coordinate_early

    try:
        code = coordinate_early()
    except EndError as error:
        from .report import failure

        failure(error)
        raise
    sys.exit(code)


_wait_here()
