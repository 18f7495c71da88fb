"""A rank that is attached to an agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .rank import Rank

__all__ = ["LocalRank"]


@dataclass(eq=False)
class LocalRank:
    """A rank that is attached to this agent.

    Parameters
    ----------
    words : mapping
        What it says of itself; see `batchlet.node.inputs.of_this_rank`.
    rank : Rank
        Which one, with the settings of the latest block.
    cpus : tuple of int
        The CPUs that it is bound to.
    writer : StreamWriter
        The connection to it.
    nannies : list
        Its workers, once they are being started.
    gone : bool
        Whether the connection has ended.
    accepted : bool
        Whether it knows that it can wait.
    """

    words: Mapping[str, Any]
    rank: Rank
    cpus: tuple[int, ...]
    writer: asyncio.StreamWriter
    nannies: list[Any] = field(default_factory=list)
    gone: bool = False
    accepted: bool = False

    @property
    def name(self) -> str:
        """What the coordinator calls it."""
        return self.rank.participant

    def send(self, line: str) -> None:
        """Say something to the rank, if it is still there."""
        with contextlib.suppress(RuntimeError, OSError):
            self.writer.write(f"{line}\n".encode())
