"""Pages that a worker gets anew when it uses pieces of 2 MiB again and again: prints these, and those of all the pieces."""

import json
import resource

from batchlet import BatchletRunner

PIECE, TIMES = 2 << 20, 100


def pages() -> int:
    kept = [b"x" * (PIECE + number) for number in range(2)]
    del kept
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for number in range(TIMES):
        b"x" * (PIECE + number)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


with BatchletRunner() as runner:
    from dask.distributed import Client

    with Client(runner) as client:
        found = client.submit(pages).result()
print("RESULT " + json.dumps({"pages": found, "all": TIMES * PIECE // resource.getpagesize()}))
