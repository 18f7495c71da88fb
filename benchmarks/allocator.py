"""What the C library's allocator costs in a worker: as Dask's Nanny sets it, and as Batchlet does.

    python benchmarks/allocator.py                          # one node and two, seven runs of each
    python benchmarks/allocator.py --local --repeats 3      # two workers on this machine, without a Slurm

Seconds for arrays in blocks of 3 MB and of 8 MB and for a shuffle of frames with columns of 1.6 MB, and the memory of the
workers when all of it is over and forgotten. Each ratio is that of two runs of one repeat.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from _tools import TOOLS, Tool
from _turns import Figure, main
from tls import LOCAL

WORKS = ("arrays", "shuffle", "resident")
FIGURES: tuple[Figure, ...] = (
    ("arrays-3", "blocks of 3 MB, seconds", 1, 2, True),
    ("arrays-8", "blocks of 8 MB, seconds", 1, 2, True),
    ("resident", "workers' memory afterwards, MB", 1e6, 0, True),
    ("shuffle", "shuffle, seconds", 1, 2, True),
)
# Dask's own figure; from it follows the size from which on an allocation is a mapping of its own.
DASKS = (("MALLOC_TRIM_THRESHOLD_", "65536"), ("MALLOC_MMAP_THRESHOLD_", "131072"))


def tools(local: bool) -> dict[str, Tool]:
    """Give what is compared: what somebody would get who sets these variables, and who does not."""
    ours = LOCAL if local else TOOLS["batchlet"]
    return {"as Dask sets it": replace(ours, variables=(*ours.variables, *DASKS)), "by default": ours}


if __name__ == "__main__":
    sys.exit(main("What the allocator costs.", tools, WORKS, FIGURES))
