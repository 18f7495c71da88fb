"""Slurm: the tasks of a job step, which ``srun`` started, and an allocation without any.

Variables and their meaning: srun(1), section "OUTPUT ENVIRONMENT VARIABLES"; the notes say what was seen on Slurm 22.05.
"""

from __future__ import annotations

import re
import secrets
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from ..errors import LauncherError
from ..gpus import NO_GPUS, Gpus
from ..launch_variables import (
    SLURM_CLUSTER_NAME,
    SLURM_CPUS_ON_NODE,
    SLURM_DISTRIBUTION,
    SLURM_GPUS_ON_NODE,
    SLURM_GTIDS,
    SLURM_JOB_CPUS_PER_NODE,
    SLURM_JOB_FIGURES,
    SLURM_JOB_ID,
    SLURM_JOB_NODELIST,
    SLURM_JOB_NUM_NODES,
    SLURM_JOBID,
    SLURM_LOCALID,
    SLURM_MEM_PER_CPU,
    SLURM_MEM_PER_GPU,
    SLURM_MEM_PER_NODE,
    SLURM_NNODES,
    SLURM_NODEID,
    SLURM_NTASKS,
    SLURM_PROCID,
    SLURM_RESTART_COUNT,
    SLURM_STEP_GPUS,
    SLURM_STEP_ID,
    SLURM_STEP_NODELIST,
    SLURM_STEP_NUM_NODES,
    SLURM_STEP_NUM_TASKS,
    SLURM_STEP_TASKS_PER_NODE,
    SLURM_STEPID,
    SLURM_SUBMIT_HOST,
    SLURM_TASKS_PER_NODE,
    SLURM_TMPDIR,
    SLURMD_NODENAME,
    STEP_CLIENT_NODE,
    STEP_PREFIX,
    reserved_step,
    whole_number,
)
from ..launchers.base import Launcher
from ..launchers.srun import Srun
from ..settings import parse_bytes
from .base import Environment, Figure, Grant, ProcessInfo, expand_counts, read_int, read_ints
from .slurm_gpus import gpus_of_nodes, gpus_per_task, of_task

__all__ = ["SlurmAllocation", "SlurmAllocationStep", "SlurmStep", "WithinSlurm", "node_memory", "slots"]

_MIB = 1 << 20
# Seconds. Slurm's controller may be slow on a busy machine; without its answer we go on with the host's share.
_SCONTROL_TIMEOUT = 10.0
# The rank of a client that is not one of the ranks.
_CLIENT = -1


class WithinSlurm(Environment):
    """A process that may be inside a Slurm job, whoever has started it."""

    gpu_variables: ClassVar[tuple[str, ...]] = (*Environment.gpu_variables, SLURM_STEP_GPUS)

    def output_is_shared(self, environ: Mapping[str, str]) -> bool:
        """See the base class.

        The output of ranks goes through pipes, mostly to the job's output file, which everybody may read unless the user has a
        umask against that; a rank cannot see where the pipe ends.
        """
        return SLURM_JOB_ID in environ

    def login_host(self, environ: Mapping[str, str]) -> str | None:
        """See the base class: where the job was submitted."""
        return environ.get(SLURM_SUBMIT_HOST)

    def scratch_directories(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        """See the base class; some sites make a directory for each job."""
        own = (environ[SLURM_TMPDIR],) if environ.get(SLURM_TMPDIR) else ()
        return (*own, *super().scratch_directories(environ))

    def binds_gpus_by_task(self, environ: Mapping[str, str]) -> bool:
        """See the base class; Slurm does so by the task's cgroup."""
        gpus = self.gpus(environ)
        return gpus_per_task(environ) > 0 or bool(gpus is not None and gpus.bound)

    def gpus(self, environ: Mapping[str, str]) -> Gpus | None:
        """See the base class, and `batchlet.environments.slurm_gpus`."""
        found = super().gpus(environ)
        return found if found is None or SLURM_JOB_ID not in environ else of_task(found, environ)


class _Slurm(WithinSlurm):
    """What step and allocation have in common."""

    title: ClassVar[str] = "Slurm"

    def ask(self, environ: Mapping[str, str]) -> Mapping[str, Figure[int]]:
        """Ask ``scontrol`` for the job's memory on each node.

        A bare ``srun --mem=2G`` from a login node sets no memory variable; the controller knows all the same.
        """
        job = environ.get(SLURM_JOB_ID, "")
        if not job.isdigit():
            return {}
        text = _scontrol("--detail", "--oneliner", "show", "job", job)
        answer: dict[str, Figure[int]] = {}
        for nodes, memory in re.findall(r"\bNodes=(\S+) CPU_IDs=\S+ Mem=(\S+)", text):
            try:
                size = int(memory) * _MIB if memory.isdigit() else parse_bytes(memory + "iB")
            except ValueError:  # "N/A"
                continue
            # "Mem=0" means that memory is not a resource that this cluster hands out.
            answer |= {name: Figure(size, f"scontrol show job {job}") for name in _host_names(nodes) if size > 0}
        return answer


class SlurmStep(_Slurm):
    """A process that is a task of a Slurm job step.

    Only ``SLURM_STEP_ID`` proves that: ``SLURM_PROCID=0`` and ``SLURM_NTASKS`` are also set in a batch script's own
    process, where the other tasks do not exist.
    """

    name: ClassVar[str] = "slurm"

    def detect(self, environ: Mapping[str, str]) -> str | None:
        """Say which variable proves the step."""
        step = environ.get(SLURM_STEP_ID)
        return None if step is None or reserved_step(step) else f"SLURM_STEP_ID={step}"

    def process(self, environ: Mapping[str, str]) -> ProcessInfo:
        """Read rank, world and node; see the base class."""
        step = environ.get(SLURM_STEP_ID, environ.get(SLURM_STEPID, "")).strip()
        if whole_number(step) is None:
            raise LauncherError(f"SLURM_STEP_ID={step!r} is malformed: expected the number of a job step.")
        rank = read_int(environ, SLURM_PROCID)
        world_size = read_int(environ, SLURM_STEP_NUM_TASKS, SLURM_NTASKS, least=1)
        if rank >= world_size:
            raise LauncherError(
                f"SLURM_PROCID={rank} cannot be: the step has {world_size} tasks, numbered from 0. "
                "Was the environment changed after srun?"
            )
        job_id = read_int(environ, SLURM_JOB_ID, SLURM_JOBID)
        restart = read_int(environ, SLURM_RESTART_COUNT) if SLURM_RESTART_COUNT in environ else 0
        nodes = read_int(environ, SLURM_STEP_NUM_NODES, SLURM_NNODES, least=1)
        local_ranks = _local_ranks(environ, nodes)
        if rank not in local_ranks:
            raise LauncherError(
                f"SLURM_PROCID={rank} is not among the ranks of this node, {list(local_ranks)} "
                "(SLURM_GTIDS or SLURM_STEP_TASKS_PER_NODE). Was the environment changed after srun?"
            )
        return ProcessInfo(
            mode=self.name,
            rank=rank,
            world_size=world_size,
            node=environ.get(SLURMD_NODENAME) or socket.gethostname().split(".")[0],
            nodes=nodes,
            local_ranks=local_ranks,
            run_id=f"slurm-{_cluster(environ)}{job_id}.{step}" + (f"-r{restart}" if restart else ""),
            job=f"job {job_id}.{step}" + (f", restart {restart}" if restart else ""),
        )

    def grant(self, environ: Mapping[str, str]) -> Grant:
        """Read the step's CPUs and memory on this node; see the base class."""
        cpus = Figure(read_int(environ, SLURM_CPUS_ON_NODE, least=1), SLURM_CPUS_ON_NODE)
        return Grant(cpus=cpus, memory=node_memory(environ, cpus.value))

    def expected_nodes(self, environ: Mapping[str, str]) -> Mapping[int, str]:
        """See the base class; known for the block (Slurm's default) and the cyclic distribution."""
        names = _host_names(environ.get(SLURM_STEP_NODELIST, ""))
        if SLURM_STEP_TASKS_PER_NODE not in environ:
            return {}
        counts = expand_counts(environ, SLURM_STEP_TASKS_PER_NODE)
        distribution = environ.get(SLURM_DISTRIBUTION, "block").split(":")[0].split(",")[0]
        if len(names) != len(counts) or distribution not in ("block", "cyclic"):
            return {}
        slots = [(turn, node) for node, count in enumerate(counts) for turn in range(count)]
        if distribution == "cyclic":
            slots.sort()
        return {rank: names[node] for rank, (_, node) in enumerate(slots)}

    def is_first(self, environ: Mapping[str, str]) -> bool | None:
        """See the base class: the first task of the first node."""
        return environ.get(SLURM_LOCALID, "0") == "0" and environ.get(SLURM_NODEID, "0") == "0"


class SlurmAllocationStep(SlurmStep):
    """A rank of the step that Batchlet itself has started in an allocation, by `batchlet.launchers.srun.Srun`.

    The client is beside the ranks. CPUs are those of the step, memory and slots those of the job, of which srun tells nothing.
    """

    name: ClassVar[str] = "allocation"

    def detect(self, environ: Mapping[str, str]) -> str | None:
        """Say by which variable Batchlet knows its own step."""
        if STEP_CLIENT_NODE not in environ or super().detect(environ) is None:
            return None
        return f"{STEP_CLIENT_NODE}={environ[STEP_CLIENT_NODE]}"

    def process(self, environ: Mapping[str, str]) -> ProcessInfo:
        """Read rank, world, node and where the client is; see the base class."""
        info = super().process(environ)
        client_node = environ.get(STEP_CLIENT_NODE)
        return replace(
            info,
            nodes=info.nodes + (not client_node),
            client_rank=None,
            extra_clients=int(info.node == client_node),
            slots=slots(_of_job(environ), read_int(environ, SLURM_NODEID)),
        )

    def grant(self, environ: Mapping[str, str]) -> Grant:
        """Read the step's CPUs and the job's memory on this node; see the base class."""
        return super().grant(self.task_environ(environ))

    def task_environ(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """See the base class: with the memory that the job has asked for, as in any other step of it."""
        own = {name: value for name, value in environ.items() if not name.startswith(STEP_PREFIX)}
        return own | {name: value for name, value in _of_job(environ).items() if name != SLURM_TASKS_PER_NODE}


class SlurmAllocation(_Slurm):
    """A single process in an allocation: a batch script's own ``python``, or one started in salloc's shell.

    Batchlet then starts the ranks itself, one on each node, with one ``srun`` step. This process is the client.
    """

    name: ClassVar[str] = "allocation"

    def detect(self, environ: Mapping[str, str]) -> str | None:
        """Say which variables tell of an allocation without a step."""
        step = environ.get(SLURM_STEP_ID)
        if SLURM_JOB_ID not in environ or not (step is None or reserved_step(step)):
            return None
        return f"SLURM_JOB_ID={environ[SLURM_JOB_ID]}, and SLURM_STEP_ID names no step of tasks"

    def process(self, environ: Mapping[str, str]) -> ProcessInfo:
        """Read the allocation; the client is beside the ranks, one of which each node will have."""
        job_id = read_int(environ, SLURM_JOB_ID)
        restart = read_int(environ, SLURM_RESTART_COUNT) if SLURM_RESTART_COUNT in environ else 0
        nodes = read_int(environ, SLURM_JOB_NUM_NODES, SLURM_NNODES, least=1)
        inside = SLURMD_NODENAME in environ
        node = environ.get(SLURMD_NODENAME) or socket.gethostname().split(".")[0]
        return ProcessInfo(
            mode=self.name,
            rank=_CLIENT,
            world_size=nodes,
            node=node,
            nodes=nodes if inside else nodes + 1,
            local_ranks=(0,) if inside else (),
            run_id=f"slurm-{_cluster(environ)}{job_id}"
            + (f"-r{restart}" if restart else "")
            + f"-{secrets.token_hex(4)}",
            job=f"job {job_id}" + (f", restart {restart}" if restart else ""),
            client_rank=_CLIENT,
            extra_clients=int(inside),
            slots=slots(environ, 0),
        )

    def grant(self, environ: Mapping[str, str]) -> Grant:
        """Read the allocation's CPUs and memory on its first node, where a batch script runs."""
        counts = expand_counts(environ, SLURM_JOB_CPUS_PER_NODE) if SLURM_JOB_CPUS_PER_NODE in environ else ()
        if not counts or SLURMD_NODENAME not in environ:
            return Grant()
        return Grant(Figure(counts[0], SLURM_JOB_CPUS_PER_NODE), node_memory(environ, counts[0]))

    def gpus(self, environ: Mapping[str, str]) -> Gpus | None:
        """See the base class; whatever the job's own tasks were to have, one rank has all of its node."""
        found = super().gpus(environ)
        return found if found is None else replace(found, bound=False, source=next(iter(found.named), ""))

    def _gpus_of_nodes(self, environ: Mapping[str, str]) -> dict[str, Gpus]:
        """Ask the controller which GPUs the job has on each node; no variable tells of other nodes than this one."""
        job = environ.get(SLURM_JOB_ID, "")
        text = _scontrol("--detail", "--oneliner", "show", "job", job) if job.isdigit() else ""
        found = gpus_of_nodes(text, f"scontrol show job {job}")
        return {name: gpus for nodes, gpus in found.items() for name in _host_names(nodes)}

    def launcher(self, environ: Mapping[str, str]) -> Launcher:  # noqa: ARG002
        """See the base class."""
        return Srun()

    def nodes(self, environ: Mapping[str, str]) -> list[tuple[ProcessInfo, Grant]]:
        """Give every node of the allocation; see the base class."""
        client = self.process(environ)
        if SLURM_JOB_CPUS_PER_NODE not in environ:
            return [(client, self.grant(environ))]
        names = _host_names(environ.get(SLURM_JOB_NODELIST, ""))
        known, here = self._gpus_of_nodes(environ), self.gpus(environ)
        return [
            (
                replace(
                    client,
                    rank=rank,
                    node=names[rank] if rank < len(names) else f"number {rank}",
                    local_ranks=(rank,),
                    client_rank=None,
                    extra_clients=client.extra_clients if rank == 0 else 0,
                    slots=slots(environ, rank),
                ),
                Grant(
                    Figure(cpus, SLURM_JOB_CPUS_PER_NODE),
                    node_memory(environ, cpus),
                    here
                    if rank == 0 and client.extra_clients
                    else known.get(names[rank] if rank < len(names) else "", NO_GPUS),
                ),
            )
            for rank, cpus in enumerate(expand_counts(environ, SLURM_JOB_CPUS_PER_NODE))
        ]


def _of_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the job's own figures to a rank of a step that Batchlet has started."""
    return {name: environ[STEP_PREFIX + name] for name in SLURM_JOB_FIGURES if STEP_PREFIX + name in environ}


def slots(environ: Mapping[str, str], node: int) -> int | None:
    """Tasks that the job asked for on its node number `node`; `None` if it did not say."""
    if SLURM_TASKS_PER_NODE not in environ:
        return None
    counts = expand_counts(environ, SLURM_TASKS_PER_NODE)
    return counts[node] if node < len(counts) else None


def _cluster(environ: Mapping[str, str]) -> str:
    """Name of the cluster, for run ids: two clusters that share home directories number their jobs independently."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", environ.get(SLURM_CLUSTER_NAME, ""))
    return f"{name}-" if name else ""


def _scontrol(*arguments: str) -> str:
    """Ask the controller; an empty text if it cannot be asked."""
    try:
        return subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=_SCONTROL_TIMEOUT, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _host_names(nodes: str) -> list[str]:
    """Expand Slurm's compressed host list, ``n[1-4,7]``; Slurm's own tool knows all its forms."""
    return _scontrol("show", "hostnames", nodes).split() if nodes else []


def _local_ranks(environ: Mapping[str, str], nodes: int) -> tuple[int, ...]:
    # SLURM_GTIDS is right for any distribution of the tasks; the counts per node only for the block distribution.
    if SLURM_GTIDS in environ:
        return tuple(sorted(read_ints(environ, SLURM_GTIDS)))
    if SLURM_STEP_TASKS_PER_NODE not in environ:
        raise LauncherError("Neither SLURM_GTIDS nor SLURM_STEP_TASKS_PER_NODE is set: start the script with srun.")
    counts = expand_counts(environ, SLURM_STEP_TASKS_PER_NODE)
    node = read_int(environ, SLURM_NODEID)
    if len(counts) != nodes or node >= nodes:
        raise LauncherError(
            f"SLURM_STEP_TASKS_PER_NODE={environ[SLURM_STEP_TASKS_PER_NODE]!r} names {len(counts)} nodes, but the step "
            f"has {nodes} and this one is number {node} (SLURM_NODEID)."
        )
    first = sum(counts[:node])
    return tuple(range(first, first + counts[node]))


def node_memory(environ: Mapping[str, str], cpus: int) -> Figure[int] | None:
    """Memory of the node in bytes. The three variables exclude each other; Slurm counts in MiB."""
    if SLURM_MEM_PER_NODE in environ:
        # 0 is `--mem=0`, all of the node's memory: nothing that can be known from here.
        size = read_int(environ, SLURM_MEM_PER_NODE)
        return Figure(size * _MIB, SLURM_MEM_PER_NODE) if size else None
    for variable, count, unit in (
        (SLURM_MEM_PER_CPU, cpus, "CPUs"),
        (SLURM_MEM_PER_GPU, environ.get(SLURM_GPUS_ON_NODE), "GPUs"),
    ):
        if variable in environ and count is not None:
            size = read_int(environ, variable)
            number = count if isinstance(count, int) else read_int(environ, SLURM_GPUS_ON_NODE)
            if size and number:
                return Figure(size * number * _MIB, f"{variable} x {number} {unit}")
    return None
