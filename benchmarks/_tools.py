"""What is compared: the tools, the shapes of a launch, and the command that starts one in the other."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREFIX = "BATCHLET_DASK_CLUSTER__"


@dataclass(frozen=True)
class Shape:
    """How large a run is: nodes, ranks on all of them together, CPUs of each rank."""

    nodes: int
    ranks: int
    cpus: int = 1

    @property
    def all_cpus(self) -> int:
        return self.ranks * self.cpus

    def __str__(self) -> str:
        each = f" x {self.cpus} CPUs" if self.cpus > 1 else ""
        return f"{self.ranks} ranks{each} on {self.nodes} node{'s' if self.nodes > 1 else ''}"


@dataclass(frozen=True)
class Tool:
    """One way to get a cluster.

    Parameters
    ----------
    name, title : str
        For the command line, and for people.
    program : str
        The script in programs/.
    launcher : str
        "srun", "mpirun" or "local", which is none.
    module : bool
        Whether the script is run by ``python -m batchlet``.
    one_rank : bool
        Whether a node gets one rank with all its CPUs, which hosts as many workers as there would be ranks.
    needs : tuple of str
        The packages without which it cannot be measured.
    variables : tuple of tuple of str
        Its settings.
    """

    name: str
    title: str
    program: str
    launcher: str = "srun"
    module: bool = False
    one_rank: bool = False
    needs: tuple[str, ...] = ("batchlet",)
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def is_batchlet(self) -> bool:
        return "batchlet" in self.needs

    @property
    def secure(self) -> bool:
        """Whether its connections are encrypted."""
        return self.is_batchlet and dict(self.variables).get(f"{PREFIX}SECURITY") != "false"

    def missing(self) -> str:
        """Say what it lacks on this machine, or nothing."""
        lacking = [name for name in self.needs if find_spec(name) is None]
        if self.launcher == "mpirun" and shutil.which("mpirun", path=search_path()) is None:
            lacking.append("mpirun")
        return f"not installed: {', '.join(lacking)}" if lacking else ""

    def workers(self, shape: Shape) -> int:
        """Give the number of workers that it makes of a launch: the scheduler and the client cost each tool a rank each.

        Batchlet lets them work where they have a node for themselves.
        """
        works = self.one_rank or shape.ranks == shape.nodes
        return shape.ranks if self.is_batchlet and works else shape.ranks - 2

    def environ(self, shape: Shape) -> dict[str, str]:
        """Give the variables of its own."""
        found = dict(self.variables)
        if self.one_rank:
            found[f"{PREFIX}WORKERS_PER_NODE"] = str(shape.ranks // shape.nodes)
        if self.launcher == "mpirun":
            # Open MPI wants to be told that root is meant.
            found |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return found

    def command(self, shape: Shape, job: str, times: Path) -> list[str]:
        """Give the command that runs it as a job of this name and notes the times in a file."""
        program = [sys.executable, *(("-m", "batchlet") if self.module else ()), str(HERE / "programs" / self.program)]
        launch = [sys.executable, str(HERE / "_launch.py"), str(times)]
        if self.launcher == "local":
            return [*launch, *program]
        if self.one_rank:
            shape = Shape(shape.nodes, shape.nodes, shape.all_cpus // shape.nodes)
        each = shape.ranks // shape.nodes
        size = [
            f"--nodes={shape.nodes}",
            f"--ntasks={shape.ranks}",
            f"--ntasks-per-node={each}",
            f"--cpus-per-task={shape.cpus}",
        ]
        # Left alone, Open MPI binds a rank to one core of a machine that has fewer of them than the nodes claim.
        mpirun = ["mpirun", "-n", str(shape.ranks), "--map-by", f"ppr:{each}:node:oversubscribe", "--bind-to", "none"]
        start = ["srun", *size] if self.launcher == "srun" else mpirun
        return ["salloc", "--quiet", f"--job-name={job}", *size, *launch, *start, *program]


def search_path() -> str:
    """Give a PATH on which this Python's own programs come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


#: The one that the others are compared with.
BASE = "slurmrunner"
TOOLS = {
    tool.name: tool
    for tool in (
        Tool(BASE, "SLURMRunner", "with_slurm_runner.py", needs=("dask_jobqueue",)),
        Tool("dask-mpi", "dask-mpi (mpirun)", "with_dask_mpi.py", "mpirun", needs=("dask_mpi", "mpi4py")),
        Tool("batchlet-early", "Batchlet, imports on top, batchlet.early", "with_batchlet_early.py"),
        Tool("batchlet-above", "Batchlet, imports on top, ordinary import", "with_batchlet_above.py"),
        Tool("batchlet", "Batchlet, imports below `with`", "with_batchlet.py"),
        Tool("batchlet-m", "python -m batchlet", "unmodified.py", module=True),
        Tool("batchlet-node", "Batchlet, one rank per node", "with_batchlet.py", one_rank=True),
        Tool("batchlet-mpirun", "Batchlet (mpirun)", "with_batchlet.py", "mpirun", needs=("batchlet", "mpi4py")),
    )
}
