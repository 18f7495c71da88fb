"""Whether the GPUs that a rank sees are its own, where no variable of the launcher tells.

``CUDA_VISIBLE_DEVICES=0`` may stand in all ranks of a node, or have been set for each of them by a script around them. One rank
cannot tell, but their agent can: it hears them all. Ranks that see other GPUs than the agent get one of their own, and it tells
them why.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence

from ..gpus import GPU_VARIABLES
from ..plan import hosts_workers
from .rank import Rank

__all__ = ["OWN_GPUS", "GpuViews"]

#: Why a rank gets an agent of its own, if its GPUs are the reason.
OWN_GPUS = "gpus"
# Seconds before the deadline of the start at which a rank that has not come is not waited for any more.
_SPARE = 10.0


class GpuViews:
    """What the ranks of a node say of their GPUs.

    Parameters
    ----------
    why_own : str, optional
        Why this agent is that of one rank alone, if it is.
    """

    def __init__(self, why_own: str | None) -> None:
        self._why_own = why_own
        self._views: dict[int, Sequence[str | None]] = {}
        self._news = asyncio.Event()

    def add(self, rank: int, environ: Mapping[str, str]) -> None:
        """Hear of a rank, whether it stays or not."""
        self._views[rank] = [environ.get(name) for name in GPU_VARIABLES]
        self._news.set()

    @property
    def differ(self) -> bool:
        """Whether two ranks see other GPUs."""
        views = list(self._views.values())
        return any(view != views[0] for view in views[1:])

    async def own(self, rank: Rank) -> bool | None:
        """Find out whether a rank's GPUs are its own; waits for the other ranks of the node that host workers.

        Returns
        -------
        bool or None
            `None` where there is no question: the launcher has said so, or there are no GPUs.
        """
        gpus = rank.environment.gpus(rank.environ)
        if gpus is None or not gpus.devices or gpus.bound is not None:
            return None
        if self._why_own is not None:
            return self._why_own == OWN_GPUS
        hosts = {other for other in rank.info.local_ranks if hosts_workers(rank.info, rank.settings, other)}
        while not self.differ and not hosts <= self._views.keys():
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._news.wait(), max(0.0, rank.deadline - _SPARE - time.monotonic()))
            if time.monotonic() >= rank.deadline - _SPARE:
                break
        return self.differ
