"""The fault matrix, while the run is under way: the client, the scheduler, the workers and their hosts."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace

import psutil
import pytest
from fault_helpers import Fault, Running, options, run_fault
from run_helpers import Place

pytestmark = pytest.mark.slurm

KILL, STOP, SEGV, TERM = int(signal.SIGKILL), int(signal.SIGSTOP), int(signal.SIGSEGV), int(signal.SIGTERM)
DONE = r"^batchlet: done after"
NO_CLIENT = r"^batchlet: the client, rank 1 on node \S+, ended without leaving the `with` block"
LOST = r"^batchlet: error: .*(rank 0|Rank 0).*"
RAPID = options(stop_timeout=4)
DASK_FIRST = {"DASK_FIRST": "1"}


def strike(number: int, *ranks: int):
    """Send a signal to ranks."""
    return lambda running: running.signal(number, *ranks)


def strike_and_go_on(number: int, *ranks: int):
    """Send a signal to ranks, then let the client go on."""

    def act(running: Running) -> None:
        running.signal(number, *ranks)
        running.wait_for(f"rank {ranks[-1]} on node")
        running.go_on()

    return act


def stop_and_continue(running: Running) -> None:
    """Stop rank 0 until the client has ended, then let it go on."""
    running.signal(STOP, 0)
    rank_0, client = running.rank(0), running.rank(1)
    with contextlib.suppress(psutil.TimeoutExpired):
        client.wait(4 + 1 + 4)
    rank_0.send_signal(signal.SIGCONT)


def strike_scheduler(number: int):
    """Send a signal to the scheduler's process."""
    return lambda running: running.scheduler().send_signal(number)


def strike_host_and_go_on(running: Running) -> None:
    """Kill the agent of rank 0's node, which has started the scheduler, then let the client go on."""
    running.agent(2).kill()
    running.wait_for("workers back")
    running.go_on()


CLIENT = {
    "raises": Fault(
        "An exception of the user's code is the run's: exit code 1 and the user's own traceback.",
        "raises", 1, ["^ValueError: of the user$", "^batchlet: ended by ValueError after"], tracebacks=1,
    ),
    "exits 0": Fault("sys.exit(0) inside the block is a success.", "exits 0", 0, [DONE]),
    "exits 3": Fault("sys.exit(3) is exit code 3.", "exits 3", 3, [DONE]),
    "exits with a text": Fault("sys.exit(text) prints it and is exit code 1.", 'exits "text"', 1, ["^text$"]),
    "os._exit(4)": Fault(
        "A client that leaves by os._exit takes the others with it, and its code is the run's.",
        "exits-hard", 4, [NO_CLIENT],
    ),
    "SIGKILL": Fault("A client that is killed takes the others with it.", f"signals-itself {KILL}", 137, [NO_CLIENT]),
    "SIGSEGV": Fault(
        "So does one that crashes.", f"signals-itself {SEGV}", 139, [NO_CLIENT],
        prefix=("prlimit", "--core=0"),
    ),
    "1,000 futures": Fault(
        "Leaving the block with a thousand futures running ends at once and well.", "leaves-futures", 0, [DONE],
        ["after the block"],
    ),
    "in C code": Fault(
        "A client that is stuck in compiled code when the scheduler dies is ended after stop_timeout.",
        "in-c-code", 137, [LOST, "the script did not end within 4 s"], env=RAPID, act=strike(KILL, 0),
        client_rc=None, within=4,
    ),
}  # fmt: skip

SCHEDULER = {
    "SIGKILL, client waits": Fault(
        "When the scheduler dies, the client that waits for a result is told: ClusterLostError, 81.",
        "waits", 137, [LOST], act=strike(KILL, 0), client_rc=81,
    ),
    "SIGKILL, client sleeps": Fault(
        "So is one that sleeps.", "sleeps", 137, [LOST], act=strike(KILL, 0), client_rc=81
    ),
    "SIGKILL, client catches": Fault(
        "The user's code can catch it, and its exit code is the run's.",
        "catches", 137, [LOST], ["caught ClusterLostError"], act=strike(KILL, 0), client_rc=7,
    ),
    "blocked for a while": Fault(
        "A scheduler that is busy for longer than Dask's heartbeat catches up.",
        "block-scheduler 3", 0, [DONE], ["sum 190"], env=options(scheduler_timeout=10), within=15,
    ),
    "blocked for good": Fault(
        "A scheduler whose event loop stands still ends the run after scheduler_timeout.",
        "block-scheduler 60", 81, [r"rank 0, has not responded for 4 s \(scheduler_timeout\)"],
        env=options(scheduler_timeout=4, stop_timeout=4), within=4 + 1 + 4,
    ),
    "SIGSTOP": Fault(
        "So does one whose whole process stands still; woken up, it ends without another word.",
        "waits", 81, [r"Rank 0 .* has not responded for 4 s \(scheduler_timeout\)"], never=["TLS handshake", "Listener"],
        env=options(scheduler_timeout=4, stop_timeout=4), act=stop_and_continue, within=4 + 1 + 4, client_rc=81,
    ),
}  # fmt: skip

SCHEDULER_PROCESS = {
    "SIGKILL": Fault(
        "When the scheduler's process is killed, the client is told by what.",
        "waits", 81, [r"^batchlet: error: The scheduler, a process of rank 0 on node \S+, was killed by SIGKILL"],
        act=strike_scheduler(KILL),
    ),
    "SIGSTOP": Fault(
        "One that stands still ends the run after scheduler_timeout.",
        "waits", 81, [r"rank 0, has not responded for 4 s \(scheduler_timeout\)"],
        env=options(scheduler_timeout=4, stop_timeout=4), act=strike_scheduler(STOP), within=4 + 1 + 4,
    ),
    "SIGTERM": Fault(
        "SIGTERM to it alone is one to the run.",
        "waits", 143, [r"^batchlet: ended by SIGTERM; it was sent to rank 0 on node"], act=strike_scheduler(TERM),
    ),
    "ends itself": Fault(
        "It may also be ended by what the user's code does there.",
        "scheduler-exits", 81, [r"^batchlet: error: The scheduler, a process of rank 0 on node \S+, ended with exit code 5"],
    ),
    "the agent dies": Fault(
        "The scheduler outlives the agent of its node.",
        "works-on", 0, [r"was killed \(SIGKILL\); a new one has brought its 2 workers back$", DONE],
        ["sum 190", "after the block"],
        srun="-N2 -n8 --ntasks-per-node=4", act=strike_host_and_go_on, within=10,
    ),
}  # fmt: skip

WORKER = {
    "SIGKILL": Fault(
        "A worker process that is killed is started again and its task is done again.",
        "worker-killed", 0, [r"^batchlet: worker process \d+ was killed by (SIGKILL|signal 9)", DONE], ["sum 190", "workers 0"],
        within=20,
    ),
    "os._exit": Fault(
        "So is one that a task ends.",
        "worker-exits", 0, [r"^batchlet: worker process \d+ exited with status 5", DONE], ["sum 190", "workers 0"],
        within=20,
    ),
    "os._exit always": Fault(
        "A task that ends every worker is given up: KilledWorker names it.",
        "always-exits", 1, [r"KilledWorker: .*the-bad-task"], tracebacks=1, through_dask=True, within=25,
    ),
    "SIGSTOP": Fault(
        "With a worker-ttl the work of a worker that stands still is done by another one.",
        "worker-stops", 0, [DONE], ["sum 190"], env={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s"}, within=25,
    ),
    "over its memory": Fault(
        "A worker over its limit is ended and started again; KilledWorker names the task; the others go on.",
        "worker-eats-memory", 3, [DONE],
        ["killed the-hungry-task", "processes of the other worker: 1", "it works again"],
        env={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}, srun="-n4 --mem=1G", within=25,
    ),
}  # fmt: skip

HOST = {
    "SIGKILL": Fault(
        "A worker rank that dies costs its workers only.",
        "works-on", 137, [r"^batchlet: rank 2 on node \S+ died and 1 worker with it; the run goes on with 1$", DONE],
        ["sum 190", "after the block"], act=strike_and_go_on(KILL, 2), client_rc=0, within=10,
    ),
    "SIGKILL, below min_workers": Fault(
        "With fewer workers than min_workers left the client is told.",
        "waits", 137, [r"^batchlet: error: rank 2 on node \S+ died and 1 worker with it; 1 worker left"],
        env=options(min_workers=2), act=strike(KILL, 2), client_rc=81,
    ),
    "SIGKILL, alone on its node": Fault(
        "What a killed rank had on its node is gone, too.",
        "waits", 137, [r"^batchlet: error: rank 2 on node \S+ died and 1 worker with it; 0 workers left"],
        srun="-N2 -n3 --distribution=plane=2", act=strike(KILL, 2), client_rc=81,
        # Slurm kills what is left on a node with the last task there: the agent too, perhaps before it has said so, and then
        # another one is awaited first.
        scratch_stays=True, within=25,
    ),
    "SIGKILL, all": Fault(
        "When the last worker rank has died the client is told.",
        "waits", 137, [r"^batchlet: error: rank \d on node \S+ died and 1 worker with it; 0 workers left"],
        act=strike(KILL, 2, 3), client_rc=81,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLIENT)
def test_whatever_becomes_of_the_client_its_exit_code_counts(place: Place, case: str) -> None:
    """Whatever becomes of the user's code, the others end and the exit code is the client's."""
    run_fault(place, CLIENT[case])


@pytest.mark.parametrize("own", [True, False], ids=["in rank 0", "in its own process"])
@pytest.mark.parametrize("case", SCHEDULER)
def test_a_scheduler_that_is_dead_or_stands_still_ends_the_run(place: Place, case: str, own: bool) -> None:
    """A scheduler that is dead or stands still ends the run, a busy one does not."""
    fault = SCHEDULER[case]
    run_fault(place, replace(fault, env={**fault.env, **(DASK_FIRST if own else {})}))


@pytest.mark.parametrize("case", SCHEDULER_PROCESS)
def test_rank_0_says_what_became_of_the_schedulers_process(place: Place, case: str) -> None:
    """Where the scheduler has a process of its own, rank 0 says what has become of it."""
    run_fault(place, SCHEDULER_PROCESS[case])


@pytest.mark.parametrize("case", WORKER)
def test_a_worker_process_that_dies_costs_its_own_work_only(place: Place, case: str) -> None:
    """A worker process that dies costs its own work only."""
    run_fault(place, WORKER[case])


@pytest.mark.parametrize("case", HOST)
def test_a_worker_rank_that_dies_costs_its_workers_only(place: Place, case: str) -> None:
    """A worker rank that dies costs its workers only, as long as enough are left."""
    run_fault(place, HOST[case])
