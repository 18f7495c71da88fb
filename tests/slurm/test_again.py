"""Several blocks one after the other in one process, each with workers of its own."""

from __future__ import annotations

import json
import re
import sys

import pytest
from run_helpers import Place, json_line

pytestmark = pytest.mark.slurm

MANY = """
import json, os, sys, threading, time
from batchlet import BatchletRunner

def state():
    return [threading.active_count(), len(os.listdir("/proc/self/fd"))]

def block(number):
    began = time.monotonic()
    with BatchletRunner() as runner:
        from dask.distributed import Client
        ready = time.monotonic() - began
        with Client(runner) as client:
            pids = sorted(client.run(os.getpid).values())
            return client.submit(sum, [number, 1]).result(), len(pids), pids, ready

found, states = [], []
for number in range(int(sys.argv[1])):
    found.append(block(number))
    states.append(state())
print("RESULT " + json.dumps([found, states]))
"""


# Ten where ranks wait for the next block and where nobody does; the others differ from these in their start.
@pytest.mark.parametrize(
    ("way", "blocks"), [("local", 10), ("srun", 10), ("one rank", 6), ("salloc", 6), ("mpirun", 6)]
)
def test_many_blocks_have_workers_of_their_own_and_leave_nothing(place: Place, way: str, blocks: int) -> None:
    script = place.script(MANY)
    commands = {
        "local": [sys.executable, script],
        "srun": ["srun", "-N2", "-n6", sys.executable, script],
        "one rank": ["srun", "-n1", sys.executable, script],
        "salloc": ["salloc", "--quiet", "-N2", "-n4", sys.executable, script],
        "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "4", sys.executable, script],
    }
    result = place.run(*commands[way], str(blocks), timeout=120)
    assert result.rc == 0, str(result)
    found, states = json.loads(json_line(result.stdout))
    assert [one[0] for one in found] == list(range(1, blocks + 1))
    assert len({one[1] for one in found}) == 1
    pids = [pid for one in found for pid in one[2]]
    assert len(set(pids)) == len(pids), "each block has workers of its own"
    # The first blocks import what stays, and a thread of Dask's may still be ending; nothing comes on top.
    for number in (0, 1):
        assert min(state[number] for state in states[-3:]) <= max(state[number] for state in states[:3]), states


OTHERS = """
from batchlet import BatchletRunner
from batchlet.errors import UsageError, PlanError

def block(**options):
    with BatchletRunner(**options) as runner:
        from dask.distributed import Client
        with Client(runner) as client:
            if options.get("stop_timeout"):
                raise ValueError("mine")
            return len(client.nthreads()), client.scheduler_info()["address"].partition(":")[0]

try:
    block(stop_timeout=5)
except ValueError as error:
    print(error)
print(*block(workers_per_node=3))
print(*block(security=False))
print(*block())
with BatchletRunner() as runner:
    pass
try:
    with runner:
        pass
except UsageError as error:
    print("twice")
"""


def test_a_block_that_failed_and_others_with_other_options(place: Place) -> None:
    result = place.run("srun", "-n5", sys.executable, place.script(OTHERS), timeout=60)
    assert result.rc == 0, str(result)
    assert result.stdout.splitlines() == ["mine", "3 tls", "3 tcp", "3 tls", "twice"], str(result)


LOST = """
from batchlet import BatchletRunner
from batchlet.errors import BatchletError
try:
    with BatchletRunner(workers_per_node=1000):
        pass
except BatchletError as error:
    print(type(error).__name__, error.exit_code)
with BatchletRunner():
    print("never")
"""


def test_after_a_run_that_has_failed_there_is_no_other_block(place: Place) -> None:
    result = place.run("srun", "-n4", sys.executable, place.script(LOST), timeout=60)
    assert (result.rc, result.stdout) == (2, "PlanError 2\n"), str(result)
    assert result.seconds < 30


LATER = """
import os, time
from batchlet import BatchletRunner
with BatchletRunner() as runner:
    pass
print("out", flush=True)
time.sleep(2)
os._exit(4)
"""


def test_a_client_that_ends_hard_between_two_blocks_ends_the_run(place: Place) -> None:
    result = place.run("srun", "-n4", sys.executable, place.script(LATER), timeout=60)
    assert (result.rc, result.stdout) == (4, "out\n"), str(result)
    assert not any("error" in line for line in result.errors), str(result)
    assert result.seconds < 20


AGENT = """
import os, signal, sys, time
from batchlet import BatchletRunner

def agent():
    import psutil, socket
    return socket.gethostname(), psutil.Process().parents()[1].pid

def block():
    with BatchletRunner() as runner:
        from dask.distributed import Client
        with Client(runner) as client:
            return dict(client.run(agent).values()), client.submit(sum, [1, 2]).result()

agents, _ = block()
time.sleep(2)
os.kill(agents[max(agents)], signal.SIGKILL)
# At once: the next block waits for those who are on their way.
others, three = block()
print(len(agents), len(others), len({*agents.values()} - {*others.values()}), three)
"""


def test_an_agent_that_dies_between_two_blocks_is_replaced_for_the_next(place: Place) -> None:
    result = place.run("srun", "-N2", "-n6", sys.executable, place.script(AGENT), timeout=90)
    assert (result.rc, result.stdout) == (0, "2 2 1 3\n"), str(result)
    told = [line for line in result.errors if "host of the workers" in line]
    assert len(told) == 1, str(result)
    assert re.search(r" was killed \(SIGKILL\); a new one has ", told[0]), str(result)
    # What ran before the second block is no loss at a start.
    assert not any("for nothing" in line for line in result.errors), str(result)


FIXTURE = """
import pytest
from batchlet import BatchletRunner
from dask.distributed import Client

@pytest.fixture
def client():
    with BatchletRunner(workers_per_node=1) as runner, Client(runner) as client:
        yield client

@pytest.mark.parametrize("number", range(3))
def test_sum(client, number):
    assert client.submit(sum, [number, 1]).result() == number + 1
"""


def test_a_pytest_fixture_makes_a_cluster_for_each_test(place: Place) -> None:
    (place.base / "test_of_the_user.py").write_text(FIXTURE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(place.base / "test_of_the_user.py")]
    result = place.run(*command, timeout=90)
    assert result.rc == 0, str(result)
    assert "3 passed" in result.stdout
