"""Blocks whose results and workers are known beforehand, while the hosts of the workers are killed from outside.

The arguments: seconds of work in each block, how many blocks, and ``early`` or ``plain`` (under ``python -m batchlet``).
"""

import os
import sys
import time

seconds, blocks, how = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if how == "early":
    from batchlet.early import BatchletRunner
elif how != "plain":
    from batchlet import BatchletRunner

PAUSE = 0.05
# Seconds for lost workers to be back.
BACK = 40


def say(text):
    # One system call, so that whoever reads along sees whole lines.
    os.write(1, f"{text}\n".encode())


def square(number):
    time.sleep(PAUSE)
    return number * number


def workers(client):
    known = client.scheduler_info(n_workers=-1)["workers"] if NEW else client.scheduler_info()["workers"]
    return {w["name"]: (address, w["nthreads"], w["memory_limit"]) for address, w in known.items()}


def block(client):
    planned = workers(client)
    say(f"workers {len(planned)}")
    numbers = range(int(len(planned) * seconds / PAUSE))
    # At the address of each worker, which is to be the address of the one that comes in its place. By its name Dask would find
    # it only while it is there.
    pinned = [
        client.submit(square, n, workers=[planned[name][0]], pure=False, allow_other_workers=False)
        for n, name in enumerate(sorted(planned, key=str))
        for _ in "ab"
    ]
    total = sum(client.gather(client.map(square, numbers, pure=False)))
    say("total right" if total == sum(n * n for n in numbers) else f"total WRONG {total}")
    client.gather(pinned)
    until = time.monotonic() + BACK
    while (seen := workers(client)) != planned and time.monotonic() < until:
        time.sleep(PAUSE)
    say("workers as planned" if seen == planned else f"workers WRONG\n{planned}\n{seen}")


def main():
    global NEW
    from dask.distributed import Client

    NEW = "n_workers" in Client.scheduler_info.__code__.co_varnames
    for _ in range(blocks):
        if how == "plain":
            with Client() as client:
                block(client)
        else:
            with BatchletRunner() as runner, Client(runner) as client:
                block(client)
        time.sleep(seconds / 4)
    say("end")


main()
