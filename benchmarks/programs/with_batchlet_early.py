"""A script with all imports on top, as the README shows it first: worker ranks go no further than the first line."""

from batchlet.early import BatchletRunner  # noqa: I001
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    from work import work

    work(client)
