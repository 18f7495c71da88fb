"""A script with dask-mpi, as its documentation shows it; a worker gets as many threads as its rank has CPUs."""

import os

from dask.distributed import Client
from dask_mpi import initialize

initialize(nthreads=int(os.environ["BENCHMARK_THREADS"]))

with Client() as client:
    from work import work

    work(client)
