"""MPI launchers: the processes that ``mpirun``, ``mpiexec``, ``jsrun`` or ``flux run`` started, told by their variables.

Nothing here imports MPI. The table of the launchers' variables is `batchlet.launch_variables.MPI_LAUNCHERS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import LauncherError
from ..launch_variables import (
    MPI_LAUNCHERS,
    SLURM_CPUS_ON_NODE,
    SLURM_JOB_CPUS_PER_NODE,
    SLURM_JOB_ID,
    SLURM_JOB_NODELIST,
    SLURM_RESTART_COUNT,
    SLURMD_NODENAME,
    first_set,
    mpi_launcher,
    mpi_variables,
    whole_number,
)
from .base import OVERSUBSCRIBED, Figure, Grant, ProcessInfo, expand_counts, read_int
from .batch_jobs import job_grant
from .slurm import SlurmStep, WithinSlurm, node_memory

__all__ = ["Mpi"]

# Between a rank and its launcher there are at most a few shells and wrappers.
_MOST_ANCESTORS = 6
_LAUNCHER_PROGRAM = re.compile(
    r"mpirun|mpiexec|prte|orte|pmi_proxy|bstrap_proxy|mpispawn|flux-shell|palsd|jsmd|slurmstepd"
)
# A typing error must not make a list of ranks that fills the memory.
_MOST_RANKS = 10_000_000
# Seconds for which a client that a signal has ended keeps its output open for MPICH's launcher; see `_linger`.
_STDOUT_LINGERS, _STDERR_LINGERS = 0.2, 0.4
_LINGERING: list[int] = []
# Variables of batch systems other than Slurm that name the job.
_JOB_IDS = ("PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "JOB_ID")


@dataclass(frozen=True)
class _Launcher:
    """A line of `MPI_LAUNCHERS`."""

    name: str
    rank: str
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]
    nodes: str
    run: tuple[str, ...]


_LAUNCHERS = {row[0]: _Launcher(*row) for row in MPI_LAUNCHERS}


class Mpi(WithinSlurm):
    """A process that an MPI launcher started.

    Inside a Slurm job too: there Slurm's variables are those of the batch script or of the launcher's daemons, each of
    which is one task of a step. But what ``srun --mpi=pmi2`` or ``--mpi=pmix`` sets for its own tasks is Slurm's.
    """

    name: ClassVar[str] = "mpi"
    rendezvous: ClassVar[tuple[str, ...]] = ("mpi", "file")
    # No launcher lists the ranks of a node.
    knows_layout: ClassVar[bool] = False
    ends_all: ClassVar[bool] = True

    def detect(self, environ: Mapping[str, str]) -> str | None:
        """Say which variable tells of an MPI launcher."""
        name = mpi_launcher(environ)
        if name is None:
            return None
        rank = _LAUNCHERS[name].rank
        return f"{rank}={environ[rank]}"

    def process(self, environ: Mapping[str, str]) -> ProcessInfo:
        """Read rank, world and node; see the base class.

        The ranks of this node are a guess, right for ranks in blocks (the first node has the first ranks), because no
        launcher lists them; `batchlet.rendezvous.MpiRendezvous.layout` knows them. Where not even their number is known,
        all ranks are taken to share one node, so that none of them takes more than its share.

        The run's name rests on what the launcher calls the run (Open MPI, PMIx: name of the host and process id of
        mpirun, or a hash of both; PALS, Flux: an identifier of the application), else, with MPICH, on the host and port
        at which mpiexec listens, which its proxies, the parents of all ranks, have as an argument. Such a name can come
        again after the run has ended. Where neither is found: on the batch job, the directory, the script and its
        arguments, which two concurrent runs may share.
        """
        launcher = _find(environ)
        if launcher is None:
            names = " or ".join(launcher.rank for launcher in _LAUNCHERS.values())
            raise LauncherError(f"No MPI launcher was found: {names} is not set. Start the script with mpirun.")
        rank = read_int(environ, launcher.rank)
        if not any(name in environ for name in launcher.size):
            raise LauncherError(
                f"{launcher.rank}={rank} is set, but {' or '.join(launcher.size)} is not, so the number of ranks is unknown. "
                'Start the script with mpirun or srun; if it was started alone, use mode="local" '
                "(BATCHLET_DASK_CLUSTER__MODE=local)."
            )
        size = read_int(environ, *launcher.size, least=1)
        if size > _MOST_RANKS:
            raise LauncherError(
                f"{first_set(environ, launcher.size)}={size} cannot be: no launcher starts so many ranks."
            )
        if rank >= size:
            raise LauncherError(
                f"{launcher.rank}={rank} cannot be: there are {size} ranks, numbered from 0 "
                f"({first_set(environ, launcher.size)}). Was the environment changed after {launcher.name} started the script?"
            )
        local_size, nodes = _local_size(launcher, environ, size)
        return ProcessInfo(
            mode=self.name,
            rank=rank,
            world_size=size,
            node=_node(),
            nodes=nodes,
            local_ranks=_block(rank, size, local_size, _local_rank(launcher, environ, local_size)),
            run_id=_run_id(launcher, environ),
            job=_title(launcher, environ)
            + (f" in Slurm job {environ[SLURM_JOB_ID]}" if SLURM_JOB_ID in environ else ""),
        )

    def grant(self, environ: Mapping[str, str]) -> Grant:
        """Read what this node may use; see the base class.

        An MPI launcher grants slots, not CPUs, so mostly the host and the CPU affinity decide. But a rank that is bound to
        CPUs of its own sees only these: the ranks of the node together have as many times more, up to what the launcher
        itself may use. And with more ranks than CPUs (``mpirun --oversubscribe``), each rank gets one nevertheless.
        """
        launcher = _find(environ)
        local_size, variable = 1, ""
        if launcher is not None and (variable := first_set(environ, launcher.local_size)):
            local_size = read_int(environ, variable, least=1)
        cpus = _slurm_cpus(environ) if SLURM_JOB_ID in environ else None
        memory = None
        if cpus is not None:
            memory = node_memory(environ, cpus.value)
            here = cpus.value
        else:
            own, launchers = _affinity(), _launcher_affinity()
            here = min(launchers, own * local_size)
            if own < here:
                whole = here == launchers
                each = f"CPU affinity ({own} for each of {local_size} ranks)"
                cpus = Figure(here, "CPU affinity of the launcher" if whole else each)
            granted = job_grant(environ)
            memory = granted.memory
            if granted.cpus is not None and granted.cpus.value < here:
                cpus, here = granted.cpus, granted.cpus.value
        if local_size > here:
            cpus = Figure(local_size, f"{variable} {OVERSUBSCRIBED}")
        return Grant(cpus, memory)

    def ask(self, environ: Mapping[str, str]) -> Mapping[str, Figure[int]]:
        """Ask Slurm for the memory of every node, inside a Slurm job."""
        return SlurmStep().ask(environ)

    def keep_exit_code(self, environ: Mapping[str, str]) -> None:
        """See the base class; only MPICH's launcher needs help."""
        if mpi_launcher(environ) == "MPICH" and not _LINGERING:
            _linger()

    def is_first(self, environ: Mapping[str, str]) -> bool | None:
        """See the base class; true for every process whose rank cannot be read: one of them must speak."""
        launcher = _find(environ)
        return None if launcher is None else not whole_number(environ[launcher.rank])


def _linger() -> None:
    """Keep the output of this process open until a moment after its end.

    MPICH's ``hydra_pmi_proxy`` (4.0.2), if it has passed on a signal, takes a rank that has used MPI for one that ended with 0
    unless it finds it ended while some rank of the node still has its output open. It looks whenever an output is closed,
    for one rank each time. Ranks that do no more than use MPI and exit with 143 are enough to have mpiexec end with 0, in
    some of the runs; without the signal, or without MPI, it ends with 143 in all of them.
    """
    reader, writer_for_life = os.pipe()
    for stream, seconds in (("stdout", _STDOUT_LINGERS), ("stderr", _STDERR_LINGERS)):
        other = "stderr" if stream == "stdout" else "stdout"
        with contextlib.suppress(OSError):
            # Reads until this process is gone. A session of its own: mpiexec sends signals to the rank's group.
            holder = subprocess.Popen(
                ["/bin/sh", "-c", f"read -r line; exec sleep {seconds}"],
                stdin=reader,
                start_new_session=True,
                **{other: subprocess.DEVNULL},  # type: ignore[call-overload]
            )
            holder.returncode = 0  # it outlives this process, and nobody waits for it
    os.close(reader)
    _LINGERING.append(writer_for_life)


def _find(environ: Mapping[str, str]) -> _Launcher | None:
    """The launcher whose variables are there, which may be srun's: ``mode="mpi"`` takes them as they are."""
    name = mpi_variables(environ)
    return None if name is None else _LAUNCHERS[name]


def _local_size(launcher: _Launcher, environ: Mapping[str, str], size: int) -> tuple[int, int]:
    """How many ranks this node has, and how many nodes there may be."""
    nodes = read_int(environ, launcher.nodes, least=1) if launcher.nodes in environ else 0
    variable = first_set(environ, launcher.local_size)
    if variable:
        local_size = read_int(environ, variable, least=1)
        if local_size > size:
            raise LauncherError(
                f"{variable}={local_size} cannot be: there are {size} ranks in all ({first_set(environ, launcher.size)})."
            )
    else:
        local_size = math.ceil(size / (nodes or 1))
    return local_size, nodes or math.ceil(size / local_size)


def _local_rank(launcher: _Launcher, environ: Mapping[str, str], local_size: int) -> int | None:
    variable = first_set(environ, launcher.local_rank)
    if not variable:
        return None
    local_rank = read_int(environ, variable)
    if local_rank >= local_size and first_set(environ, launcher.local_size):
        raise LauncherError(
            f"{variable}={local_rank} cannot be: there are {local_size} ranks on this node, numbered from 0 "
            f"({first_set(environ, launcher.local_size)})."
        )
    return local_rank


def _block(rank: int, size: int, local_size: int, local_rank: int | None) -> tuple[int, ...]:
    """The ranks of this node if the nodes have blocks of ranks."""
    if local_rank is None or size % local_size == 0:
        # Blocks of the same size. The local rank could mislead: Open MPI 5 may count 0, 2, 1, 3 (seen).
        local_rank = rank % local_size
    first = max(0, min(rank - local_rank, size - local_size))
    return tuple(range(first, first + local_size))


def _node() -> str:
    # Not SLURMD_NODENAME: MPICH's mpiexec hands the environment of the first node to all of them.
    return socket.gethostname().split(".")[0]


def _title(launcher: _Launcher, environ: Mapping[str, str]) -> str:
    # Intel MPI has MPICH's launcher, started by a script of its own.
    return "Intel MPI" if launcher.name == "MPICH" and "I_MPI_MPIRUN" in environ else launcher.name


def _run_id(launcher: _Launcher, environ: Mapping[str, str]) -> str:
    """Name the run; what it rests on stands at `Mpi.process`."""
    parts = ["mpi"]
    if SLURM_JOB_ID in environ:
        parts.append(f"slurm{environ[SLURM_JOB_ID]}")
        if SLURM_RESTART_COUNT in environ:
            parts.append(f"r{environ[SLURM_RESTART_COUNT]}")
    variable = first_set(environ, launcher.run)
    if variable:
        parts.append(environ[variable])
    elif control_port := _control_port():
        parts.append(control_port)
    else:
        parts += [environ[name] for name in _JOB_IDS if environ.get(name)]
        script = "\0".join([os.getcwd(), *sys.argv])  # noqa: PTH109 - a directory that is gone is an error with Path too
        parts.append(hashlib.blake2b(script.encode(errors="surrogateescape"), digest_size=8).hexdigest())
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(parts))


def _control_port() -> str:
    """Where MPICH's mpiexec listens, "host:port": an argument of the proxy on each node that started its ranks."""
    for _, arguments in _ancestors():
        if "--control-port" in arguments[:-1]:
            return arguments[arguments.index("--control-port") + 1]
    return ""


def _ancestors(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """Yield process id and arguments of the processes that started this one, nearest first."""
    pid = os.getppid()
    for _ in range(_MOST_ANCESTORS):
        try:
            arguments = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
            status = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return
        yield pid, arguments
        # "42 (a name (of any kind)) S 7 ...": the parent is the second field after the name.
        pid = int(status.rpartition(")")[2].split()[1])


def _affinity(pid: int = 0) -> int:
    """CPUs that a process may run on, by default this one."""
    return len(os.sched_getaffinity(pid)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _launcher_affinity() -> int:
    """CPUs that the launcher's process on this node may run on; it binds its ranks, not itself."""
    known = (pid for pid, arguments in _ancestors() if _LAUNCHER_PROGRAM.search(Path(arguments[0]).name))
    try:
        return max(_affinity(next(known, os.getppid())), _affinity())
    except OSError:
        return _affinity()


def _slurm_cpus(environ: Mapping[str, str]) -> Figure[int] | None:
    """CPUs that the Slurm job has on this node, where its variables say so."""
    # MPICH's mpiexec brings a part of the first node's variables to the others, SLURMD_NODENAME among them (seen).
    if environ.get(SLURMD_NODENAME, "").split(".")[0] == _node() and SLURM_CPUS_ON_NODE in environ:
        return Figure(read_int(environ, SLURM_CPUS_ON_NODE, least=1), SLURM_CPUS_ON_NODE)
    if SLURM_JOB_CPUS_PER_NODE in environ:
        counts = expand_counts(environ, SLURM_JOB_CPUS_PER_NODE)
        nodes = _expand_nodes(environ.get(SLURM_JOB_NODELIST, ""))
        if _node() in nodes and len(nodes) == len(counts):
            return Figure(counts[nodes.index(_node())], SLURM_JOB_CPUS_PER_NODE)
        if len(set(counts)) == 1:
            return Figure(counts[0], SLURM_JOB_CPUS_PER_NODE)
    return None


def _expand_nodes(text: str) -> list[str]:
    """Read Slurm's compressed list of nodes: "gpu7,n[08-10]" is gpu7, n08, n09, n10. Empty if it has another form."""
    names: list[str] = []
    if not re.fullmatch(r"(?:[^][]|\[[^][]+\])*", text):
        return []
    for part in re.findall(r"(?:\[[^]]*\]|[^,[])+", text):
        match = re.fullmatch(r"([^][]*)(?:\[([\d,-]+)\])?([^][]*)", part)
        if match is None:
            return []
        for numbers in (match[2] or "").split(","):
            first, _, last = numbers.partition("-")
            if not numbers:
                names.append(match[1] + match[3])
            elif not first or (last and not last.isdigit()):
                return []
            else:
                several = range(int(first), int(last or first) + 1)
                names += [f"{match[1]}{number:0{len(first)}}{match[3]}" for number in several]
    return names
