"""The coordinator on rank 0 and the connections of the others, over real sockets on the loopback."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from batchlet.control.connection import Connection
from batchlet.control.messages import (
    Beat,
    Closed,
    Failed,
    Finish,
    Forget,
    Gone,
    Message,
    Ready,
    ReportFailure,
    SchedulerDied,
    SchedulerStarted,
    Signalled,
    Stop,
    Stopping,
    Terminate,
    Welcome,
    WorkerJoined,
)
from batchlet.errors import (
    BatchletError,
    ClusterLostError,
    PlanError,
    StartTimeoutError,
    TerminatedError,
    VersionMismatchError,
)
from batchlet.rendezvous import CoordinatorRecord

from . import control_run
from .control_run import (
    GIB,
    START,
    VERSIONS,
    Never,
    Run,
    connect,
    eventually,
    hello,
    is_silent,
    kill,
    soon,
)

# Nothing here may take long, whatever goes wrong: a wait without an end is a finding.
pytestmark = pytest.mark.timeout(20)

new_run, run = control_run.new_run, control_run.run


# Becoming ready


def test_the_cluster_is_ready_when_all_have_planned_and_all_workers_have_joined_and_not_before(run):
    client, second, third = run.client(), run.worker("2", workers=2), run.worker("3")
    assert second.wait(Welcome, soon()).facts == {"n1": [4 * GIB, "scontrol"]}
    run.coordinator.scheduler_started(**START)
    assert third.wait(SchedulerStarted, soon()).address == START["address"]
    run.coordinator.worker_joined(2)
    run.coordinator.worker_joined("2-1")
    assert is_silent(client, Ready)
    assert not run.met.is_set()
    run.coordinator.worker_joined(3)
    ready = client.wait(Ready, soon())
    assert run.met.is_set()
    assert (ready.workers, ready.nodes) == (3, 2)
    assert (ready.threads, ready.memory) == ([2, 2], [GIB, GIB])
    assert second.wait(Ready, soon()) == third.wait(Ready, soon()) == ready
    assert (run.failures, run.losses) == ([], [])


STEPS = {
    "client": lambda run: run.client(),
    "rank 2": lambda run: run.worker("2"),
    "rank 3": lambda run: run.worker("3"),
    "scheduler": lambda run: run.coordinator.scheduler_started(**START),
    "joins": lambda run: [run.coordinator.worker_joined(name) for name in (2, 3)],
}


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS))[::17], ids=", ".join)
def test_the_order_in_which_things_happen_does_not_matter(run, order):
    for number, step in enumerate(order, 1):
        STEPS[step](run)
        if number == len(order) - 1 and run.connections:
            assert is_silent(run.connections[0], Ready, 0.03)
    for connection in run.connections:
        assert connection.wait(Ready, soon()).workers == 2


def test_a_participant_that_another_one_brings_is_waited_for_too(run):
    run.worker("2")
    run.worker("3")
    brings = connect(run.record(), hello("1", "client", "n0", [0, 1], ["1w"]), soon())
    run.connections.append(brings)
    run.running("2", "3")
    assert is_silent(brings, Ready)
    run.worker("1w")
    run.coordinator.worker_joined("1w")
    assert brings.wait(Ready, soon()).workers == 3


def test_a_listener_hears_what_came_before_it_listened(run):
    client = run.client()
    client.wait(Welcome, soon())
    heard: list[type[Message]] = []
    client.listen(lambda message: heard.append(type(message)))
    assert heard == [Welcome]
    run.coordinator.scheduler_started(**START)
    assert eventually(lambda: heard == [Welcome, SchedulerStarted])


# A scheduler in a process of its own


@pytest.fixture
def apart(run) -> Connection:
    """The scheduler's connection in a run that is ready."""
    scheduler = run.connection("scheduler", "scheduler", "n0", ())
    client = run.client()
    run.worker("2")
    run.worker("3")
    scheduler.send(SchedulerStarted(**START))
    for name in ("2", "3"):
        scheduler.send(WorkerJoined(name))
    assert client.wait(SchedulerStarted, soon()).address == START["address"]
    assert client.wait(Ready, soon()).workers == 2
    return scheduler


def test_a_scheduler_apart_ends_when_the_workers_have_left_and_rank_0_after_it(run, apart):
    _, client, second, third = run.connections
    client.send(Finish())
    apart.wait(Stopping, soon())
    second.wait(Stop, soon())
    second.close()
    assert is_silent(apart, Stop)
    third.close()
    apart.wait(Stop, soon())
    assert client.wait(Closed, soon()) == Closed()
    assert not run.stopped.wait(0.1)
    apart.close()
    assert run.stopped.wait(5)
    assert (run.failures, run.losses) == ([], [])


def test_a_scheduler_apart_that_dies_is_reported_as_its_agent_saw_it_end(run, apart):
    _, client, second, _ = run.connections
    second.send(SchedulerDied("was killed by SIGKILL"))
    with pytest.raises(
        ClusterLostError, match=r"^The scheduler, a process of rank 0 on node n0, was killed by SIGKILL\.$"
    ):
        client.wait(Closed, soon())
    assert len(run.failures) == 1


@pytest.mark.parametrize("first", ["process", "connection"])
def test_a_scheduler_apart_that_dies_without_a_word_is_missed(run, apart, first):
    if first == "process":
        run.coordinator.scheduler_gone()
    else:
        apart._loop.call_soon_threadsafe(apart._writer.transport.abort)
    with pytest.raises(ClusterLostError, match=r"^The scheduler, a process of rank 0 on node n0, ended\.$"):
        run.connections[1].wait(Closed, soon())


def test_a_scheduler_apart_that_stands_still_ends_the_run(new_run):
    run = new_run("1 2", scheduler_timeout=0.4)
    scheduler, client = run.connection("scheduler", "scheduler", "n0", ()), run.client()
    run.worker("2")
    scheduler.send(Beat())
    scheduler.send(SchedulerStarted(**START))
    scheduler.send(WorkerJoined("2"))
    client.wait(Ready, soon())
    with pytest.raises(ClusterLostError, match=r"has not responded for 0\.4 s"):
        client.wait(Closed, soon())


def test_a_scheduler_apart_forgets_workers_that_are_lost(run, apart):
    run.connections[2].send(Gone("2"))
    assert apart.wait(Forget, soon()).workers == ["2"]


# The deadline


def test_the_deadline_names_the_rank_that_is_missing_and_its_node(new_run):
    run = new_run(start_timeout=0.4)
    client, second = run.client(), run.worker("2")
    run.running("2")
    with pytest.raises(StartTimeoutError) as caught:
        client.wait(Ready, soon())
    message = str(caught.value)
    assert "rank 3 on node n1 did not arrive" in message
    assert "rank 2" not in message
    assert "after 0.4 s (start_timeout)" in message
    assert "1 workers had joined" in message or "1 worker had joined" in message
    assert "BATCHLET_DASK_CLUSTER__START_TIMEOUT" in message
    assert "\n" not in message
    with pytest.raises(StartTimeoutError):
        second.wait(Ready, soon())
    assert [str(error) for error in run.failures] == [message]


def test_the_deadline_names_a_worker_that_did_not_join_and_a_scheduler_that_did_not_start(new_run):
    run = new_run(start_timeout=0.3)
    client = run.client()
    run.worker("2", workers=2)
    run.worker("3")
    run.coordinator.worker_joined("2")
    with pytest.raises(StartTimeoutError, match=r"workers 2-1, 3 did not join .* the scheduler did not start"):
        client.wait(Ready, soon())


def test_a_rank_from_whose_node_nobody_came_is_named_too(new_run):
    run = new_run("1 2 3 9", start_timeout=0.3)
    client = run.client()
    run.worker("2")
    run.worker("3")
    with pytest.raises(StartTimeoutError, match="rank 9 on a node that nobody came from did not arrive"):
        client.wait(Ready, soon())


def test_of_very_many_missing_ranks_the_first_are_named_and_the_rest_counted(new_run):
    run = new_run(" ".join(str(rank) for rank in range(1, 200)), start_timeout=0.3)
    client = run.client()
    with pytest.raises(StartTimeoutError) as caught:
        client.wait(Ready, soon())
    assert "rank 2 " in str(caught.value)
    assert "and 190 more did not arrive" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("quorum", [1, 2])
def test_with_enough_workers_at_the_deadline_the_run_goes_on_and_says_who_is_missing(new_run, quorum):
    run = new_run(start_timeout=0.4, quorum=quorum)
    client = run.client()
    run.worker("2", workers=2)
    run.running("2", "2-1")
    assert is_silent(client, Ready, 0.1)
    assert client.wait(Ready, soon()).workers == 2
    assert run.failures == []
    (loss,) = run.losses
    assert "rank 3 on node n1 did not arrive" in loss
    assert "goes on with 2 workers" in loss


def test_with_too_few_workers_at_the_deadline_the_run_fails(new_run):
    run = new_run(start_timeout=0.3, quorum=2)
    client = run.client()
    run.worker("2")
    run.running("2")
    with pytest.raises(StartTimeoutError):
        client.wait(Ready, soon())


def test_without_the_client_no_quorum_is_enough(new_run):
    run = new_run(start_timeout=0.3, quorum=1)
    second = run.worker("2")
    run.running("2")
    with pytest.raises(StartTimeoutError, match="rank 1"):
        second.wait(Ready, soon())


# Failures


def test_what_one_rank_reports_ends_all_ranks_with_the_same_error(run):
    client, second, third = run.client(), run.worker("2"), run.worker("3")
    second.send(ReportFailure("PlanError", "9 workers on node n1"))
    for connection in (client, second, third):
        with pytest.raises(PlanError, match="9 workers on node n1") as caught:
            connection.wait(Ready, soon())
        assert caught.value.code == connection.exit_code == 2
        assert connection.coordinator_is_alive
    assert [(type(error), str(error)) for error in run.failures] == [(PlanError, "9 workers on node n1")]


def test_the_first_failure_is_the_root_cause_and_the_only_one_that_is_told(run):
    client, second, third = run.client(), run.worker("2"), run.worker("3")
    second.send(ReportFailure("PlanError", "the cause"))
    assert eventually(lambda: run.failures)
    third.send(ReportFailure("NetworkError", "a consequence"))
    run.coordinator.fail(ClusterLostError("another consequence"))
    with pytest.raises(PlanError, match="the cause"):
        client.wait(Ready, soon())
    third.close()
    assert [str(error) for error in run.failures] == ["the cause"]


def test_a_rank_that_comes_after_the_failure_hears_the_cause_too(run):
    run.client()
    run.coordinator.fail(PlanError("nothing fits"))
    with pytest.raises(PlanError, match="nothing fits"):
        run.connection("3").wait(SchedulerStarted, soon())


def test_when_all_have_heard_of_the_failure_rank_0_is_released_at_once(new_run):
    run = new_run("1 2")
    client, second = run.client(), run.worker("2")
    run.coordinator.fail(PlanError("nothing fits"))
    for connection in (client, second):
        with contextlib.suppress(PlanError):
            connection.wait(Ready, soon())
        connection.close()
    assert run.stopped.wait(2)


def test_a_cluster_without_any_worker_is_a_failure(new_run):
    run = new_run("1 2")
    client = run.client()
    run.worker("2", workers=0)
    run.coordinator.scheduler_started(**START)
    with pytest.raises(BatchletError) as caught:
        client.wait(Ready, soon())
    assert caught.value.code != 0


# Losses


def test_a_worker_rank_that_is_killed_is_reported_and_the_run_goes_on_with_the_others(run):
    client = run.client()
    run.worker("2")
    process = run.process("3", workers=2)
    run.running("2", "3", "3-1")
    client.wait(Ready, soon())
    kill(process)
    assert eventually(lambda: run.losses)
    (loss,) = run.losses
    assert loss.startswith("rank 3 on node n1 died and 2 workers with it; the run goes on with 1")
    assert run.failures == []
    assert not run.stopped.is_set()


@pytest.mark.parametrize(("others", "quorum"), [([], None), (["2"], 2)])
def test_when_too_few_workers_are_left_the_cluster_is_lost(new_run, others, quorum):
    run = new_run("1 3 " + " ".join(others), quorum=quorum)
    client = run.client()
    for name in others:
        run.worker(name)
    process = run.process("3")
    run.running("3", *others)
    client.wait(Ready, soon())
    kill(process)
    with pytest.raises(
        ClusterLostError, match=rf"rank 3 on node n1 died .* {len(others)} workers? (are )?left"
    ) as caught:
        client.wait(Never, soon())
    assert caught.value.code == client.exit_code == 81


def test_a_rank_that_dies_while_starting_ends_the_run_at_once(run):
    client = run.client()
    run.worker("2")
    process = run.process("3", workers=None)
    run.running("2")
    assert is_silent(client, Ready)
    kill(process)
    with pytest.raises(ClusterLostError, match="rank 3 on node n1 died while the cluster was starting"):
        client.wait(Ready, soon())


def test_a_rank_that_dies_while_starting_is_not_waited_for_where_fewer_are_enough(new_run):
    run = new_run("1 2 3", quorum=1)
    client = run.client()
    run.worker("2")
    process = run.process("3", workers=None)
    run.running("2")
    assert is_silent(client, Ready)
    kill(process)
    assert client.wait(Ready, soon()).workers == 1
    assert run.losses == ["rank 3 on node n1 died while the cluster was starting"]


def test_when_the_client_is_killed_the_run_ends_for_all(run):
    second, third = run.worker("2"), run.worker("3")
    process = run.process("1", "client", workers=None)
    run.running("2", "3")
    second.wait(Ready, soon())
    kill(process)
    assert second.wait(Stop, soon())
    assert third.wait(Stop, soon())
    second.close()
    third.close()
    assert run.stopped.wait(2)
    (loss,) = run.losses
    assert "client, rank 1 on node n0" in loss
    assert run.failures == []


def test_when_rank_0_is_gone_every_rank_knows_and_none_waits_for_its_words(run):
    client, second = run.client(), run.worker("2")
    second.wait(Welcome, soon())
    client.wait(Welcome, soon())
    run.coordinator.close()
    for connection in (client, second):
        with pytest.raises(
            ClusterLostError, match="Rank 0 on node n0, the scheduler, is lost: its connection ended"
        ) as caught:
            connection.wait(Ready, soon())
        assert caught.value.code == connection.exit_code == 81
        assert not connection.coordinator_is_alive


# Signals, versions, and a rank 0 that stands still


def test_a_rank_with_other_versions_ends_the_run_before_it_starts_and_both_are_shown(run):
    client = run.client()
    other = replace(hello("2", "worker", "n1", [2]), versions=VERSIONS | {"dask": "2025.1.0"})
    run.connections.append(connect(run.record(), other, soon()))
    for connection in run.connections:
        with pytest.raises(VersionMismatchError) as caught:
            connection.wait(Ready, soon())
        assert caught.value.code == connection.exit_code == 83
        assert "rank 2 on node n1 has dask 2025.1.0, but rank 0 has dask 2026.8.0" in str(caught.value)
        assert "Python" not in str(caught.value)
    assert client.coordinator_is_alive


def test_a_signal_that_some_rank_got_is_passed_on_to_the_client_once(run):
    client, second = run.client(), run.worker("2")
    second.send(Signalled(signal.SIGTERM, "2"))
    assert client.wait(Terminate, soon()).number == signal.SIGTERM
    assert client.wait(Terminate, soon()).where == "rank 2 on node n1"
    run.coordinator.signalled(signal.SIGINT, "rank 0 on node n0")
    assert is_silent(second, Failed)
    assert client.wait(Terminate, soon()).number == signal.SIGTERM
    assert run.failures == []


def test_a_signal_without_a_client_ends_the_run_with_128_plus_its_number(run):
    second = run.worker("2")
    second.wait(Welcome, soon())
    run.coordinator.signalled(signal.SIGTERM, "rank 0 on node n0")
    with pytest.raises(TerminatedError, match="SIGTERM ended the run; it was sent to rank 0 on node n0"):
        second.wait(Ready, soon())
    assert second.exit_code == 128 + signal.SIGTERM
    assert [error.code for error in run.failures] == [128 + signal.SIGTERM]


def test_a_client_that_does_not_heed_a_signal_is_ended_after_its_grace(new_run):
    run = new_run("1 2", grace=0.1, stop_timeout=0.1)
    client = run.client()
    run.worker("2")
    run.running("2")
    client.wait(Ready, soon())
    run.coordinator.signalled(signal.SIGTERM, "rank 0 on node n0")
    with pytest.raises(TerminatedError):
        client.wait(Never, soon(2))


def test_a_scheduler_that_stands_still_ends_the_run_and_one_that_is_only_slow_does_not(new_run):
    run = new_run("1 2", scheduler_timeout=0.4)
    client = run.client()
    run.worker("2")
    run.running("2")
    client.wait(Ready, soon())
    for _ in range(6):
        run.coordinator.beat()
        assert is_silent(client, Failed, 0.1)
    with pytest.raises(ClusterLostError, match=r"has not responded for 0\.4 s \(scheduler_timeout\)"):
        client.wait(Never, soon(2))


def test_a_rank_0_that_stands_still_is_noticed_by_the_others(tmp_path):
    code = (
        "import os, sys, time; sys.path[:0] = [sys.argv[1]]; from unit.control_run import Run\n"
        "run = Run(); run.coordinator.tell({}); print(run.record().to_json(), flush=True); time.sleep(60)"
    )
    folder = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            record = CoordinatorRecord.from_json(process.stdout.readline())
            connection = connect(record, hello("2", "worker", "n1", [2]), soon(), 0.5)
            connection.wait(Welcome, soon())
            assert is_silent(connection, Failed, 0.8)
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(ClusterLostError, match=r"it has not responded for 0\.5 s"):
                connection.wait(Ready, soon())
            assert 0.3 < time.monotonic() - began < 3
            assert not connection.coordinator_is_alive
            connection.close(0.2)
        finally:
            process.kill()


# The end in good order


def test_when_the_client_is_done_the_workers_leave_first_and_the_client_last(run):
    client, second, third = run.client(), run.worker("2"), run.worker("3")
    run.running("2", "3")
    client.wait(Ready, soon())
    client.send(Finish())
    second.wait(Stop, soon())
    third.wait(Stop, soon())
    second.close()
    assert is_silent(client, Closed)
    assert not run.stopped.is_set()
    third.close()
    client.wait(Closed, soon())
    assert run.stopped.wait(2)
    assert (run.failures, run.losses) == ([], [])
    assert second.exit_code == third.exit_code == 0


def test_a_worker_that_does_not_leave_holds_up_the_end_for_stop_timeout_and_no_longer(new_run):
    run = new_run(stop_timeout=0.3)
    client = run.client()
    run.worker("2")
    run.worker("3")
    run.running("2", "3")
    client.wait(Ready, soon())
    client.send(Finish())
    began = time.monotonic()
    assert run.stopped.wait(2)
    assert 0.2 < time.monotonic() - began < 1.5


def test_a_rank_that_comes_when_the_run_is_over_is_told_to_stop(new_run):
    run = new_run(start_timeout=0.2, stop_timeout=3, quorum=1)
    client = run.client()
    run.worker("2")
    run.running("2")
    client.wait(Ready, soon())
    client.send(Finish())
    client.wait(Stop, soon())
    assert run.connection("3").wait(Stop, soon(1)) == Stop()


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_nothing_is_left_of_a_run_in_its_processes(new_run):
    first = new_run("2")
    first.worker("2").close()
    assert eventually(lambda: not first.coordinator._writers)
    threads, files = threading.active_count(), open_files()
    run = Run("1 2")
    run.coordinator.tell({})
    client, second = run.client(), run.worker("2")
    run.running("2")
    client.wait(Ready, soon())
    client.send(Finish())
    second.close()
    client.wait(Closed, soon())
    client.close()
    run.coordinator.close()
    assert eventually(lambda: threading.active_count() == threads)
    assert eventually(lambda: open_files() <= files)
