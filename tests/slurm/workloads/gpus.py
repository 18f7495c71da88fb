"""Says what each worker of the run sees of GPUs, and that a task which asks for one gets one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from batchlet.early import BatchletRunner

# isort: split
import dask
from dask.distributed import Client

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
    "HIP_VISIBLE_DEVICES",
)


def look(devices, dask_worker):
    """The variables, and which of the node's devices this process may open at all."""
    may = []
    for device in sorted(Path(devices).iterdir()):
        try:
            os.close(os.open(device, os.O_RDONLY))
        except PermissionError:
            continue
        except OSError:
            # It has no driver.
            pass
        may.append(device.name)
    return {
        "rank": int(os.environ.get("SLURM_PROCID", -1)),
        "node": os.environ.get("SLURMD_NODENAME"),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "opens": may,
        "kind": type(dask_worker).__name__,
    }


if __name__ == "__main__":
    with BatchletRunner(**json.loads(sys.argv[2])) as runner, Client(runner) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        seen = client.run(look, sys.argv[1])
        found = {
            str(info["name"]): {**seen[address], "resources": info["resources"], "threads": info["nthreads"]}
            for address, info in workers.items()
        }
        if any(worker["resources"] for worker in found.values()):
            with dask.annotate(resources={"GPU": 1}):
                assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        sys.stdout.write("RESULT " + json.dumps(found) + "\n")
