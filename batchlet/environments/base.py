"""What every launcher's environment tells: who this process is, and what it was granted."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from ..errors import LauncherError
from ..gpus import GPU_VARIABLES, NO_GPUS, Gpus, granted
from ..launch_variables import FLUX_JOB_ID, SLURM_JOB_ID, whole_number
from ..launchers.base import Launcher

__all__ = [
    "OVERSUBSCRIBED",
    "Environment",
    "Figure",
    "Grant",
    "ProcessInfo",
    "expand_counts",
    "only_amd",
    "read_int",
    "read_ints",
]

# Ends the source of a number of CPUs that is a number of ranks: the user asked for more ranks than there are CPUs.
OVERSUBSCRIBED = "(oversubscribed)"

# Variables of batch systems in whose jobs a GPU that no variable names is somebody else's.
_JOBS = (SLURM_JOB_ID, "PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "JOB_ID", FLUX_JOB_ID, "_CONDOR_SCRATCH_DIR")

Number = TypeVar("Number", int, float, str)


@dataclass(frozen=True)
class Figure(Generic[Number]):
    """A number, or a word, and where it came from.

    Parameters
    ----------
    value : int, float or str
        The number: bytes for memory, a count for CPUs.
    source : str
        The variable, file or command that said so.
    """

    value: Number
    source: str


@dataclass(frozen=True)
class ProcessInfo:
    """Who this process is among the processes of its run.

    Parameters
    ----------
    mode : str
        Name of the environment that said so.
    rank, world_size : int
        This process's number, from 0, and how many there are.
    node : str
        Name of this node.
    nodes : int
        Number of nodes of the run.
    local_ranks : tuple of int
        The ranks on this node, ascending.
    run_id : str
        The same on all ranks of the run, different for any other run of the same user. Safe as a file name.
    job : str
        What a person calls this job, such as ``"job 4242.0"``; may be empty.
    client_rank : int, optional
        The rank that is the client; `None` where the client is outside the ranks (an allocation without srun).
    extra_clients : int
        Clients on this node that are not one of its ranks.
    slots : int, optional
        Tasks that the user asked for on this node, where the launch has fewer ranks than that.
    gpus_by_rank : bool
        Whether each rank, those of the scheduler and the client too, has GPUs that no other one can use.
    """

    mode: str
    rank: int
    world_size: int
    node: str
    nodes: int
    local_ranks: tuple[int, ...]
    run_id: str
    job: str = ""
    client_rank: int | None = 1
    extra_clients: int = 0
    slots: int | None = None
    gpus_by_rank: bool = False


@dataclass(frozen=True)
class Grant:
    """What the launcher says that this node may use; `None` where it says nothing.

    Parameters
    ----------
    cpus : Figure of int, optional
        CPUs of this node, for all the ranks on it together.
    memory : Figure of int, optional
        Bytes of this node, for all the ranks on it together.
    gpus : Gpus, optional
        GPUs of this node, or of this rank. Where the launcher says nothing, nobody else uses the host's.
    """

    cpus: Figure[int] | None = None
    memory: Figure[int] | None = None
    gpus: Gpus | None = None


class Environment(ABC):
    """One way in which processes get started. Reads only the mapping it is given; but for `keep_exit_code` changes nothing.

    Three methods are a must; all others answer for a place of which nothing more is known.

    Attributes
    ----------
    name : str
        What ``mode`` calls it.
    title : str
        Name of the system that runs the jobs, for messages; may be empty.
    gpu_variables : tuple of str
        Variables that say which GPUs a process may use. Where the ranks of a node differ in them, each one's workers live in
        processes of its own.
    rendezvous : tuple of str
        Ways for the ranks to meet, the best one first; see `batchlet.settings.RENDEZVOUS`.
    knows_layout : bool
        Whether `process` knows which ranks are on this node, rather than having to guess.
    ends_all : bool
        Whether the launcher ends all ranks as soon as the first one fails.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    gpu_variables: ClassVar[tuple[str, ...]] = (*GPU_VARIABLES, "NVIDIA_VISIBLE_DEVICES")
    rendezvous: ClassVar[tuple[str, ...]] = ("file",)
    knows_layout: ClassVar[bool] = True
    ends_all: ClassVar[bool] = False

    @abstractmethod
    def detect(self, environ: Mapping[str, str]) -> str | None:
        """Say why the process was started this way, or `None` if it was not."""

    @abstractmethod
    def process(self, environ: Mapping[str, str]) -> ProcessInfo:
        """Read who this process is.

        Raises
        ------
        LauncherError
            If a variable is missing or malformed.
        """

    @abstractmethod
    def grant(self, environ: Mapping[str, str]) -> Grant:
        """Read what this node may use.

        Raises
        ------
        LauncherError
            If a variable is malformed.
        """

    def gpus(self, environ: Mapping[str, str]) -> Gpus | None:
        """Read which GPUs this process may use; `None` where no variable says so and no job has the host to itself."""
        if any(name in environ for name in GPU_VARIABLES):
            return granted(environ, amd=only_amd())
        return NO_GPUS if any(environ.get(name) for name in _JOBS) else None

    def identity(self, environ: Mapping[str, str]) -> ProcessInfo:
        """Read who this process is, and whether its GPUs are its own."""
        gpus = self.gpus(environ)
        return replace(self.process(environ), gpus_by_rank=bool(gpus is not None and gpus.bound))

    def granted(self, environ: Mapping[str, str]) -> Grant:
        """Read what this node may use, GPUs included."""
        return replace(self.grant(environ), gpus=self.gpus(environ))

    def nodes(self, environ: Mapping[str, str]) -> list[tuple[ProcessInfo, Grant]]:
        """Give what can be known from here of the run's nodes, each as its first rank would see it: for `--plan`."""
        return [(self.identity(environ), self.granted(environ))]

    def expected_nodes(self, environ: Mapping[str, str]) -> Mapping[int, str]:  # noqa: ARG002
        """Say on which node each rank should be, as far as the launcher tells; for messages about ranks that are missing."""
        return {}

    def ask(self, environ: Mapping[str, str]) -> Mapping[str, Figure[int]]:  # noqa: ARG002
        """Ask the launcher for the memory of every node (bytes, by node name); one process per run does so."""
        return {}

    def is_first(self, environ: Mapping[str, str]) -> bool | None:  # noqa: ARG002
        """Say whether this process prints what all ranks would, even where `process` refuses the variables.

        Returns
        -------
        bool or None
            `None` if that cannot be told: then every process does.
        """
        return None

    def output_is_shared(self, environ: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Whether what a process prints into a pipe may end where other users can read it."""
        return False

    def login_host(self, environ: Mapping[str, str]) -> str | None:  # noqa: ARG002
        """Name the host through which the nodes can be reached from outside; `None` if that is not known."""
        return None

    def scratch_directories(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        """Name directories for scratch on this node, the best one first; the system's temporary directory comes after them."""
        return (environ["TMPDIR"],) if environ.get("TMPDIR") else ()

    def binds_gpus_by_task(self, environ: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Whether each rank may have GPUs that no other rank of its node can use, whatever the variables say."""
        return False

    def launcher(self, environ: Mapping[str, str]) -> Launcher | None:  # noqa: ARG002
        """Give what starts the ranks; `None` where they have been started already, or none is needed."""
        return None

    def keep_exit_code(self, environ: Mapping[str, str]) -> None:  # noqa: B027
        """Do what it takes for the launcher to see the exit code of this process, a client that ends after a signal."""

    def task_environ(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Give the environment for the user's code: the rank's own, without what was meant for Batchlet."""
        return environ


def only_amd() -> bool:
    """Whether this host has AMD's GPUs, and none of NVIDIA's."""
    return Path("/dev/kfd").exists() and not Path("/dev/nvidiactl").exists()


def read_int(environ: Mapping[str, str], *names: str, least: int = 0) -> int:
    """Read a whole number from the first of `names` that is set.

    Raises
    ------
    LauncherError
        If none is set, or the value is not a whole number of at least `least`.
    """
    for name in names:
        if name in environ:
            number = whole_number(environ[name])
            if number is None or number < least:
                raise LauncherError(
                    f"{name}={environ[name]!r} is malformed: expected a whole number of at least {least}. "
                    f"The launcher sets it; unset it or start the script with srun or mpirun again."
                )
            return number
    raise LauncherError(
        f"{' or '.join(names)} is not set, though the launcher's other variables are: "
        "was the environment passed on in part? Start the script directly with srun or mpirun."
    )


def read_ints(environ: Mapping[str, str], name: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas: ``"0,1,2"``."""
    numbers = [whole_number(part) for part in environ[name].split(",")]
    if None in numbers:
        raise LauncherError(
            f"{name}={environ[name]!r} is malformed: expected whole numbers separated by commas, such as 0,1,2."
        )
    return tuple(number for number in numbers if number is not None)


def expand_counts(environ: Mapping[str, str], name: str) -> tuple[int, ...]:
    """Read Slurm's compressed counts, one per node: ``"2(x3),1"`` is (2, 2, 2, 1).

    Raises
    ------
    LauncherError
        If the value has another form.
    """
    counts: list[int] = []
    for part in environ[name].strip().split(","):
        # Counts of at most seven digits: a typing error must not make a list that fills the memory.
        match = re.fullmatch(r"(\d{1,7})(?:\(x(\d{1,7})\))?", part)
        if match is None or match[2] == "0":
            raise LauncherError(
                f"{name}={environ[name]!r} is malformed: expected counts per node in Slurm's form, such as 2(x3),1."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)
