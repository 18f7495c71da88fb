"""Slurm and GPUs: what a task was given, and what a job has on its nodes.

The names in a task's variables do not tell whether another task has the same device: with ``ConstrainDevices`` they begin at 0
in each task that was given devices of its own, and so do the numbers in ``SLURM_STEP_GPUS`` (seen with Slurm 22.05). What tells
is how many there are: ``SLURM_GPUS_ON_NODE`` counts those of the step on this node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..gpus import Gpus, numbered
from ..launch_variables import SLURM_GPUS_ON_NODE, SLURM_GPUS_PER_TASK, SLURM_TRES_PER_TASK, whole_number

__all__ = ["gpus_of_nodes", "gpus_per_task", "of_task"]


def of_task(gpus: Gpus, environ: Mapping[str, str]) -> Gpus:
    """Say whether the GPUs that a task's variables name are its own."""
    here, on_node = len(gpus.devices), whole_number(environ.get(SLURM_GPUS_ON_NODE))
    if not here:
        return gpus
    if on_node is not None and here < on_node:
        source = f"{gpus.source} of a task, {SLURM_GPUS_ON_NODE}={on_node}"
        return replace(gpus, bound=True, on_node=on_node, source=source)
    if here <= gpus_per_task(environ):
        # The only task of its node; or a Slurm that counts those of one task.
        return replace(gpus, bound=True, source=f"{gpus.source} of a task")
    return replace(gpus, bound=False, on_node=on_node) if on_node == here else gpus


def gpus_per_task(environ: Mapping[str, str]) -> int:
    """Give the number of GPUs that each task was to have; 0 if that was not asked for.

    ``SLURM_GPUS_PER_TASK=2`` or ``a100:2``, or ``SLURM_TRES_PER_TASK=cpu=2,gres/gpu:a100:2``.
    """
    name = SLURM_GPUS_PER_TASK
    asked = f"gpu:{environ[name]}" if name in environ else environ.get(SLURM_TRES_PER_TASK, "")
    parts = [part for part in asked.lower().split(",") if "gpu" in part]
    numbers = [re.search(r"[:=](\d+)$", part) for part in parts]
    return sum(int(number[1]) if number else 1 for number in numbers)


def gpus_of_nodes(text: str, source: str) -> dict[str, Gpus]:
    """Read from ``scontrol --detail --oneliner show job`` which GPUs a job has, by Slurm's numbers, for each list of nodes."""
    found: dict[str, Gpus] = {}
    for nodes, gres in re.findall(r"\bNodes=(\S+) CPU_IDs=\S+ Mem=\S+ GRES=(\S+)", text):
        # As in gpu:a100:3(IDX:0-1,3).
        ranges = [part for numbers in re.findall(r"\bgpu:[^(]*\(IDX:([\d,-]+)\)", gres) for part in numbers.split(",")]
        ends = [(int(part.partition("-")[0]), int(part.rpartition("-")[2])) for part in ranges]
        devices = [str(number) for first, last in ends for number in range(first, last + 1)]
        if devices:
            found[nodes] = numbered(devices, source)
    return found
