"""What each worker was given, and what its node really grants, found without Batchlet's own code.

The argument is the runner's options as JSON; the result is one line of JSON.
"""

import json
import os
import sys
from pathlib import Path

from dask.distributed import Client

from batchlet import BatchletRunner


def cgroup_limit():
    """The least memory limit of the cgroups around this process."""
    mounts = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            mounts["memory"] = point
        elif kind == "cgroup2":
            mounts[""] = point
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for key in set(controllers.split(",")) & set(mounts):
            level = Path(mounts[key] + path)
            while level != Path(mounts[key]):
                for name in ("memory.limit_in_bytes", "memory.max"):
                    file = level / name
                    if file.exists() and (text := file.read_text().strip()) != "max":
                        limits.append(int(text))
                level = level.parent
    return min(limits)


def facts(dask_worker):
    return {
        "node": os.environ["SLURMD_NODENAME"],
        "ranks": [int(rank) for rank in os.environ["SLURM_GTIDS"].split(",")],
        "cpus": int(os.environ["SLURM_CPUS_ON_NODE"]),
        "cgroup": cgroup_limit(),
        "threads": dask_worker.state.nthreads,
        "limit": dask_worker.memory_manager.memory_limit,
        "blas": os.environ.get("OMP_NUM_THREADS"),
    }


options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
with BatchletRunner(**options) as runner, Client(runner) as client:
    known = client.scheduler_info(n_workers=-1)["workers"]
    found = client.run(facts)
    workers = [
        {"name": info["name"], "host": info["host"], "nthreads": info["nthreads"], "memory_limit": info["memory_limit"]}
        | found[address]
        for address, info in known.items()
    ]
    plan = runner.plan
    report = {
        "node": os.environ["SLURMD_NODENAME"],
        "figures": {name: [figure.value, figure.source] for name, figure in plan.figures.items()},
        "planned": [[worker.name, worker.threads, worker.memory] for worker in plan.workers],
        "workers": workers,
    }
    sys.stdout.write(f"RESULT {json.dumps(report)}\n")
