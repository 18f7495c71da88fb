"""A script with dask-jobqueue's SLURMRunner, as its documentation shows it.

Its scheduler file goes to the run's own directory, and a worker gets as many threads as its rank has CPUs: by itself it
would take as many as the host has.
"""

import os

from dask.distributed import Client
from dask_jobqueue.slurm import SLURMRunner

scheduler_file = os.environ["BENCHMARK_FOLDER"] + "/scheduler-{job_id}.json"
threads = int(os.environ["BENCHMARK_THREADS"])

with (
    SLURMRunner(scheduler_file=scheduler_file, worker_options={"nthreads": threads}) as runner,
    Client(runner) as client,
):
    from work import work

    work(client)
