"""What to type to be granted more, or less: the option of the batch system that a run came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..launch_variables import SLURM_MEM_PER_CPU

__all__ = ["memory_option", "rounded_memory", "rounded_time", "time_option"]

_MIB, _GIB = 1 << 20, 1 << 30


def rounded_memory(size: float) -> int:
    """Round an amount of memory up to what one would type, in bytes: 256 MiB, 1280 MiB, 7 GiB, 36 GiB."""
    step = 256 * _MIB if size <= 4 * _GIB else _GIB if size <= 32 * _GIB else 4 * _GIB
    return max(1, math.ceil(size / step)) * step


def rounded_time(seconds: float) -> int:
    """Round a time up to what one would type, in seconds: 10 min, 45 min, 2 h 30 min, 14 h."""
    for most, step in ((1800, 300), (7200, 900), (6 * 3600, 1800), (48 * 3600, 3600)):
        if seconds <= most:
            return max(1, math.ceil(seconds / step)) * step
    return math.ceil(seconds / (6 * 3600)) * 6 * 3600


def memory_option(report: Mapping[str, Any], factor: float) -> str | None:
    """Say what to type so that every node is granted this many times the memory that it had.

    Returns
    -------
    str or None
        Such as "`--mem-per-cpu=1G`"; `None` where nobody is asked for memory, as on a laptop.
    """
    per_cpu = whole = 0.0
    sources = set()
    for node in report["nodes"].values():
        granted = node["figures"].get("memory", {"value": node["memory"], "source": ""})
        cpus = node["figures"].get("cpus", {"value": node["cpus"]})["value"]
        sources.add(granted["source"])
        whole = max(whole, granted["value"] * factor)
        per_cpu = max(per_cpu, granted["value"] * factor / max(1.0, cpus))
    if not whole:
        return None
    source, mode = " ".join(sorted(sources)), report["run"]["mode"]
    if mode == "jobs":
        return f'`memory="{_typed(whole)}iB"`'
    if SLURM_MEM_PER_CPU in source:
        return f"`--mem-per-cpu={_typed(per_cpu)}`"
    if "h_vmem" in source:
        return f"`-l h_vmem={_typed(per_cpu)}`"
    if "SLURM" in source or "scontrol" in source or mode in ("slurm", "allocation"):
        return f"`--mem={_typed(whole)}`"
    return None if mode == "local" else f"{_typed(whole)}iB for each node"


def time_option(report: Mapping[str, Any], seconds: float) -> str:
    """Say what to type to be granted this time."""
    written = f"{seconds // 3600:02.0f}:{seconds % 3600 // 60:02.0f}:00"
    source = " ".join(figure["source"] for node in report["nodes"].values() for figure in node["figures"].values())
    if report["run"]["mode"] == "jobs":
        return f'`walltime="{written}"`'
    if "SLURM" in source or report["run"]["mode"] in ("slurm", "allocation"):
        return f"`--time={written}`"
    if "h_vmem" in source or "NSLOTS" in source:
        return f"`-l h_rt={written}`"
    return f"a limit of {written}"


def _typed(size: float) -> str:
    whole = rounded_memory(size)
    return f"{whole // _GIB}G" if whole % _GIB == 0 else f"{whole // _MIB}M"
