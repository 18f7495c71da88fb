"""What tasks have in common: locks, variables, queues, events, semaphores, actors, data; and tasks that make tasks."""

import logging
import multiprocessing
import subprocess
import sys
import time
import warnings

import dask
import distributed
from dask.distributed import (
    Client,
    Event,
    Lock,
    Queue,
    Semaphore,
    Variable,
    get_client,
    get_worker,
    rejoin,
    secede,
    worker_client,
)


class Counter:
    n = 0

    def __init__(self):
        self.n = 0

    def increment(self):
        self.n += 1
        return self.n


def locked(number):
    with Lock("one-at-a-time"):
        return number


def limited(number, semaphore):
    with semaphore:
        return number


def fills(number):
    Queue("numbers").put(number)


def waits():
    return Event("go").wait(timeout="20s")


def fibonacci(n):
    if n < 2:
        return n
    client = get_client()
    futures = client.map(fibonacci, [n - 1, n - 2])
    secede()
    found = client.gather(futures)
    rejoin()
    return sum(found)


def nested():
    with worker_client() as client:
        return sum(client.gather(client.map(abs, range(-5, 0))))


def logs():
    logging.getLogger("of.mine").warning("from a task")


def starts_a_process():
    done = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    return int(done.stdout)


def starts_a_pool():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])


def speaks(number):
    distributed.print(f"task-{number}")
    distributed.warn(f"a warning of task {number}", UserWarning)


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def main(client):
    print("Lock", sorted(client.gather(client.map(locked, range(6)))))
    semaphore = Semaphore(max_leases=2, name="two")
    print("Semaphore", sorted(client.gather(client.map(limited, range(6), semaphore=semaphore))))
    semaphore.close()
    variable = Variable("of-mine")
    variable.set(client.submit(sum, [1, 2, 3]))
    print("Variable", client.submit(lambda: Variable("of-mine").get().result()).result())
    queue = Queue("numbers")
    client.gather(client.map(fills, range(5)))
    print("Queue", sorted(queue.get(timeout=10) for _ in range(5)))
    waiting = client.submit(waits)
    Event("go").set()
    print("Event", waiting.result())

    counter = client.submit(Counter, actor=True).result()
    print("Actor", [counter.increment().result() for _ in range(3)], counter.n)
    print("secede", client.submit(fibonacci, 7).result())
    print("worker_client", client.submit(nested).result())

    data = client.scatter({"a": 1}, broadcast=True)
    client.publish_dataset(shared=data)
    print(
        "published",
        client.list_datasets(),
        client.get_dataset("shared"),
        client.submit(str, data).result() == "1" or "",
    )
    client.unpublish_dataset("shared")
    one = client.scatter(list(range(10)), hash=False)[0]
    client.replicate([one])
    print("replicated", len(next(iter(client.who_has([one]).values()))) == len(client.nthreads()))

    with dask.annotate(resources={"seats": 1}):
        seated = dask.delayed(lambda: get_worker().state.total_resources)()
    print("resources", seated.compute(optimize_graph=False))
    print("resources", client.submit(abs, -1, resources={"seats": 1}).result())

    kept = Kept()
    logging.getLogger("of.mine").addHandler(kept)
    logging.getLogger("of.mine").propagate = False
    client.forward_logging("of.mine")
    client.submit(logs).result()
    print("forward_logging", until(lambda: kept.texts == ["from a task"]))
    client.unforward_logging("of.mine")

    print("process", client.submit(starts_a_process).result())
    print("pool", client.submit(starts_a_pool).result())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.gather(client.map(speaks, range(3)))
        until(lambda: sum("a warning of" in str(one.message) for one in caught) >= 3)
    print("warn", sorted(str(one.message) for one in caught))


if __name__ == "__main__":
    client = Client()
    main(client)
