"""How processes talk to each other: Batchlet by default, with TLS inside the nodes too, and SLURMRunner in the clear.

    python benchmarks/links.py                              # one node and two, seven runs of each
    python benchmarks/links.py --nodes 1 --repeats 3
    python benchmarks/links.py --local                      # two workers on this machine, without a Slurm and SLURMRunner

Small tasks a second, transfer between two workers, a shuffle. Each ratio is that of two runs of one repeat.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from _tools import BASE, PREFIX, TOOLS, Tool
from _turns import Figure, main
from tls import LOCAL

WORKS = ("tasks", "transfer", "shuffle")
FIGURES: tuple[Figure, ...] = (
    ("tasks", "small tasks/s", 1, 0, False),
    ("shuffle", "shuffle, seconds", 1, 2, True),
    ("transfer", "transfer MB/s", 1, 0, False),
)


def tools(local: bool) -> dict[str, Tool]:
    """Give what is compared; without a Slurm there is no SLURMRunner, and Batchlet with security off stands in for it."""
    ours = LOCAL if local else TOOLS["batchlet"]
    off = replace(ours, variables=(*ours.variables, (f"{PREFIX}NODE_LINKS", "false")))
    clear = replace(ours, variables=(*ours.variables, (f"{PREFIX}SECURITY", "false")))
    first = {"in the clear": clear} if local else {"SLURMRunner": TOOLS[BASE]}
    return {**first, "TLS in the node too": off, "by default": ours}


if __name__ == "__main__":
    sys.exit(main("How processes talk to each other, and what it costs.", tools, WORKS, FIGURES))
