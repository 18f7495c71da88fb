"""The fault matrix: networks that are cut, and memory that is not there."""

from __future__ import annotations

import contextlib
import re
import sys
import time

import psutil
import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import FAULTS, NOTE_RC, SLACK, Fault, Running, check, link_cut, run_fault
from run_helpers import Place, Result, eventually, unavailable

pytestmark = pytest.mark.slurm

# Seconds after which a peer that the network no longer reaches counts as lost.
STOP = 15
PEER = 15


def start(place: Place, srun: str, script: str) -> Running:
    """Start a run of which each rank notes its exit code: srun cannot know that of a rank that is cut off."""
    running = Running(place, "srun", *srun.split(), *NOTE_RC, sys.executable, str(FAULTS), script)
    running.wait_for("strike")
    return running


def finish(running: Running, patterns: list[str], prints: list[str]) -> None:
    """Check what was printed; Slurm itself waits for a task whose end was said into the dead link."""
    with contextlib.suppress(StopIteration):  # nothing of the job is left
        running.scancel()
    result = running.finish(10)
    check(Fault("", "", result.rc, patterns, prints), result)
    running.assert_nothing_left(result)


def test_workers_that_are_cut_off_are_lost_and_the_run_goes_on(place: Place) -> None:
    """Workers whose node is cut off are lost, and the run goes on at once; they end by themselves."""
    running = start(place, "-N2 -n6 --ntasks-per-node=3", "works-on")
    try:
        node, lost = running.node(4), [running.rank(rank) for rank in (3, 4, 5)]
        assert running.node(1) != node
        with link_cut(node):
            running.struck = time.monotonic()
            running.wait_for("goes on with 1", PEER + SLACK)
            running.go_on()
            running.wait_for("after the block", SLACK)
            _, alive = psutil.wait_procs(lost, timeout=PEER + SLACK)
            assert not alive, f"still there: {alive}\n{running.stdout}{running.stderr}"
        noted = place.base / "rc-1"
        eventually(noted.exists, SLACK, "the client's exit code was not noted")
        assert noted.read_text() == "0\n"
        finish(
            running,
            [r"worker host of ranks 3, 4, 5 on node \S+ died and 3 workers with it; the run goes on with 1$"],
            ["sum 190"],
        )
    finally:
        running.end()


def test_a_scheduler_that_is_cut_off_ends_the_run_on_both_sides(place: Place) -> None:
    """When the scheduler is cut off from the client, the client is told and all ends, on both sides."""
    running = start(place, "-N2 -n4 --distribution=cyclic", "waits")
    try:
        node, ranks = running.node(0), [running.rank(rank) for rank in range(4)]
        assert running.node(1) != node
        with link_cut(node):
            # On the scheduler's side stopping may take `stop_timeout`, since it cannot reach those it wants to stop.
            _, alive = psutil.wait_procs(ranks, timeout=PEER + STOP + SLACK)
            assert not alive, f"still there: {alive}\n{running.stdout}{running.stderr}"
        assert (place.base / "rc-1").read_text() == "81\n"
        # The end of rank 0 was said into the dead link: this srun (Slurm 22.05) waits for it for good.
        running.end()
        result = Result(running.process.returncode, running.stdout, running.stderr, time.monotonic() - running.began)
        check(Fault("", "", result.rc, [r"^batchlet: error: Rank 0 on node \S+, the scheduler, is lost"]), result)
        running.assert_nothing_left(result)
    finally:
        running.end()


# srun 22.05 says 1 for a task that ran out of memory, whatever the others say.
MEMORY = {
    "client": Fault(
        "A client that exceeds the job's memory is killed by the kernel; the others end.",
        "eats-memory", (1, 137), ["^batchlet: the client, rank 1"], srun="-n4 --mem=700M", within=15,
    ),
    "scheduler": Fault(
        "When the scheduler is killed for it the client is told.",
        "scheduler-eats-memory", (1, 81, 137), [r"^batchlet: error: .*[Rr]ank 0"],
        srun="-n4 --mem=700M", within=15, client_rc=81,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MEMORY)
def test_a_head_process_without_memory_ends_the_run(place: Place, cluster: SlurmCluster, case: str) -> None:
    """A head process without memory ends the run, and Slurm says why."""
    if not cluster.memory_enforced:
        unavailable("memory limits are not enforced by the control groups of this machine")
    result = run_fault(place, MEMORY[case])
    assert re.search("oom|out of memory", result.stderr, re.IGNORECASE), str(result)
