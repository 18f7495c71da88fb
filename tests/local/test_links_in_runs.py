"""Links inside a node, as a user's run has them: what is moved is right, and a death in the middle of it is no end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from run_helpers import Place, Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="links are for Linux")

ENV = {
    "BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "2",
    "BATCHLET_DASK_CLUSTER__THREADS_PER_WORKER": "1",
    "BATCHLET_DASK_CLUSTER__MEMORY_PER_WORKER": "1500MiB",
}

KINDS = """
from batchlet import BatchletRunner

def kinds(dask_worker=None, dask_scheduler=None):
    server = dask_worker or dask_scheduler
    return sorted({type(comm).__name__ for comm in server._comms})

with BatchletRunner() as runner:
    from dask.distributed import Client

    with Client(runner) as client:
        assert client.submit(sum, [1, 2, 3]).result() == 6
        found = {kind for known in client.run(kinds).values() for kind in known} | set(client.run_on_scheduler(kinds))
        print(sorted(found))
        print(runner.scheduler_address.partition(":")[0])
"""


@pytest.mark.parametrize(
    ("env", "kinds"), [({}, "['NodeLink']"), ({"BATCHLET_DASK_CLUSTER__NODE_LINKS": "false"}, "['TLS']")]
)
def test_all_connections_of_a_local_run_are_links_unless_it_is_switched_off(
    python: Run, place: Place, env: dict[str, str], kinds: str
) -> None:
    """Scheduler, workers, nannies and client; the addresses are the same with and without."""
    result = python(KINDS, env={**ENV, **env})
    assert result.rc == 0, str(result)
    assert result.stdout == f"{kinds}\ntls\n", str(result)
    place.assert_nothing_left(result=result)


KILLED = """
import os, sys, time
from batchlet import BatchletRunner

SIZE = 32_000_000

def make(seed):
    import numpy

    return numpy.random.default_rng(seed).integers(0, 1 << 60, SIZE)

def total(data):
    return int(data.sum() % (1 << 61))

def watch(source, folder, dask_worker=None):
    # In the worker that receives: kills the one that sends when a fifth of it has come.
    import threading
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss

    def look():
        while not (dask_worker.state.transfer_incoming_count and process.memory_info().rss > before + 50_000_000):
            time.sleep(0.001)
        os.kill(source, 9)
        with open(f"{folder}/killed", "w") as file:
            file.write(str(dask_worker.state.transfer_incoming_count))

    threading.Thread(target=look, daemon=True).start()

with BatchletRunner() as runner:
    from dask.distributed import Client, wait

    with Client(runner) as client:
        import numpy

        first, second = client.scheduler_info()["workers"]
        right = total(make(3))
        client.run(__import__, "numpy.random")
        data = client.submit(make, 3, workers=[first], allow_other_workers=True)
        wait(data)
        source = client.run(os.getpid, workers=[first])[first]
        client.run(watch, source, os.getcwd(), workers=[second])
        print(client.submit(total, data, workers=[second]).result(60) == right)
        # Whoever was killed is there again, and is talked to as before.
        while client.run(os.getpid).get(first, source) == source:
            time.sleep(0.1)
        again = client.submit(make, 4, workers=[first])
        print(client.submit(total, again, workers=[second]).result(60) == total(make(4)))
        print(open("killed").read())
        os.remove("killed")
"""


def test_a_worker_killed_in_the_middle_of_a_transfer_costs_that_transfer_only(python: Run, place: Place) -> None:
    """256 MB under way through a link, of which a fifth has come: the result is right, and the run goes on."""
    result = python(KILLED, env=ENV, timeout=150)
    assert result.rc == 0, str(result)
    assert result.stdout == "True\nTrue\n1\n", str(result)
    assert "Traceback" not in result.stderr, str(result)
    assert len([line for line in result.errors if "killed" in line]) == 1, str(result)
    place.assert_nothing_left(result=result)


def test_a_process_that_user_code_has_forked_keeps_no_link_from_working(python: Run, tmp_path: Path) -> None:
    """It has the sockets of its worker open when that is killed: those who look for the worker do not wait for the dead one."""
    script = """
import os, time
from batchlet import BatchletRunner

def leave_a_child():
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    return pid, os.getpid()

with BatchletRunner() as runner:
    from dask.distributed import Client

    with Client(runner, timeout=30) as client:
        first, second = client.scheduler_info()["workers"]
        child, parent = client.submit(leave_a_child, workers=[first]).result()
        os.kill(parent, 9)
        time.sleep(1)
        numbers = client.map(lambda x: x + 1, range(50), pure=False)
        print(sum(client.gather(numbers)))
        os.kill(child, 9)
"""
    result = python(script, env=ENV, timeout=100)
    assert result.rc == 0, str(result)
    assert result.stdout == "1275\n", str(result)
