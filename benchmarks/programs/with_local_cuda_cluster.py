"""A script with dask-cuda's LocalCUDACluster, as its documentation shows it; on CPUs Dask's LocalCluster in its place."""

import json
import os

from dask.distributed import Client
from work import work


def cluster():
    if os.environ["BENCHMARK_ARRAY"] == "numpy":
        from dask.distributed import LocalCluster

        return LocalCluster(n_workers=int(os.environ["BENCHMARK_WORKERS"]), threads_per_worker=1)
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(**json.loads(os.environ.get("BENCHMARK_OPTIONS", "{}")))


if __name__ == "__main__":
    with cluster() as made, Client(made) as client:
        work(client)
