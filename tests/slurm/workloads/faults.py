"""A script that something goes wrong with: the first argument says what, the others how.

Before the bootstrap, on the rank that the second argument names: ``import-error RANK``, ``late RANK SECONDS``. All else
happens on the client, inside the block. "strike" on stdout says that it happens now.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

fault, *arguments = sys.argv[1:]
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("SLURM_PROCID")


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if fault == "import-error" and rank == arguments[0]:
    raise ModuleNotFoundError("no_such_module")
if fault == "late" and rank == arguments[0]:
    time.sleep(float(arguments[1]))

from batchlet import BatchletRunner  # noqa: E402


def import_dask():
    global Client, KilledWorker
    from dask.distributed import Client, KilledWorker


# Above the block every rank imports it, and rank 0 is the scheduler itself; the agent of its node forks it otherwise.
if os.environ.get("DASK_FIRST"):
    import_dask()


def at_once():
    """Once in all processes of this run."""
    try:
        os.close(os.open("../struck", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def wait_for_the_harness():
    for _ in range(1200):
        if Path("../go-on").exists():
            break
        time.sleep(0.05)


# What happens to the client itself


def fine(client):
    say(client.submit(sum, [1, 2, 3]).result())


def raises(client):
    raise ValueError("of the user")


def exits(client):
    sys.exit(json.loads(arguments[0]))


def exits_hard(client):
    os._exit(4)


def signals_itself(client):
    os.kill(os.getpid(), int(arguments[0]))
    time.sleep(60)


def leaves_futures(client):
    client.held = client.map(lambda _: time.sleep(60), range(1000), pure=False)
    time.sleep(0.5)


def eats_memory(client):
    eaten = []
    while True:
        eaten.append(bytearray(b"x") * 50_000_000)


# What the client does when something happens to others


def sleeps(client):
    time.sleep(float(arguments[0] if arguments else 60))


def waits(client):
    client.submit(time.sleep, 60).result()


def is_in_c_code(client):
    # Locked twice by the same thread: no signal wakes it up.
    mutex = ctypes.create_string_buffer(128)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def works_on(client):
    """Wait until the harness has done what it does, then use the cluster."""
    wait_for_the_harness()
    say(f"sum {sum(client.gather(client.map(lambda number: number, range(20), pure=False)))}")


def catches(client):
    """See what the user's code is told."""
    try:
        client.submit(time.sleep, 60).result()
    except Exception as error:
        say(f"caught {type(error).__name__}")
        sys.exit(7)


def ignores_sigterm(client):
    """Be as stubborn as a script can be."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            time.sleep(1)
        except BaseException:
            say("ignored")


def is_in_a_library(client):
    """Be in code, as Dask has it, that takes every exception for one of its own."""
    try:
        time.sleep(60)
    except Exception as error:
        raise TypeError("could not serialize") from error


def cleans_up(client):
    """Have a task under way, and use the cluster after the signal, in a callback and in a `finally` block."""
    runner.on_terminate(lambda number: say(f"callback {number} {client.submit(lambda: 'works').result(10)}"))
    running = client.submit(lambda: time.sleep(2) or "completed", pure=False)
    try:
        # In here: a signal may come as soon as this is read.
        say("under way")
        time.sleep(60)
    finally:
        say(f"finally {client.submit(lambda: 'works too').result(10)}, task {running.result(10)}")


def waits_deaf(client):
    """Wait in a main thread that no signal reaches: the system gives those of the process to another thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    try:
        say("under way")
        time.sleep(60)
    finally:
        say(f"finally {client.submit(lambda: 'works too').result(10)}")


def goes_on(client):
    """Try one step after another, whatever becomes of them."""
    for number in range(100):
        try:
            say("under way")
            client.submit(time.sleep, 0.2, pure=False).result()
        except Exception as error:
            say(f"step {number} failed: {error}")


def soaks(client):
    """Work for some seconds, then do what the other arguments say."""
    until = time.monotonic() + float(arguments.pop(0))
    while time.monotonic() < until:
        numbers = client.map(lambda number: time.sleep(0.02) or number, range(20), pure=False)
        if sum(client.gather(numbers)) != 190:
            say("WRONG")
    if arguments:
        FAULTS[arguments.pop(0)](client)


# What happens to the scheduler


def block_scheduler(client):
    """Block the scheduler's event loop for some seconds."""
    seconds = float(arguments[0])

    def block():
        asyncio.get_event_loop().call_later(0.1, time.sleep, seconds)

    client.run_on_scheduler(block)
    time.sleep(0.3)
    say(f"sum {sum(client.gather(client.map(lambda number: number, range(20), pure=False)))}")


def scheduler_exits(client):
    client.run_on_scheduler(lambda: os._exit(5))


def scheduler_eats_memory(client):
    def eat():
        eaten = []
        while True:
            eaten.append(bytearray(b"x") * 50_000_000)

    client.run_on_scheduler(lambda: threading.Thread(target=eat).start())
    waits(client)


# What happens to a worker


def in_a_task(client, strike):
    """Have one of some tasks do something to its own worker's process, the first time that it runs."""

    def work(number):
        time.sleep(0.1)
        if number == 3 and at_once():
            strike()
        return number

    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    say(f"sum {sum(client.gather(client.map(work, range(20), pure=False)))}")
    if fault != "worker-stops":
        client.wait_for_workers(workers, timeout=20)
    say(f"workers {len(client.scheduler_info(n_workers=-1)['workers']) - workers}")


def worker_is_killed(client):
    in_a_task(client, lambda: os.kill(os.getpid(), signal.SIGKILL))


def worker_exits(client):
    in_a_task(client, lambda: os._exit(5))


def worker_stops(client):
    in_a_task(client, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def worker_eats_memory(client):
    def eat():
        eaten = []
        while True:
            eaten.append(bytearray(b"x") * 20_000_000)
            time.sleep(0.02)

    def work(number):
        time.sleep(0.05)
        return os.getpid()

    bad = client.submit(eat, workers=2, key="the-hungry-task")
    good = client.map(work, range(40), workers=3)
    try:
        bad.result()
    except KilledWorker as error:
        say(f"killed {error.task}")
    say(f"processes of the other worker: {len(set(client.gather(good)))}")
    say(client.submit(lambda: "it works again", workers=2).result())
    sys.exit(3)


def always_exits(client):
    client.submit(lambda: os._exit(5), key="the-bad-task").result()


class Slow:
    def __del__(self) -> None:
        say("under way")
        time.sleep(1)


def in_a_finalizer(client) -> None:
    runner.on_terminate(lambda number: say(f"callback {number}"))
    try:
        Slow()
        time.sleep(60)
    finally:
        say(f"finally {client.submit(sum, [1, 2]).result()}")


FAULTS = {
    "waits-deaf": waits_deaf,
    "goes-on": goes_on,
    "in-a-finalizer": in_a_finalizer,
    "fine": fine,
    "import-error": fine,
    "late": fine,
    "raises": raises,
    "exits": exits,
    "exits-hard": exits_hard,
    "signals-itself": signals_itself,
    "leaves-futures": leaves_futures,
    "eats-memory": eats_memory,
    "sleeps": sleeps,
    "waits": waits,
    "in-c-code": is_in_c_code,
    "works-on": works_on,
    "catches": catches,
    "ignores-sigterm": ignores_sigterm,
    "in-a-library": is_in_a_library,
    "cleans-up": cleans_up,
    "block-scheduler": block_scheduler,
    "scheduler-exits": scheduler_exits,
    "scheduler-eats-memory": scheduler_eats_memory,
    "worker-killed": worker_is_killed,
    "worker-exits": worker_exits,
    "worker-stops": worker_stops,
    "worker-eats-memory": worker_eats_memory,
    "always-exits": always_exits,
    "soaks": soaks,
}

with BatchletRunner() as runner:
    import_dask()
    with Client(runner) as client:
        say("strike")
        FAULTS[fault](client)
say("after the block")
