"""A script with BatchletRunner, as the README shows it."""

# In the README's order.
from batchlet import BatchletRunner  # noqa: I001
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    from work import work

    work(client)
