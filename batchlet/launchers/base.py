"""What Batchlet needs of a program by which it starts ranks itself."""

from __future__ import annotations

import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

__all__ = ["Launcher"]


class Launcher(ABC):
    """A program that starts one rank on each node of an allocation, and stays until all of them have ended.

    Its own standard input goes to every rank, and what the ranks print comes out of it, line by line. A signal that it gets it
    passes on to the ranks.

    Attributes
    ----------
    name : str
        The program.
    ends : tuple of signal.Signals
        What is sent to it, one after the other, each time that it has not ended within ``stop_timeout``.
    """

    name: ClassVar[str]
    ends: ClassVar[tuple[signal.Signals, ...]] = (signal.SIGTERM, signal.SIGKILL)

    def is_there(self) -> bool:
        """Whether the program can be run here."""
        return shutil.which(self.name) is not None

    @abstractmethod
    def command(self, nodes: int, program: Sequence[str]) -> list[str]:
        """Give the command line that starts `program` once on each of so many nodes, with all that the job has there."""

    @abstractmethod
    def environ(self, environ: Mapping[str, str], client_node: str | None) -> dict[str, str]:
        """Give the environment in which the command is run.

        An environment of `batchlet.environments` must find in it, on each rank, who that is and what its node may use.

        Parameters
        ----------
        environ : mapping of str to str
            The environment of the client.
        client_node : str, optional
            The node of the client; `None` where that is outside the allocation.
        """

    def missing(self, job: str) -> str:
        """Say, for the error message, that the program cannot be run, and what to do."""
        return (
            f"This is {job}, but {self.name} is not on the PATH, so the other nodes cannot be used. "
            'Make it available, or use this node alone with mode="local" (BATCHLET_DASK_CLUSTER__MODE=local).'
        )

    def failed(self, job: str, code: int) -> str:
        """Say, for the error message, that the program has ended before the ranks were there."""
        return (
            f"{self.name} could not start the cluster's step in {job} (exit code {code}); its own message is above. "
            'To use this node alone: mode="local" (BATCHLET_DASK_CLUSTER__MODE=local).'
        )

    def late(self, job: str, seconds: float) -> str:
        """Say, for the error message, that the ranks did not come in time."""
        return (
            f"The cluster's step in {job} did not start within {seconds:g} s (start_timeout). "
            "Are the job's CPUs or memory taken by another step?"
        )
