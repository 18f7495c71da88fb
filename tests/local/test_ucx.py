"""Dask over UCX, as far as that goes without the hardware: over TCP and shared memory.

It is not installed with what else the tests need, since it brings CUDA libraries of half a gigabyte and asks for a Dask of its
own choice: `pip install distributed-ucxx-cu12`. All processes have it as their links: scheduler, workers, Nannies and client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest
from run_helpers import Place, json_line

pytest.importorskip("distributed_ucxx", reason="UCX for Dask is not installed (pip install distributed-ucxx-cu12)")

PREFIX = "BATCHLET_DASK_CLUSTER__"
ENVIRONMENT = {
    "UCX_TLS": "tcp,sm",
    "UCX_NET_DEVICES": "lo",
    "UCX_WARN_UNUSED_ENV_VARS": "n",
    "UCXPY_LOG_LEVEL": "CRITICAL",
    "PYTHONUNBUFFERED": "1",
    f"{PREFIX}SECURITY": "false",
    f"{PREFIX}WORKERS_PER_NODE": "2",
}
SCRIPT = """
import json, os, sys

def die_once(path):
    import os, signal
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return 42

def nanny_of(dask_worker):
    return dask_worker.nanny

if __name__ == "__main__":
    from batchlet import BatchletCluster, BatchletRunner
    from dask.distributed import Client, get_client

    def use(client, address):
        client.wait_for_workers(2, timeout=60)
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        there = client.submit(bytes, 30_000_000, workers=workers[:1])
        path = os.path.abspath("died")
        print("RESULT " + json.dumps({
            "addresses": [address, *workers, *client.run(nanny_of).values()],
            "moved": client.submit(len, there, workers=workers[1:]).result(timeout=60),
            "inside": client.submit(lambda: get_client().submit(sum, [1, 2]).result()).result(timeout=60),
            "died once": client.submit(die_once, path).result(timeout=60),
        }))
        os.unlink(path)

    if sys.argv[1:] == ["jobs"]:
        with BatchletCluster("local", jobs=1, cores=2, memory="1GiB", interface="lo") as cluster:
            use(cluster.get_client(), cluster.scheduler_address)
    else:
        with BatchletRunner() as runner, Client(runner) as client:
            use(client, runner.scheduler_address)
"""


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@pytest.mark.parametrize(("how", "protocol"), [("run", "ucx"), ("jobs", "ucxx")])
def test_all_processes_talk_by_ucx_and_a_lost_worker_is_noticed(place: Place, how: str, protocol: str) -> None:
    """The line at the start says that nothing is encrypted."""
    if how == "jobs":
        pytest.importorskip("dask_jobqueue")
    env = {**ENVIRONMENT, f"{PREFIX}PROTOCOL": protocol}
    result = place.run(sys.executable, place.script(SCRIPT), how, env=env, timeout=180)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    addresses = found.pop("addresses")
    assert len(addresses) == 5
    assert all(address.startswith(f"{protocol}://") for address in addresses), addresses
    assert found == {"moved": 30_000_000, "inside": 3, "died once": 42}
    assert f", security off ({protocol} does not encrypt)" in result.errors[0], str(result)
