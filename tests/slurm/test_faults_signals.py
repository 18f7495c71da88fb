"""The fault matrix: signals, and the processes that Batchlet starts itself in an allocation."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from fault_helpers import FAULTS, Fault, Running, check, options, run_fault
from run_helpers import Place, poll

pytestmark = pytest.mark.slurm

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
GRACE = options(grace=2, stop_timeout=4)


def scancel(running: Running) -> None:
    """Cancel the job, as a user or a preemption does."""
    running.scancel()


def strike(number: int, *ranks: int):
    """Send a signal to ranks."""
    return lambda running: running.signal(number, *ranks)


def interrupt(running: Running) -> None:
    """Type Ctrl-C twice, as srun wants it."""
    running.process.send_signal(INT)
    time.sleep(0.3)
    running.process.send_signal(INT)
    running.struck = time.monotonic()


def interrupt_once(running: Running) -> None:
    """Type Ctrl-C once."""
    running.process.send_signal(INT)
    running.struck = time.monotonic()


def scancel_early(running: Running) -> None:
    """Cancel the job while the ranks are meeting."""
    for rank in (0, 1):
        running.wait_for_rank(rank)
        assert poll(lambda rank=rank: catches(running.rank(rank), TERM), 20), f"rank {rank} does not handle SIGTERM"
    running.scancel()


def catches(process: psutil.Process, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    [caught] = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    return bool(int(caught, 16) >> (number - 1) & 1)


def ended_by(name: str, rank: int | None = None) -> str:
    """Pattern of the line that says what has ended the run."""
    return rf"^batchlet: .*{name}.*" + ("" if rank is None else rf"rank {rank} on node")


SIGNALS = {
    "scancel": Fault("scancel ends the run with 143, and says so once.", "sleeps", 143, [ended_by("SIGTERM")], act=scancel),
    "scancel at the start": Fault(
        "So it does while the ranks are meeting.", "late 3 60", 143, [ended_by("SIGTERM")], act=scancel_early, early=True,
        env=options(start_timeout=30),
    ),
    "SIGTERM to rank 0": Fault(
        "SIGTERM to one rank is for the run; the rank is named.",
        "sleeps", 143, [ended_by("SIGTERM", 0)], act=strike(TERM, 0),
    ),
    "SIGTERM to rank 1": Fault("To the client itself too.", "sleeps", 143, [ended_by("SIGTERM")], act=strike(TERM, 1)),
    "SIGTERM to rank 3": Fault("To a worker rank too.", "sleeps", 143, [ended_by("SIGTERM", 3)], act=strike(TERM, 3)),
    "ignored": Fault(
        "A client that does not end within grace is ended.",
        "ignores-sigterm", 143, ["the script did not end within 2 s"], env=GRACE, act=scancel, within=2 + 4,
    ),
    "cleaning up": Fault(
        "Callbacks and `finally` blocks run while the cluster still works, and tasks come to their end.",
        "cleans-up", 143, [ended_by("SIGTERM")],
        ["callback 15 works", "finally works too, task completed"], ready="under way", act=scancel, within=5,
    ),
    "in a library": Fault(
        "The exit code is right even if some library has made another exception of it.",
        "in-a-library", 143, [ended_by("SIGTERM")], act=strike(TERM, 1),
    ),
    "Ctrl-C": Fault(
        "Ctrl-C, where srun passes it on (-X), ends the run with 130.", "cleans-up", 130, ["^batchlet: .*SIGINT"],
        ["callback 2 works", "finally works too, task completed"], ready="under way", srun="-n4 -X", act=interrupt_once,
    ),
    "Ctrl-C twice": Fault(
        "Ctrl-C twice, which srun 22.05 follows by SIGKILL for all at once, leaves only what nobody is left to remove.",
        "sleeps", (130, 137), act=interrupt, scratch_stays=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SIGNALS)
def test_a_signal_to_any_part_ends_all_of_the_run(place: Place, case: str) -> None:
    """A signal to any part of the run ends all of it, the client first."""
    run_fault(place, SIGNALS[case])


# The script runs in the allocation's shell; then the step must be gone, which is asked for every half second.
ALLOCATION = """
"$@"; echo "rc $?"
for i in $(seq 40); do
    test -z "$(squeue --steps --noheader --format=%i | grep "^$SLURM_JOB_ID\\.[0-9]")" && echo "gone" && break
    sleep 0.5
done
"""


def in_allocation(place: Place, fault: Fault) -> None:
    """Run a line of the matrix with `python script.py` in an allocation of two nodes."""
    command = ["salloc", "-N2", "-n4", "sh", "-c", ALLOCATION, "sh", sys.executable, str(FAULTS), *fault.args.split()]
    running = Running(place, *command, env=fault.env)
    try:
        running.wait_for(fault.ready)
        if fault.act is not None:
            fault.act(running)
        result = running.finish(fault.within)
        assert f"rc {fault.client_rc}" in result.stdout.splitlines(), str(result)
        assert "gone" in result.stdout.splitlines(), f"the step is still there: {result}"
        check(fault, result)
    finally:
        running.end()
    running.assert_nothing_left(result, but_scratch=fault.scratch_stays)


ALLOCATIONS = {
    "raises": Fault("As under srun.", "raises", 0, ["^ValueError: of the user$"], client_rc=1, tracebacks=1),
    "client killed": Fault(
        "A client that is killed takes its step with it.", "signals-itself 9", 0, client_rc=137, within=15,
    ),
    "scheduler killed": Fault(
        "When the scheduler's rank dies the client is told.",
        "waits", 0, [r"^batchlet: error: .*[Rr]ank 0"], act=lambda running: running.signal(KILL, 0), client_rc=81, within=10,
        # Slurm kills what is left on a node with the last task there, which here is the one that was killed.
        scratch_stays=True,
    ),
    "scheduler killed, client ignores it": Fault(
        "A client in compiled code is ended.", "in-c-code", 0, ["the script did not end within 4 s"],
        env=options(stop_timeout=4), act=lambda running: running.signal(KILL, 0), client_rc=81, within=4 + 5,
        scratch_stays=True,
    ),
    "SIGTERM": Fault(
        "SIGTERM to the script is for the run.",
        "cleans-up", 0, [ended_by("SIGTERM")], ["callback 15 works", "finally works too, task completed"], ready="under way",
        act=lambda running: running.script().send_signal(TERM), client_rc=143, within=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOCATIONS)
def test_an_allocation_ends_as_well_as_a_run_under_srun(place: Place, case: str) -> None:
    """`python script.py` in an allocation ends as well as under srun, and so does the step that it has started."""
    in_allocation(place, ALLOCATIONS[case])
