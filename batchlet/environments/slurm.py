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
from ..launch_variables import (
    SLURM_CLUSTER_NAME,
    SLURM_CPUS_ON_NODE,
    SLURM_DISTRIBUTION,
    SLURM_GPUS_ON_NODE,
    SLURM_GTIDS,
    SLURM_JOB_CPUS_PER_NODE,
    SLURM_JOB_ID,
    SLURM_JOB_NODELIST,
    SLURM_JOB_NUM_NODES,
    SLURM_JOBID,
    SLURM_MEM_PER_CPU,
    SLURM_MEM_PER_GPU,
    SLURM_MEM_PER_NODE,
    SLURM_NNODES,
    SLURM_NODEID,
    SLURM_NTASKS,
    SLURM_PROCID,
    SLURM_RESTART_COUNT,
    SLURM_STEP_ID,
    SLURM_STEP_NODELIST,
    SLURM_STEP_NUM_NODES,
    SLURM_STEP_NUM_TASKS,
    SLURM_STEP_TASKS_PER_NODE,
    SLURM_STEPID,
    SLURM_TASKS_PER_NODE,
    SLURMD_NODENAME,
    reserved_step,
    whole_number,
)
from ..settings import parse_bytes
from .base import Environment, Figure, Grant, ProcessInfo, expand_counts, read_int, read_ints

__all__ = ["SlurmAllocation", "SlurmStep", "node_memory", "slots"]

_MIB = 1 << 20
# Seconds. Slurm's controller may be slow on a busy machine; without its answer we go on with the host's share.
_SCONTROL_TIMEOUT = 10.0
# The rank of a client that is not one of the ranks.
_CLIENT = -1


class _Slurm(Environment):
    """What step and allocation have in common."""

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

    def nodes(self, environ: Mapping[str, str]) -> list[tuple[ProcessInfo, Grant]]:
        """Give every node of the allocation; see the base class."""
        client = self.process(environ)
        if SLURM_JOB_CPUS_PER_NODE not in environ:
            return [(client, self.grant(environ))]
        names = _host_names(environ.get(SLURM_JOB_NODELIST, ""))
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
                Grant(Figure(cpus, SLURM_JOB_CPUS_PER_NODE), node_memory(environ, cpus)),
            )
            for rank, cpus in enumerate(expand_counts(environ, SLURM_JOB_CPUS_PER_NODE))
        ]


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
