"""The same, with the imports where only the client comes to."""

from batchlet import BatchletRunner

with BatchletRunner() as runner:
    from dask.distributed import Client
    from work import work

    with Client(runner) as client:
        work(client)
