"""Workers with GPUs on this machine, one for each: Batchlet beside dask-cuda's LocalCUDACluster, with an RMM pool and without.

    python benchmarks/gpu.py                                # seven runs of each, with CuPy, and cuDF where that is installed
    python benchmarks/gpu.py --repeats 3 --pool 0.8
    python benchmarks/gpu.py --array numpy                  # the same programme on CPUs, beside LocalCluster: does it run?

Transfer from a worker's device to another's, and sums by key over parts that lie on all of them. The tools take turns
within each repeat, each time in another order, and each ratio is that of two runs of one repeat.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec

from _report import say
from _tools import PREFIX, Shape, Tool
from _turns import Figure, arguments, compare

from batchlet.gpus import granted
from batchlet.nvidia import driver_problem, read_gpus

FIGURES: tuple[Figure, ...] = (
    ("group_by", "group-by of arrays, seconds", 1, 3, True),
    ("group_by_frame", "group-by of frames, seconds", 1, 3, True),
    ("device_transfer", "transfer MB/s", 1, 0, False),
)


def unavailable(array: str) -> str | None:
    """Say why this machine has nothing to measure with, and what to do about it."""
    if array == "numpy":
        return None
    instead = "--array numpy runs the same programme on CPUs"
    if not devices():
        return f"no GPU of NVIDIA's is here; {instead}"
    problem = driver_problem()
    if problem is not None:
        return f"the GPUs cannot be used: {problem}; {instead}"
    for module, package in (("cupy", "cupy-cuda12x"), ("dask_cuda", '"dask-batchlet[cuda]" "cuda-core[cu12]"')):
        if find_spec(module) is None:
            return f"{module} is not installed: pip install {package} (or for CUDA 13); {instead}"
    return None


def devices() -> tuple[str, ...]:
    gpus = granted(os.environ) or read_gpus()
    return gpus.devices if gpus is not None else ()


def tools(array: str, pool: float, workers: int) -> dict[str, Tool]:
    """Give what is compared, the one that the others are compared with first."""
    kind = ("BENCHMARK_ARRAY", array)
    one_thread = (f"{PREFIX}THREADS_PER_WORKER", "1")
    if array == "numpy":
        sizes = {"WORKERS_PER_NODE": workers, "MEMORY_PER_WORKER": "1GiB", "GPUS_PER_WORKER": 0}
        ours = (kind, one_thread, *((PREFIX + name, str(value)) for name, value in sizes.items()))
        return {
            "LocalCluster": theirs(kind),
            "Batchlet": Tool("batchlet", "", "with_batchlet.py", "local", variables=ours),
        }
    found = {"LocalCUDACluster": theirs(kind), "Batchlet": of_ours(kind, one_thread)}
    if find_spec("rmm") is None:
        say("rmm is not installed, so there are no runs with a pool: pip install rmm-cu12")
        return found
    options = json.dumps({"rmm_pool_size": pool, "rmm_allocator_external_lib_list": ["cupy"]})
    pools = {
        "LocalCUDACluster, pool": theirs(kind, ("BENCHMARK_OPTIONS", options)),
        "Batchlet, pool": of_ours(kind, one_thread, (f"{PREFIX}WORKER_OPTIONS", options)),
    }
    return found | pools


def theirs(*variables: tuple[str, str]) -> Tool:
    return Tool("dask-cuda", "", "with_local_cuda_cluster.py", "local", needs=("dask",), variables=variables)


def of_ours(*variables: tuple[str, str]) -> Tool:
    return Tool("batchlet", "", "with_batchlet.py", "local", variables=variables)


def main() -> int:
    parser = arguments("Workers with GPUs on this machine, beside LocalCUDACluster.", timeout=300.0)
    parser.add_argument("--array", choices=("cupy", "numpy"), default="cupy", help="numpy: on CPUs (default: cupy)")
    parser.add_argument("--pool", type=float, default=0.5, metavar="PART", help="of each GPU's memory (default: 0.5)")
    options = parser.parse_args()
    reason = unavailable(options.array)
    if reason:
        parser.error(reason)
    on_cpus = options.array == "numpy"
    workers = 2 if on_cpus else len(devices())
    works = ("device_transfer", "group_by") if workers > 1 else ("group_by",)
    if workers == 1:
        say("there is one GPU: a transfer takes two")
    where = "on CPUs" if on_cpus else f"{workers} GPU{'s'[: workers - 1]}"
    compared = tools(options.array, options.pool, workers)
    return compare(compared, {where: Shape(1, workers)}, works, FIGURES, options, workers=workers)


if __name__ == "__main__":
    sys.exit(main())
