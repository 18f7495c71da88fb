"""A script that knows nothing of Batchlet, for `python -m batchlet`."""

from dask.distributed import Client
from work import work

with Client() as client:
    work(client)
