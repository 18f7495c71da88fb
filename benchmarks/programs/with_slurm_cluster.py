"""A script with dask-jobqueue's SLURMCluster, as its documentation shows it."""

import os

from dask.distributed import Client
from dask_jobqueue import SLURMCluster
from work import of_jobs, submitted

if __name__ == "__main__":
    with (
        # With the default of 60 s, 128 workers that start on a machine with two CPUs all give up.
        SLURMCluster(**of_jobs(), processes=int(os.environ["BENCHMARK_EACH"]), death_timeout=300) as cluster,
        Client(cluster) as client,
    ):
        submitted(cluster, client)
