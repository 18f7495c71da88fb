"""Which worker of a node has which GPU.

One worker for each GPU, unless asked otherwise, and each GPU for one worker, unless `workers_per_gpu` asks otherwise. Ranks
that see the same devices divide them; a rank that was given devices of its own divides those among its own workers.

Nothing here reads the environment or the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .environments.base import Figure
from .errors import PlanError
from .gpus import Gpus
from .settings import Settings

__all__ = ["GpuShare", "divide", "gpu_figures", "gpus_in_use", "workers_for"]

Name = tuple[int | str, int]


@dataclass(frozen=True)
class GpuShare:
    """The GPUs of one worker.

    Parameters
    ----------
    gpus : tuple of str
        Their names.
    environ : mapping of str to str
        The variables that say so to the worker. Empty for workers of another rank that has GPUs of its own.
    """

    gpus: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


def gpus_in_use(gpus: Gpus | None, hosts: int, settings: Settings) -> Gpus | None:
    """Give the GPUs that the workers are to have; `None` where there are none, or they are to be left alone.

    Parameters
    ----------
    gpus : Gpus, optional
        Those of the node, or of this rank alone. Where that cannot be told from here, they are taken for its own if there are
        fewer than ranks that host workers; before workers start their agent finds out (`batchlet.node.gpu_views`).
    hosts : int
        Ranks of the node that host workers.
    settings : Settings
        What the user asked for.

    Raises
    ------
    PlanError
        If a worker is to have several GPUs, and a GPU several workers.
    """
    if gpus is None or not gpus.devices or settings.gpus_per_worker == 0:
        return None
    each, shared = settings.gpus_per_worker or 1, settings.workers_per_gpu
    if each > 1 and shared > 1:
        raise PlanError(
            f"gpus_per_worker={each} and workers_per_gpu={shared} contradict each other: a worker has several GPUs, or "
            "several workers share one. Leave one of them out."
        )
    return gpus if gpus.bound is not None else replace(gpus, bound=len(gpus.devices) < hosts)


def workers_for(gpus: Gpus, hosts: int, cpus: int, settings: Settings, node: str) -> tuple[int, str]:
    """Say how many workers the GPUs of a node are enough for, and why so many.

    Parameters
    ----------
    gpus : Gpus
        Those of the node, or of this rank alone.
    hosts : int
        Ranks of the node that host workers.
    cpus : int
        CPUs of the node.
    settings : Settings
        What the user asked for.
    node : str
        Its name.

    Raises
    ------
    PlanError
        If the launcher has started more worker ranks than there are GPUs, or there are fewer CPUs than GPUs.
    """
    each, shared = settings.gpus_per_worker or 1, settings.workers_per_gpu
    shared = max(1, shared // _ranks_per_gpu(gpus, hosts))
    found = len(gpus.devices)
    ranks = hosts if gpus.bound else 1
    count = ranks * (found * shared // each)
    where = f"each rank of node {node}" if gpus.bound else f"node {node}"
    if count < 1:
        raise PlanError(
            f"gpus_per_worker={each}, but {where} has {_gpus(found)} ({gpus.source}). "
            "Lower gpus_per_worker or ask for more GPUs (srun --gres=gpu:N)."
        )
    if hosts > count and _launcher_decides(settings):
        raise PlanError(
            f"{hosts} worker ranks on node {node} have {_gpus(found)} ({gpus.source}), {count} of them would have one"
            + (f" with {each} for each worker" if each > 1 else "")
            + f". Start {hosts - count} fewer ranks on each node or ask for more GPUs (srun --gres=gpu:N); or let workers "
            f"share a GPU (workers_per_gpu={-(-hosts // found)}), or use none (gpus_per_worker=0)."
        )
    if count > max(cpus, hosts) and _launcher_decides(settings):
        raise PlanError(
            f"{count} workers, one for each GPU ({gpus.source}), need {count} CPUs on node {node}, which has {cpus}. Ask for "
            f"more CPUs (srun --cpus-per-task), or for fewer workers (gpus_per_worker={-(-found // max(1, cpus))})."
        )
    parts = [_gpus(found * ranks)]
    parts += [f"x workers_per_gpu={shared}"] if shared > 1 else []
    parts += [f"/ gpus_per_worker={each}"] if each > 1 else []
    return count, " ".join(parts) if len(parts) > 1 else f"one per GPU ({gpus.source})"


def _ranks_per_gpu(gpus: Gpus, hosts: int) -> int:
    """How many ranks were given the same GPU."""
    if not gpus.bound or gpus.on_node is None:
        return 1
    return max(1, -(-hosts * len(gpus.devices) // gpus.on_node))


def _launcher_decides(settings: Settings) -> bool:
    """Whether the number of workers is nobody's but the launcher's and the GPUs'."""
    return not (settings.workers_per_node or settings.threads_per_worker or settings.memory_per_worker)


def divide(gpus: Gpus | None, names: Sequence[Name], rank: int, settings: Settings, node: str) -> list[GpuShare]:
    """Divide the GPUs among the workers of a node.

    Parameters
    ----------
    gpus : Gpus, optional
        Those of the node, or of this rank alone.
    names : sequence of tuple
        Name and rank of each worker of the node.
    rank : int
        This rank.
    settings : Settings
        What the user asked for.
    node : str
        Its name.

    Returns
    -------
    list of GpuShare
        One for each worker, in the order of `names`.

    Raises
    ------
    PlanError
        If there are too few.
    """
    if gpus is None:
        return [GpuShare()] * len(names)
    of_rank: dict[int, list[int]] = {}
    for number, (_, host) in enumerate(names):
        of_rank.setdefault(host if gpus.bound else rank, []).append(number)
    most = max(map(len, of_rank.values()), default=1)
    found, ranks_per_gpu = len(gpus.devices), _ranks_per_gpu(gpus, len(of_rank))
    if ranks_per_gpu > settings.workers_per_gpu:
        raise PlanError(
            f"{len(of_rank)} ranks of node {node} have {_gpus(found)} each ({gpus.source}), so that they share them. Start "
            f"fewer ranks, or say that workers may share (workers_per_gpu={ranks_per_gpu})."
        )
    shared = settings.workers_per_gpu // ranks_per_gpu
    each = settings.gpus_per_worker or max(1, found * shared // most if shared == 1 else 1)
    if most * each > found * shared:
        raise PlanError(
            f"{most} workers "
            + (f"x {each} GPUs = {most * each} GPUs " if each > 1 else "")
            + (f"on one rank of node {node}" if gpus.bound else f"on node {node}")
            + f", which has {_gpus(found)} ({gpus.source})"
            + (f", for {shared} workers each" if shared > 1 else "")
            + ". Lower workers_per_node or gpus_per_worker, ask for more GPUs (srun --gres=gpu:N), "
            f"let workers share a GPU (workers_per_gpu={-(-most // found)}), or use none (gpus_per_worker=0)."
        )
    shares = [GpuShare((f"of rank {host}",)) for _, host in names]
    for turn, number in enumerate(of_rank.get(rank, ())):
        first = turn // shared * each
        own = range(first, first + each)
        shares[number] = GpuShare(
            tuple(gpus.devices[position] for position in own), gpus.visible(own, peers=settings.gpu_peers)
        )
    return shares


def gpu_figures(gpus: Gpus | None, shares: Sequence[GpuShare], settings: Settings) -> dict[str, Figure[int]]:
    """Give the figures of the plan that are about GPUs, each with its source; none where there are no GPUs."""
    if gpus is None or not gpus.devices:
        return {}
    found = {"gpus_per_rank" if gpus.bound else "gpus": Figure(len(gpus.devices), gpus.source)}
    if settings.gpus_per_worker is not None:
        found["gpus_per_worker"] = Figure(settings.gpus_per_worker, settings.sources["gpus_per_worker"])
    elif any(share.environ for share in shares):
        each = next(len(share.gpus) for share in shares if share.environ)
        found["gpus_per_worker"] = Figure(each, "the GPUs / workers" if each > 1 else "one per worker")
    if settings.workers_per_gpu > 1:
        found["workers_per_gpu"] = Figure(settings.workers_per_gpu, settings.sources["workers_per_gpu"])
    return found


def _gpus(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
