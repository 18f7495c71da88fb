"""The launchers' variables, by the names that the launchers give them, and what these alone tell.

The one place for a variable's name and for the rules that two parts of Batchlet must agree on: `batchlet.environments`, which
reads who a process is, and `batchlet.node.attach`, where hundreds of ranks find out at the same moment that they have only to
wait. For their sake this module imports nothing at all.

Slurm's variables: srun(1), section "OUTPUT ENVIRONMENT VARIABLES". Those of Open MPI 5 and of MPICH 4 were captured from real
runs, the other launchers' are those that their documentation names.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MPI_LAUNCHERS",
    "first_set",
    "mpi_launcher",
    "mpi_variables",
    "reserved_step",
    "slurm_worker_rank",
    "whole_number",
]

SLURM_CLUSTER_NAME = "SLURM_CLUSTER_NAME"
SLURM_CPUS_ON_NODE = "SLURM_CPUS_ON_NODE"
SLURM_DISTRIBUTION = "SLURM_DISTRIBUTION"
SLURM_GPUS_ON_NODE = "SLURM_GPUS_ON_NODE"
SLURM_GPUS_PER_TASK = "SLURM_GPUS_PER_TASK"
SLURM_GTIDS = "SLURM_GTIDS"
SLURM_JOB_CPUS_PER_NODE = "SLURM_JOB_CPUS_PER_NODE"
SLURM_JOB_END_TIME = "SLURM_JOB_END_TIME"
SLURM_JOB_ID = "SLURM_JOB_ID"
SLURM_JOBID = "SLURM_JOBID"
SLURM_JOB_NODELIST = "SLURM_JOB_NODELIST"
SLURM_JOB_START_TIME = "SLURM_JOB_START_TIME"
SLURM_JOB_NUM_NODES = "SLURM_JOB_NUM_NODES"
SLURM_LOCALID = "SLURM_LOCALID"
SLURM_MEM_PER_CPU = "SLURM_MEM_PER_CPU"
SLURM_MEM_PER_GPU = "SLURM_MEM_PER_GPU"
SLURM_MEM_PER_NODE = "SLURM_MEM_PER_NODE"
SLURM_NNODES = "SLURM_NNODES"
SLURM_NODEID = "SLURM_NODEID"
SLURM_NTASKS = "SLURM_NTASKS"
SLURM_PROCID = "SLURM_PROCID"
SLURM_RESTART_COUNT = "SLURM_RESTART_COUNT"
SLURM_STEP_GPUS = "SLURM_STEP_GPUS"
SLURM_STEP_ID = "SLURM_STEP_ID"
SLURM_STEPID = "SLURM_STEPID"
SLURM_STEP_NODELIST = "SLURM_STEP_NODELIST"
SLURM_STEP_NUM_NODES = "SLURM_STEP_NUM_NODES"
SLURM_STEP_NUM_TASKS = "SLURM_STEP_NUM_TASKS"
SLURM_STEP_TASKS_PER_NODE = "SLURM_STEP_TASKS_PER_NODE"
SLURM_SUBMIT_HOST = "SLURM_SUBMIT_HOST"
SLURM_TASKS_PER_NODE = "SLURM_TASKS_PER_NODE"
SLURM_TMPDIR = "SLURM_TMPDIR"
SLURM_TRES_PER_TASK = "SLURM_TRES_PER_TASK"
SLURMD_NODENAME = "SLURMD_NODENAME"
FLUX_JOB_ID = "FLUX_JOB_ID"
MPI_LOCALNRANKS = "MPI_LOCALNRANKS"
MPI_LOCALRANKID = "MPI_LOCALRANKID"

# What names a task's step and node, unlike those of any other step of the user.
SLURM_STEP_NAMES = (SLURM_CLUSTER_NAME, SLURM_JOB_ID, SLURM_STEP_ID, SLURM_RESTART_COUNT, SLURMD_NODENAME)
# What of the job the ranks of a step need to know that Batchlet starts itself in an allocation. srun would take these as
# options for the step, so they come under names of ours: this prefix and the name.
STEP_PREFIX = "BATCHLET_STEP_"
SLURM_JOB_FIGURES = (SLURM_TASKS_PER_NODE, SLURM_MEM_PER_NODE, SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU)
# Marks such a step: the node of its client, nothing if that is outside the allocation.
STEP_CLIENT_NODE = STEP_PREFIX + "CLIENT_NODE"

# slurm.h: the batch script, salloc's interactive shell and other helpers run in steps numbered from here on.
_RESERVED_STEPS = 0xFFFFFF00
# slurm.h: a step's number has 32 bits. No other number of a launcher has more digits either.
_MOST_DIGITS = 10

# name, rank, size, local rank, local size, number of nodes, name of the run; of several names for one thing the first that is
# set counts. In this order: jsrun and Flux also set PMI_* or PMIX_*, for the MPI library; Cray's PALS sets PMI_SIZE beside its
# own.
MPI_LAUNCHERS = (
    (
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        "",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    (
        "MVAPICH2",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
        "",
        (),
    ),
    (
        "jsrun",
        "JSM_NAMESPACE_RANK",
        ("JSM_NAMESPACE_SIZE",),
        ("JSM_NAMESPACE_LOCAL_RANK",),
        ("JSM_NAMESPACE_LOCAL_SIZE",),
        "",
        ("PMIX_NAMESPACE",),
    ),
    (
        "PALS",
        "PALS_RANKID",
        ("PALS_SIZE", "PMI_SIZE"),
        ("PALS_LOCAL_RANKID",),
        ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
        "",
        ("PALS_APID",),
    ),
    ("Flux", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",), ("FLUX_TASK_LOCAL_ID",), (), "FLUX_JOB_NNODES", (FLUX_JOB_ID,)),
    (
        "MPICH",
        "PMI_RANK",
        ("PMI_SIZE",),
        (MPI_LOCALRANKID, "PMI_LOCAL_RANK"),
        (MPI_LOCALNRANKS, "PMI_LOCAL_SIZE"),
        "",
        ("PMI_JOBID",),
    ),
    # Without OMPI_COMM_WORLD_*: PRRTE's own `prun`. It sets no size.
    ("PMIx", "PMIX_RANK", ("PMIX_SIZE",), (), (), "", ("PMIX_NAMESPACE",)),
)


def whole_number(text: "str | None") -> "int | None":
    """Read a number as launchers write it; `None` if it is none.

    Parameters
    ----------
    text : str or None
        The value of a variable, `None` where that is not set.
    """
    if text is None:
        return None
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def first_set(environ: "Mapping[str, str]", names: "tuple[str, ...]") -> str:
    """Give the first of `names` that is set, "" if none is."""
    for name in names:
        if name in environ:
            return name
    return ""


def mpi_variables(environ: "Mapping[str, str]") -> "str | None":
    """Name the MPI launcher whose variables are there, whoever has set them; `None` if none's are."""
    for row in MPI_LAUNCHERS:
        if row[1] in environ:
            return row[0]
    return None


def mpi_launcher(environ: "Mapping[str, str]") -> "str | None":
    """Name the MPI launcher that has started this process; `None` if none has.

    What ``srun --mpi=pmi2`` or ``--mpi=pmix`` sets for its own tasks is Slurm's: rank and size are those of the task. Inside
    mpirun's ranks Slurm's variables are those of the batch script or of the launcher's daemons, each of which is one task.
    """
    for name, rank, sizes, *_ in MPI_LAUNCHERS:
        if rank not in environ:
            continue
        if name in ("MPICH", "PMIx") and SLURM_STEP_ID in environ and MPI_LOCALRANKID not in environ:
            size = first_set(environ, sizes)
            same_size = not size or environ[size] == environ.get(SLURM_STEP_NUM_TASKS)
            if same_size and environ[rank] == environ.get(SLURM_PROCID):
                return None
        return name
    return None


def reserved_step(step: str) -> bool:
    """Whether a step is none of tasks: the batch script's own, or that of salloc's shell."""
    number = whole_number(step)
    return number is not None and number >= _RESERVED_STEPS


def slurm_worker_rank(environ: "Mapping[str, str]") -> "int | None":
    """Give the rank of a process which is plainly a worker rank of a Slurm step; `None` if it may be anything else.

    Whenever this gives a rank, `batchlet.environments.select` finds the Slurm step, whose `process` either gives the same rank
    or raises `LauncherError`.
    """
    step = whole_number(environ.get(SLURM_STEP_ID))
    if step is None or step >= _RESERVED_STEPS or STEP_CLIENT_NODE in environ or mpi_launcher(environ) is not None:
        return None
    rank = whole_number(environ.get(SLURM_PROCID))
    tasks = whole_number(environ.get(first_set(environ, (SLURM_STEP_NUM_TASKS, SLURM_NTASKS))))
    return rank if rank is not None and tasks is not None and 2 <= rank < tasks else None
