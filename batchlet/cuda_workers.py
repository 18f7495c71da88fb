"""Whether workers are dask-cuda's: where each has one GPU of NVIDIA's, dask-cuda is installed, and nobody has said otherwise.

Where there are no such GPUs nothing is looked for, and nothing is imported in any case: that is left to what hosts the workers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .environments.base import Figure, only_amd
from .errors import PlanError
from .gpus import CUDA_VARIABLE
from .nvidia import driver_problem
from .planned import Plan, WorkerPlan
from .settings import Settings

__all__ = [
    "CUDA_WORKER",
    "DASKS_OWN",
    "INSTALL",
    "OPTIONS",
    "PLAIN_INSTEAD",
    "Choice",
    "cannot_be_used",
    "choose_class",
    "choose_in_plan",
    "options_of",
    "refuse_unfit",
]

#: The class that is chosen.
CUDA_WORKER = "dask_cuda.CUDAWorker"
#: What to type where it is missing.
INSTALL = 'pip install "dask-batchlet[cuda]" "cuda-core[cu12]" (or cu13, whichever CUDA the host has)'
#: What its workers take and no other does: of ``CUDAWorker`` and ``LocalCUDACluster``, from dask-cuda 24.8 to 26.10.
OPTIONS = frozenset(
    {
        "cudf_spill_stats", "device_memory_limit", "enable_cudf_spill", "enable_infiniband", "enable_nvlink", "enable_rdmacm",
        "enable_tcp_over_ucx", "jit_unspill", "log_spilling", "pre_import", "rmm_allocator_external_lib_list", "rmm_async",
        "rmm_log_directory", "rmm_managed_memory", "rmm_maximum_pool_size", "rmm_pool_size", "rmm_release_threshold",
        "rmm_track_allocations",
    }
)  # fmt: skip
#: Names by which a user says that workers are to be Dask's own.
DASKS_OWN = frozenset(
    f"{module}.{name}"
    for name in ("Nanny", "Worker")
    for module in ("distributed", "dask.distributed", f"distributed.{name.lower()}")
)
#: What the plan calls the class; its source says why it is that one.
FIGURE = "worker_class"
_PLAIN = "distributed.Nanny"
_BUT = "dask-cuda is installed, but cannot be used: "
#: What is said, with the reason behind it, where workers are not dask-cuda's though everybody would think so.
PLAIN_INSTEAD = f"workers are Dask's own, {_BUT}"


@dataclass(frozen=True)
class Choice:
    """The workers of a node with their class.

    Parameters
    ----------
    workers : tuple of WorkerPlan
        The workers.
    figure : Figure of str, optional
        The class and why; `None` where there is nothing to say.
    note : str, optional
        What the user is to hear, whoever looks at the plan or not: the class cannot be had for a reason that nobody expects.
    """

    workers: tuple[WorkerPlan, ...]
    figure: Figure[str] | None = None
    note: str | None = None


def options_of(settings: Settings) -> list[str]:
    """Name the worker options that only dask-cuda's workers take."""
    return sorted(OPTIONS & settings.worker_options.keys())


def choose_in_plan(plan: Plan, settings: Settings, *, here: bool = True) -> Plan:
    """Give the plan of a node with the class of its workers, and with the figure that says why; see `choose_class`."""
    found = choose_class(plan.workers, settings, plan.rank, plan.node, here=here)
    if found.figure is None:
        return plan
    notes = plan.notes if found.note is None else (*plan.notes, found.note)
    return replace(plan, workers=found.workers, figures={**plan.figures, FIGURE: found.figure}, notes=notes)


def choose_class(
    workers: Sequence[WorkerPlan], settings: Settings, rank: int, node: str, *, here: bool = True
) -> Choice:
    """Choose the class of the workers of a node, where the user has not.

    Parameters
    ----------
    workers : sequence of WorkerPlan
        All of the node.
    settings : Settings
        What the user asked for.
    rank : int
        This rank; of others' workers it may not know everything.
    node : str
        Name of the node.
    here : bool
        Whether that is this host, so that its driver can be looked at.

    Raises
    ------
    PlanError
        If there are options that only dask-cuda's workers take, and the workers are no such.
    """
    given, as_before = options_of(settings), Choice(tuple(workers))
    if settings.worker_class is not None:
        if given and _name(settings.worker_class) in DASKS_OWN:
            raise PlanError(
                f"{_has(given)}, but worker_class={_name(settings.worker_class)!r} is Dask's own. Leave out one or the other."
            )
        return as_before
    # Those of which this rank can say what they have.
    known = [worker for worker in workers if worker.environ]
    nvidias = bool(known) and all(CUDA_VARIABLE in worker.environ for worker in known) and not only_amd()
    if not nvidias:
        if given and any(worker.rank == rank for worker in workers):
            raise PlanError(
                f"{_has(given)}, but the workers of node {node} have no GPU of NVIDIA's. Ask for GPUs (srun --gres=gpu:N; "
                "CUDA_VISIBLE_DEVICES names those that there are), or leave that out."
            )
        return as_before
    refuse_unfit(known, settings)
    if importlib.util.find_spec("dask_cuda") is None:
        if given:
            raise PlanError(f"{_has(given)}, but dask-cuda is not installed: {INSTALL}, or leave that out.")
        return as_before
    shape = _unfit(known, settings)
    if shape is not None:
        return Choice(as_before.workers, Figure(_PLAIN, f"dask-cuda is installed, but {shape}"))
    problem = driver_problem() if here else None
    if problem is None:
        chosen = tuple(replace(worker, worker_class=CUDA_WORKER) if worker.environ else worker for worker in workers)
        return Choice(chosen, Figure(CUDA_WORKER, "dask-cuda is installed"))
    if given:
        raise PlanError(cannot_be_used(given, problem, node))
    return Choice(as_before.workers, Figure(_PLAIN, f"{_BUT}{problem}"), f"{PLAIN_INSTEAD}{problem}")


def cannot_be_used(given: Sequence[str], problem: str, node: str) -> str:
    """Make the message for options that only dask-cuda's workers take, where dask-cuda cannot work."""
    return (
        f"{_has(given)}, but dask-cuda cannot be used on node {node}: {problem}. Take a node, and a container, with NVIDIA's "
        "driver, or leave that out."
    )


def refuse_unfit(workers: Sequence[WorkerPlan], settings: Settings) -> None:
    """Refuse options for dask-cuda's workers where no node could have such workers, since these are of another shape.

    Raises
    ------
    PlanError
        If there are such options.
    """
    given, known = options_of(settings), [worker for worker in workers if worker.environ]
    shape = _unfit(known, settings) if given and known and settings.worker_class is None else None
    if shape is not None:
        raise PlanError(f"{_has(given)}, but dask-cuda {shape}. Leave out one or the other.")


def _unfit(workers: Sequence[WorkerPlan], settings: Settings) -> str | None:
    """Say why workers of this shape are none for dask-cuda, which divides by GPUs."""
    if settings.workers_per_gpu > 1:
        return f"has one worker for each GPU, and workers_per_gpu={settings.workers_per_gpu}"
    most = max(len(worker.gpus) for worker in workers)
    if most > 1:
        return f"has one GPU for each worker, of which these have {most}"
    return None


def _has(given: Sequence[str]) -> str:
    return f"worker_options= has {', '.join(given)}, which only dask-cuda's workers take"


def _name(cls: str | type) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
