"""The same, with the imports at the top, where each rank comes by."""

from batchlet import BatchletRunner  # noqa: I001
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    from work import work

    work(client)
