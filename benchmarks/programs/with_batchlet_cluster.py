"""A script with BatchletCluster, as docs/clusters.md shows it."""

import os

from dask.distributed import Client
from work import of_jobs, submitted

from batchlet import BatchletCluster

if __name__ == "__main__":
    with (
        BatchletCluster("slurm", **of_jobs(), workers_per_node=int(os.environ["BENCHMARK_EACH"])) as cluster,
        Client(cluster) as client,
    ):
        submitted(cluster, client)
