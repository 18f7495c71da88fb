"""A script with BatchletRunner, as the README shows it."""

from batchlet import BatchletRunner

with BatchletRunner() as runner:
    from dask.distributed import Client
    from work import work

    with Client(runner) as client:
        work(client)
