"""What every batch system is asked: what its jobs do, what became of them, and how many of them are cancelled at once."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...environments.base import Environment
from ...launch_variables import MPI_LOCALNRANKS, MPI_LOCALRANKID

__all__ = [
    "Array", "BatchSystem", "Seen", "Spread", "State", "in_order", "listed", "moment", "number", "seconds", "signalled",
]  # fmt: skip

State = Literal["pending", "running", "ended", "failed", "unknown"]

# Set by whatever has started the client as one of many processes; a job that inherits them would take itself for one of those.
_LAUNCHED = (
    "BATCHLET_STEP_",
    "OMPI_",
    "PMI_",
    "PMIX_",
    "PRTE_",
    MPI_LOCALRANKID,
    MPI_LOCALNRANKS,
    "HYDI_",
    "HYDRA_",
    "MV2_",
    "PALS_",
    "JSM_",
)

# Which GPUs a process may use: another job has others.
_GPU_VARIABLES = Environment.gpu_variables


@dataclass(frozen=True)
class Seen:
    """What the batch system says of one job.

    Parameters
    ----------
    state : {"pending", "running", "ended", "failed", "unknown"}
        ``ended`` is an end with exit code 0, ``failed`` any other end, ``unknown`` a word that Batchlet does not know.
    word : str
        The system's own word for the state, such as ``"PENDING"``, ``"OUT_OF_MEMORY"`` or ``"Eqw"``.
    reason : str
        Why it pends or has failed, in the system's words; empty where the system does not say.
    exit_code : int, optional
        What the job's script has ended with; negative for the signal that ended it, `None` where the system does not say.
    node : str
        The (first) node of the job; may be empty.
    end : float, optional
        When it has ended or will be ended by the system, in seconds since 1970; `None` where the system does not say.
    stuck : bool
        Whether it will never start and yet stays in the queue until it is cancelled.
    """

    state: State
    word: str = ""
    reason: str = ""
    exit_code: int | None = None
    node: str = ""
    end: float | None = None
    stuck: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.state in ("ended", "failed")


@dataclass(frozen=True)
class Array:
    """How several jobs are submitted as one array.

    Parameters
    ----------
    directives : tuple of str
        What the job script's header says more, without the prefix such as ``#SBATCH``.
    variable : str
        What tells a job its number in the array.
    numbers : range
        These numbers.
    """

    directives: tuple[str, ...]
    variable: str
    numbers: range


@dataclass(frozen=True)
class Spread:
    """How one job has several nodes, with one process on each.

    Parameters
    ----------
    directives : tuple of str
        What the job script's header says more.
    skip : tuple of str
        What dask-jobqueue's own header must not say (its ``job_directives_skip``).
    command : tuple of str
        What starts a program once on each node of the job.
    """

    directives: tuple[str, ...]
    skip: tuple[str, ...]
    command: tuple[str, ...]


class BatchSystem(ABC):
    """What one batch system is asked, and how its answers are read. Runs nothing itself, has no state, and never raises.

    Each command is for all jobs of a cluster at once. The ids are those that the submit command has printed, as dask-jobqueue
    reads them, or those of `array_ids`; the parsers give these back.

    Attributes
    ----------
    name : str
        What `BatchletCluster` and ``--submit`` call it, and the section ``jobqueue.<name>`` of dask-jobqueue's configuration.
    title : str
        What people call it, for messages.
    job_class : str
        dask-jobqueue's class for its jobs: module and name.
    options : tuple of str
        Keywords that `directives` knows beyond those of dask-jobqueue.
    most_in_array : int
        How many jobs one array may have, as the system is set up by default; 0 where it has no arrays, or where nobody has
        tried them with Batchlet: jobs are submitted one by one then.
    settled_by_query : bool
        Whether `query` still tells of jobs that ended a short while ago.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    job_class: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    most_in_array: ClassVar[int] = 0
    settled_by_query: ClassVar[bool] = False

    @abstractmethod
    def query(self, job_ids: Sequence[str]) -> list[str]:
        """Give the command that tells what these jobs do."""

    @abstractmethod
    def parse(self, text: str) -> dict[str, Seen]:
        """Read what `query` has printed. A job that is not in it has left the queue; what makes no sense is passed over."""

    @abstractmethod
    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """Give the command that cancels these jobs, whether they pend or run."""

    def none_left(self, code: int, errors: str) -> bool:  # noqa: ARG002
        """Whether a `query` that failed with this exit code and these words says only that it knows none of the jobs."""
        return False

    def finished(self, job_ids: Sequence[str]) -> list[str] | None:  # noqa: ARG002
        """Give the command that tells what became of jobs that have left the queue; `None` where there is none."""
        return None

    def parse_finished(self, text: str) -> dict[str, Seen]:
        """Read what `finished` has printed."""
        return self.parse(text)

    def submit(self, script: str, logs: str | None) -> list[str] | None:  # noqa: ARG002
        """Give the command that submits a job script and prints the job's id; `None` for dask-jobqueue's own.

        Parameters
        ----------
        script : str
            The file; it is removed as soon as the command has ended.
        logs : str, optional
            Directory for the job's output.
        """
        return None

    def check(self, script: str) -> list[str] | None:  # noqa: ARG002
        """Give the command that has the system look at a job script without submitting it; `None` where there is none.

        It fails, with the system's words on its standard error or output, where the script would be refused.
        """
        return None

    def refused(self, code: int, output: str) -> bool:  # noqa: ARG002
        """Whether the command of `check` says, by its exit code and all that it has printed, that the job can never start."""
        return code != 0

    def private(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        """Name the variables that belong to the job or process in which the client runs, and to no job of its own."""
        within = self.within(environ)
        names = _LAUNCHED + (self.variables + _GPU_VARIABLES if within else ())
        prefixes = tuple(name for name in names if name.endswith("_"))
        return tuple(
            name
            for name in environ
            if (name.startswith(prefixes) or name in names or self.misleads(name)) and name not in self.kept
        )

    # The variables that the system sets in its jobs (what ends in "_" is the beginning of names), those of them that say where
    # the system is found, and the one that is set in every job.
    variables: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[frozenset[str]] = frozenset()
    mark: ClassVar[str] = ""

    def within(self, environ: Mapping[str, str]) -> bool:
        """Whether the client itself runs in a job of this system."""
        return bool(environ.get(self.mark)) if self.mark else False

    def misleads(self, name: str) -> bool:  # noqa: ARG002
        """Whether a variable would make the system's commands answer in another way than the parsers expect."""
        return False

    # Variables that make the commands answer as the parsers expect.
    added: ClassVar[Mapping[str, str]] = {}

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Give the environment in which the system's commands are run, the submit command among them."""
        private = set(self.private(environ))
        return {**{name: value for name, value in environ.items() if name not in private}, **self.added}

    def array(self, count: int) -> Array | None:  # noqa: ARG002
        """Say how so many jobs are one array; `None` where the system has none."""
        return None

    def array_logs(self, directory: str, name: str) -> tuple[str, ...]:  # noqa: ARG002
        """Give directives by which each job of an array has a log with its id in the name; none where it has one already."""
        return ()

    def array_ids(self, job_id: str, count: int) -> list[str]:
        """Give the id of each job of an array, in the order of its numbers, by the id that the submit command has printed."""
        array = self.array(count)
        return [self.array_id(job_id, number) for number in array.numbers] if array else [job_id]

    def array_id(self, job_id: str, number: int) -> str:
        """Give the id of one job of an array."""
        return f"{job_id}_{number}"

    def find(self, seen: Mapping[str, Seen], job_id: str) -> Seen | None:
        """Give what was seen of a job; where its whole array is told as one (Slurm does so when it has ended), that."""
        return seen.get(job_id) or seen.get(job_id.partition("_")[0])

    def spread(self, nodes: int, cores: int) -> Spread | None:  # noqa: ARG002
        """Say how one job has so many nodes of so many cores each; `None` where it can have only one."""
        return None

    def exact(self, memory: int) -> dict[str, str]:  # noqa: ARG002
        """Give dask-jobqueue's keywords that ask for so much memory, where it would itself ask for much more."""
        return {}

    def directives(
        self,
        cores: int,  # noqa: ARG002
        memory: int,  # noqa: ARG002
        own: Iterable[str] = (),  # noqa: ARG002
        **options: object,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Give the directives that dask-jobqueue's script lacks, without their prefix.

        Parameters
        ----------
        cores, memory : int
            What the job asks for on its node; bytes.
        own : iterable of str
            What the user's directives say already, and so is not said again.
        **options : object
            Those of the attribute `options` that the user has given.
        """
        return ()

    def gpus(self, count: int) -> tuple[str, ...] | None:  # noqa: ARG002
        """Give the directives by which a job gets so many GPUs on each node; `None` where each site has its own."""
        return None


def listed(text: str) -> list[dict[str, Any]]:
    """Read a list of objects in JSON; empty where the text is none, or one that was cut off."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def number(value: object) -> int | None:
    """Give a whole number, however it is written; `None` for anything else."""
    try:
        return int(str(value))
    except ValueError:
        return None


def signalled(code: int | None) -> int | None:
    """Give an exit code as Python has it, where the system has it as a shell: 128 and the signal's number."""
    return 128 - code if code is not None and 128 < code <= 128 + 64 else code


def seconds(text: str) -> int | None:
    """Read a duration: ``90``, ``1:30``, ``1:01:30`` or ``2:01:01:30``."""
    parts = text.strip().split(":")
    if not 1 <= len(parts) <= 4 or not all(part.isdecimal() for part in parts):
        return None
    return sum(int(part) * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


def moment(text: str, form: str) -> float | None:
    """Read a local time of this form (as of `time.strptime`), in seconds since 1970; `None` where it has another one."""
    try:
        return time.mktime(time.strptime(text.strip(), form))
    except (ValueError, OverflowError):
        return None


def in_order(job_ids: Iterable[str]) -> list[str]:
    """Give each id once, in a steady order."""
    return sorted(set(job_ids))
