"""An agent that dies is replaced by another rank of its node, and its workers are back: same names, same addresses."""

from __future__ import annotations

import random
import re
import signal
import sys
from pathlib import Path

import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import FAULTS, WAITING, Running, options
from host_faults import SHAPES, Moment, judge, kill_some
from run_helpers import Place, eventually, unavailable

pytestmark = pytest.mark.slurm

BACK = re.compile(
    r"^batchlet: the host of the workers on node (\S+) was killed \(SIGKILL\); a new one has brought (.*) back$"
)
SEED = 16


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("two nodes", "end"),
        ("early", "start"),
        ("python -m", "tasks"),
        ("a node each", "tasks"),
        ("two ranks", "start"),
        ("an agent each", "tasks"),
        ("two blocks", "start"),
    ],
)
def test_whenever_an_agent_is_killed_the_results_are_right(place: Place, name: str, part: str) -> None:
    """tests/soak_agents.py does the same at random."""
    shape, draw = SHAPES[name], random.Random(f"{SEED} {name} {part}")
    number = ("start", "tasks", "", "end").index(part)
    moment = Moment(draw.randrange(shape.blocks), number, draw.uniform(0.0, 0.8))
    running = Running(place, *shape.line(1.0), env=shape.env)
    try:
        killed, noticed = kill_some(running, shape.blocks, draw, [moment])
        result = running.finish(60)
    finally:
        running.end()
    assert judge(shape, result, killed, noticed) is None, f"{moment}: {result}"
    running.assert_nothing_left(result)


def test_a_node_has_three_new_agents_and_no_more(place: Place) -> None:
    """Each death is one line; the ranks are shells again each time; after the fourth the run goes on without."""
    running = Running(place, "srun", "-N2", "-n6", "--ntasks-per-node=3", sys.executable, str(FAULTS), "works-on")
    try:
        running.wait_for("strike")
        ranks = [running.rank(rank) for rank in (3, 4, 5)]
        for number in range(1, 4):
            agent = running.agent(4)
            agent.kill()
            back = f"{number} times its 3 workers"
            eventually(lambda number=number: running.stderr.count("its 3 workers back") == number, 30, back)
            assert running.agent(4) != agent
            # The same processes as before, one of which is the parent of the agent.
            assert [rank.cmdline()[-1] for rank in ranks] == [WAITING] * 3
            assert running.agent(4).parent() in ranks
        running.agent(4).kill()
        running.wait_for("the run goes on with 1")
        running.go_on()
        result = running.finish(20)
    finally:
        running.end()
    assert (result.rc, result.stdout.splitlines()[1:]) == (0, ["sum 190", "after the block"]), str(result)
    lines = [line for line in result.errors if line.startswith("batchlet: ")]
    assert [bool(BACK.match(line)) for line in lines] == [False, True, True, True, False, False], str(result)
    assert "the worker host of ranks 3, 4, 5 on node" in lines[4], str(result)
    running.assert_nothing_left(result)


def test_a_stopped_agent_is_replaced_and_holds_nobody_up(place: Place) -> None:
    """An agent that stands still (SIGSTOP) is ended after scheduler_timeout; without that its ranks would wait for ever."""
    command = ("srun", "-N2", "-n6", "--ntasks-per-node=3", sys.executable, str(FAULTS), "works-on")
    running = Running(place, *command, env=options(scheduler_timeout=5))
    try:
        running.wait_for("strike")
        running.agent(4).send_signal(signal.SIGSTOP)
        running.wait_for("its 3 workers back", 60)
        running.go_on()
        result = running.finish(20)
    finally:
        running.end()
    assert result.rc == 0, str(result)
    assert "sum 190" in result.stdout
    running.assert_nothing_left(result)


EATS = """
import os, sys, time
from batchlet import BatchletRunner

def eat(number):
    # Once, more than the job has.
    try:
        os.close(os.open("../eaten", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return number
    eaten = []
    while True:
        eaten.append(bytearray(b"x") * 50_000_000)

with BatchletRunner(worker_options={"memory_limit": None}) as runner:
    from dask.distributed import Client
    with Client(runner) as client:
        print("ready", flush=True)
        while not os.path.exists("../go-on"):
            time.sleep(0.05)
        print("sum", sum(client.gather(client.map(eat, range(20), pure=False))), flush=True)
"""


def test_an_agent_that_the_kernel_kills_for_want_of_memory_is_replaced(place: Place, cluster: SlurmCluster) -> None:
    """Where a task takes the job's memory, and the kernel kills its host for that."""
    if not cluster.memory_enforced:
        unavailable("memory limits are not enforced by the control groups of this machine")
    running = Running(place, "srun", "-n4", "--mem=800M", sys.executable, place.script(EATS))
    try:
        running.wait_for("ready")
        agent = running.agent(2)
        # The kernel would choose the task's own process, which costs one worker only.
        Path(f"/proc/{agent.pid}/oom_score_adj").write_text("1000")
        running.go_on()
        running.wait_for("workers back", 60)
        result = running.finish(40)
    finally:
        running.end()
    assert "sum 190" in result.stdout, str(result)
    # srun 22.05 says 1 for a step in which anything ran out of memory.
    assert result.rc in (0, 1), str(result)
    assert sum(bool(BACK.match(line)) for line in result.errors) == 1, str(result)
    running.assert_nothing_left(result)
