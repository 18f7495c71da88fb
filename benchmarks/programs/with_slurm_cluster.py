"""A script with dask-jobqueue's SLURMCluster, as its documentation shows it."""

import os

from dask.distributed import Client
from dask_jobqueue import SLURMCluster
from work import of_jobs, submitted

if __name__ == "__main__":
    with (
        SLURMCluster(**of_jobs(), processes=int(os.environ["BENCHMARK_EACH"])) as cluster,
        Client(cluster) as client,
    ):
        submitted(cluster, client)
