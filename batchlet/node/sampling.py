"""Sampling: what the workers of a node use, looked at now and then, for at most a small part of one CPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..plan import Plan, WorkerPlan
from .process_use import use_of_process

__all__ = ["Pace", "Sampler", "Sampling", "death", "planned", "planned_here", "sampling"]

# Seconds between two samples: at first, and in the end. After so many the pause is doubled.
_FIRST, _LAST, _SAMPLES = 2.0, 16.0, 30
# So many nodes may speak to rank 0 within one second.
_NODES = 50
# The part of one CPU that looking may take.
_SHARE = 0.005

Told = list[tuple[str, dict[str, Any]]]
Hear = Callable[[Callable[[int, str], object]], Callable[[], None]]


class Pace:
    """How often to look: often at first, less often later; never more than looking may cost.

    Parameters
    ----------
    nodes : int
        How many processes do the same, and tell rank 0.
    """

    def __init__(self, nodes: int = 1) -> None:
        self._least = nodes / _NODES
        self._looks = 0
        self._cost = 0.0

    def looked(self, seconds: float) -> None:
        """Note what a look has cost, in CPU time."""
        self._looks += 1
        # A single slow look is not what they all cost.
        self._cost = seconds if self._looks == 1 else 0.7 * self._cost + 0.3 * seconds

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return float(max(min(_LAST, _FIRST * 2 ** (self._looks // _SAMPLES)), self._least, self._cost / _SHARE))


class Sampler:
    """Looks at the workers of a node in one block.

    Parameters
    ----------
    node : str
        Its name.
    processes : callable
        Gives the process id of each worker by its name, as they are now.
    """

    def __init__(self, node: str, processes: Callable[[], Mapping[str, int]]) -> None:
        self._node = node
        self._processes = processes
        # By worker and process: CPU seconds and the most memory that were seen of it. A worker that dies has several processes.
        self._seen: dict[str, dict[int, tuple[float, int]]] = {}
        self._deaths: dict[str, int] = {}

    def died(self, pid: int) -> None:
        """Note the death of a worker's process, of which the next one may never be seen: a block may end before it is there."""
        for name, seen in self._seen.items():
            if pid in seen:
                self._deaths[name] = self._deaths.get(name, 0) + 1

    def sample(self) -> Told:
        """Look, and give what is to be told of it."""
        now: dict[str, int] = {}
        for name, pid in self._processes().items():
            use = use_of_process(pid)
            if use is None:
                continue
            seen = self._seen.setdefault(name, {})
            peak = max(use.peak, use.memory, seen.get(pid, (0.0, 0))[1])
            seen[pid] = (use.cpu, peak)
            now[name] = use.memory
        workers = {
            name: [
                round(sum(cpu for cpu, _ in seen.values()), 2),
                now.get(name, 0),
                max(peak for _, peak in seen.values()),
                max(len(seen) - 1, self._deaths.get(name, 0)),
            ]
            for name, seen in self._seen.items()
        }
        return [("sample", {"node": self._node, "workers": workers})] if workers else []


def planned(plan: Plan, workers: Iterable[WorkerPlan]) -> Told:
    """Say what the plan of a node is, and which workers one of its agents hosts."""
    figures = {name: (figure.value, figure.source) for name, figure in plan.figures.items()}
    rows = [(str(worker.name), worker.rank, worker.threads, worker.memory) for worker in workers]
    return [("plan", {"node": plan.node, "figures": figures, "workers": rows})]


def planned_here(node: str, workers: Sequence[WorkerPlan]) -> Told:
    """Say which workers a node of a submitted job or of a guest hosts: they belong to none of the run's ranks."""
    rows = [(str(worker.name), None, worker.threads, worker.memory) for worker in workers]
    return [("plan", {"node": node, "figures": {}, "workers": rows})]


def death(text: str, node: str) -> tuple[str, dict[str, Any]]:
    """Say that a worker's process has died."""
    return "event", {"kind": "worker", "text": text, "node": node}


async def sampling(look: Callable[[], Told], tell: Callable[[Told], object], nodes: int) -> None:
    """Look and tell until this is cancelled, in an event loop.

    Parameters
    ----------
    look : callable
        Gives what is to be told.
    tell : callable
        Tells it.
    nodes : int
        How many do the same.
    """
    pace = Pace(nodes)
    while True:
        began = time.thread_time()
        told = look()
        if told:
            tell(told)
        pace.looked(time.thread_time() - began)
        await asyncio.sleep(pace.pause)


class Sampling:
    """The samples of an agent, block by block, in its event loop.

    Parameters
    ----------
    tell : callable
        Tells rank 0.
    """

    def __init__(self, tell: Callable[[Told], object]) -> None:
        self._tell = tell
        self._sampler: Sampler | None = None
        self._task: asyncio.Task[None] | None = None
        self._hear_no_more: Callable[[], None] = lambda: None

    def begin(
        self, node: str, processes: Callable[[], Mapping[str, int]], nodes: int, hear_deaths: Hear | None = None
    ) -> None:
        """Begin with the workers of a block.

        Parameters
        ----------
        node : str
            Name of this node.
        processes : callable
            See `Sampler`.
        nodes : int
            How many agents do the same.
        hear_deaths : callable, optional
            As in `batchlet.dask_backend.logs`; `None` where somebody else tells who has died.
        """
        if self._task is not None:
            self._task.cancel()
        self._sampler = sampler = Sampler(node, processes)
        self._task = asyncio.get_running_loop().create_task(sampling(sampler.sample, self._tell, nodes))
        self._hear_no_more()
        if hear_deaths is None:
            return

        def died(pid: int, text: str) -> None:
            sampler.died(pid)
            self._tell([death(text, node)])

        self._hear_no_more = hear_deaths(died)

    def end(self) -> None:
        """Look at the workers for the last time in this block, before they end."""
        self._hear_no_more()
        if self._task is not None and self._sampler is not None:
            self._task.cancel()
            self._task = None
            told = self._sampler.sample()
            if told:
                self._tell(told)
