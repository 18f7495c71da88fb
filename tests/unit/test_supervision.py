"""The hub on rank 0 and the links of the others, over real sockets on the loopback."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchlet.control.connection import Connection
from batchlet.control.coordinator import Coordinator
from batchlet.errors import (
    BatchletError,
    ClusterLostError,
    PlanError,
    StartTimeoutError,
    TerminatedError,
    VersionMismatchError,
)
from batchlet.rendezvous import CoordinatorRecord
from batchlet.security import Credentials

SECRET = os.urandom(32).hex()
GIB = 1 << 30
VERSIONS = {"Python": "3.11.2", "dask": "2026.8.0"}
PATIENCE = 30.0
START = {"address": "tcp://127.0.0.1:1", "dashboard": None}

# Nothing here may take long, whatever goes wrong: a wait without an end is a finding.
pytestmark = pytest.mark.timeout(20)

# A member of a run in a process of its own, to be killed.
MEMBER = """
import json, sys, time
from batchlet.rendezvous import CoordinatorRecord
from batchlet.control.connection import Connection
link = Connection(CoordinatorRecord.from_json(sys.argv[1]), json.loads(sys.argv[2]), time.monotonic() + 20, 30.0)
workers = json.loads(sys.argv[3])
if workers is not None:
    link.send("plan", participant=json.loads(sys.argv[2])["name"], workers=workers)
link.wait("welcome", time.monotonic() + 20)
print("here", flush=True)
time.sleep(60)
"""


def hello(name: str, role: str, node: str, local_ranks: list[int]) -> dict[str, object]:
    return {"name": name, "role": role, "node": node, "local_ranks": local_ranks, "brings": [], "versions": VERSIONS}


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def connect(
    meeting: CoordinatorRecord, greeting: dict[str, object], deadline: float, patience: float = PATIENCE
) -> Connection:
    return Connection(meeting, greeting, deadline, patience)


class Run:
    """A hub, and what it has said to its process."""

    def __init__(
        self,
        members: str = "1 2 3",
        *,
        start_timeout: float = 20.0,
        stop_timeout: float = 2.0,
        grace: float = 20.0,
        scheduler_timeout: float = 60.0,
        quorum: int | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.met = threading.Event()
        self.stopped = threading.Event()
        self.stuck = threading.Event()
        self.credentials = credentials
        self.failures: list[BatchletError] = []
        self.losses: list[str] = []
        self.links: list[Connection] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.coordinator = Coordinator(
            host="127.0.0.1",
            secret=SECRET,
            credentials=credentials,
            node="n0",
            participants=members.split(),
            start_timeout=start_timeout,
            patience=start_timeout,
            stop_timeout=stop_timeout,
            grace=grace,
            scheduler_timeout=scheduler_timeout,
            versions=VERSIONS,
            quorum=lambda _: quorum,
            on_met=self.met.set,
            on_stop=self.stopped.set,
            on_failure=self.failures.append,
            on_loss=self.losses.append,
            on_stuck=self.stuck.set,
            expected_nodes=dict,
        )
        self.port = self.coordinator.listen()

    def meeting(self, **other: object) -> CoordinatorRecord:
        fields = {
            "run_id": "run",
            "nonce": "ab",
            "node": "n0",
            "host": "127.0.0.1",
            "port": self.port,
            "secret": SECRET,
            "certificate": self.credentials.certificate if self.credentials else "",
        } | other
        return CoordinatorRecord(**fields)  # type: ignore[arg-type]

    def link(
        self, name: str, role: str = "worker", node: str = "n1", local_ranks: tuple[int, ...] = (2, 3)
    ) -> Connection:
        link = connect(self.meeting(), hello(name, role, node, list(local_ranks)), time.monotonic() + 5)
        self.links.append(link)
        return link

    def client(self) -> Connection:
        return self.link("1", "client", "n0", (0, 1))

    def worker(self, name: str, workers: int = 1) -> Connection:
        link = self.link(name)
        link.send("plan", participant=name, workers=self.names(name, workers))
        return link

    @staticmethod
    def names(name: str, workers: int = 1) -> list[list[object]]:
        return [[name if number == 0 else f"{name}-{number}", 2, GIB] for number in range(workers)]

    def process(self, name: str, role: str = "worker", workers: int | None = 1) -> subprocess.Popen[str]:
        """A member in a process of its own, connected."""
        words = [
            self.meeting().to_json(),
            json.dumps(
                hello(name, role, "n0" if role == "client" else "n1", [0, 1] if role == "client" else [2, 3])
                | {"brings": [] if role == "client" else [name]}
            ),
            json.dumps(None if workers is None else self.names(name, workers)),
        ]
        process = subprocess.Popen([sys.executable, "-c", MEMBER, *words], stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        return process

    def running(self, *names: str) -> None:
        """Bring the cluster to where it is ready, with the workers of these names."""
        self.coordinator.scheduler_started(**START)
        for name in names:
            self.coordinator.worker_joined(name)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        for link in self.links:
            if link._thread.is_alive():
                link.close()
        if self.coordinator._thread.is_alive():
            self.coordinator.close()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(5)


def is_silent(link: Connection, op: str, seconds: float = 0.1) -> bool:
    """Whether the message does not come."""
    try:
        link.wait(op, time.monotonic() + seconds)
    except StartTimeoutError:
        return True
    return False


@pytest.fixture
def new_run() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(*arguments, **options) -> Run:
        run = Run(*arguments, **options)
        run.coordinator.tell({"n1": [4 * GIB, "scontrol"]})
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.close()


@pytest.fixture
def run(new_run) -> Run:
    return new_run()


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


# Becoming ready


def test_the_cluster_is_ready_when_all_have_planned_and_all_workers_have_joined_and_not_before(run):
    client, second, third = run.client(), run.worker("2", workers=2), run.worker("3")
    assert second.wait("welcome", soon())["facts"] == {"n1": [4 * GIB, "scontrol"]}
    run.coordinator.scheduler_started(**START)
    assert third.wait("start", soon())["address"] == START["address"]
    run.coordinator.worker_joined(2)
    run.coordinator.worker_joined("2-1")
    assert is_silent(client, "ready")
    assert not run.met.is_set()
    run.coordinator.worker_joined(3)
    ready = client.wait("ready", soon())
    assert run.met.is_set()
    assert (ready["workers"], ready["nodes"]) == (3, 2)
    assert (ready["threads"], ready["memory"]) == ([2, 2], [GIB, GIB])
    assert second.wait("ready", soon()) == third.wait("ready", soon()) == ready
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
        if number == len(order) - 1 and run.links:
            assert is_silent(run.links[0], "ready", 0.03)
    for link in run.links:
        assert link.wait("ready", soon())["workers"] == 2


def test_a_member_that_another_one_brings_is_waited_for_too(run):
    run.worker("2")
    run.worker("3")
    brings = connect(run.meeting(), hello("1", "client", "n0", [0, 1]) | {"brings": ["1w"]}, soon())
    run.links.append(brings)
    run.running("2", "3")
    assert is_silent(brings, "ready")
    run.worker("1w")
    run.coordinator.worker_joined("1w")
    assert brings.wait("ready", soon())["workers"] == 3


def test_a_listener_hears_what_came_before_it_listened(run):
    client = run.client()
    client.wait("welcome", soon())
    heard: list[str] = []
    client.listen(lambda message: heard.append(message["op"]))
    assert heard == ["welcome"]
    run.coordinator.scheduler_started(**START)
    assert eventually(lambda: heard == ["welcome", "start"])


# A scheduler in a process of its own


@pytest.fixture
def apart(run) -> Connection:
    """The scheduler's link in a run that is ready."""
    scheduler = run.link("scheduler", "scheduler", "n0", ())
    client = run.client()
    run.worker("2")
    run.worker("3")
    scheduler.send("started", start=START)
    for name in ("2", "3"):
        scheduler.send("joined", worker=name)
    assert client.wait("start", soon())["address"] == START["address"]
    assert client.wait("ready", soon())["workers"] == 2
    return scheduler


def test_a_scheduler_apart_ends_when_the_workers_have_left_and_rank_0_after_it(run, apart):
    _, client, second, third = run.links
    client.send("done")
    apart.wait("stopping", soon())
    second.wait("stop", soon())
    second.close()
    assert is_silent(apart, "stop")
    third.close()
    apart.wait("stop", soon())
    assert "rank 0" in client.wait("bye", soon())["timeline"]
    assert not run.stopped.wait(0.1)
    apart.close()
    assert run.stopped.wait(5)
    assert (run.failures, run.losses) == ([], [])


def test_a_scheduler_apart_that_dies_is_reported_as_its_host_saw_it_end(run, apart):
    _, client, second, _ = run.links
    second.send("died", how="was killed by SIGKILL")
    with pytest.raises(
        ClusterLostError, match=r"^The scheduler, a process of rank 0 on node n0, was killed by SIGKILL\.$"
    ):
        client.wait("bye", soon())
    assert len(run.failures) == 1


@pytest.mark.parametrize("first", ["process", "connection"])
def test_a_scheduler_apart_that_dies_without_a_word_is_missed(run, apart, first):
    if first == "process":
        run.coordinator.scheduler_gone()
    else:
        apart._loop.call_soon_threadsafe(apart._writer.transport.abort)
    with pytest.raises(ClusterLostError, match=r"^The scheduler, a process of rank 0 on node n0, ended\.$"):
        run.links[1].wait("bye", soon())


def test_a_scheduler_apart_that_stands_still_ends_the_run(new_run):
    run = new_run("1 2", scheduler_timeout=0.4)
    scheduler, client = run.link("scheduler", "scheduler", "n0", ()), run.client()
    run.worker("2")
    scheduler.send("beat")
    scheduler.send("started", start=START)
    scheduler.send("joined", worker="2")
    client.wait("ready", soon())
    with pytest.raises(ClusterLostError, match=r"has not responded for 0\.4 s"):
        client.wait("bye", soon())


def test_a_scheduler_apart_forgets_workers_that_are_lost(run, apart):
    run.links[2].send("gone", participant="2")
    assert apart.wait("forget", soon())["workers"] == ["2"]


# The deadline


def test_the_deadline_names_the_rank_that_is_missing_and_its_node(new_run):
    run = new_run(start_timeout=0.4)
    client, second = run.client(), run.worker("2")
    run.running("2")
    with pytest.raises(StartTimeoutError) as caught:
        client.wait("ready", soon())
    message = str(caught.value)
    assert "rank 3 on node n1 did not arrive" in message
    assert "rank 2" not in message
    assert "after 0.4 s (start_timeout)" in message
    assert "1 workers had joined" in message or "1 worker had joined" in message
    assert "BATCHLET_DASK_CLUSTER__START_TIMEOUT" in message
    assert "\n" not in message
    with pytest.raises(StartTimeoutError):
        second.wait("ready", soon())
    assert [str(error) for error in run.failures] == [message]


def test_the_deadline_names_a_worker_that_did_not_join_and_a_scheduler_that_did_not_start(new_run):
    run = new_run(start_timeout=0.3)
    client = run.client()
    run.worker("2", workers=2)
    run.worker("3")
    run.coordinator.worker_joined("2")
    with pytest.raises(StartTimeoutError, match=r"workers 2-1, 3 did not join .* the scheduler did not start"):
        client.wait("ready", soon())


def test_a_rank_from_whose_node_nobody_came_is_named_too(new_run):
    run = new_run("1 2 3 9", start_timeout=0.3)
    client = run.client()
    run.worker("2")
    run.worker("3")
    with pytest.raises(StartTimeoutError, match="rank 9 on a node that nobody came from did not arrive"):
        client.wait("ready", soon())


def test_of_very_many_missing_ranks_the_first_are_named_and_the_rest_counted(new_run):
    run = new_run(" ".join(str(rank) for rank in range(1, 200)), start_timeout=0.3)
    client = run.client()
    with pytest.raises(StartTimeoutError) as caught:
        client.wait("ready", soon())
    assert "rank 2 " in str(caught.value)
    assert "and 190 more did not arrive" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("quorum", [1, 2])
def test_with_enough_workers_at_the_deadline_the_run_goes_on_and_says_who_is_missing(new_run, quorum):
    run = new_run(start_timeout=0.4, quorum=quorum)
    client = run.client()
    run.worker("2", workers=2)
    run.running("2", "2-1")
    assert is_silent(client, "ready", 0.1)
    assert client.wait("ready", soon())["workers"] == 2
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
        client.wait("ready", soon())


def test_without_the_client_no_quorum_is_enough(new_run):
    run = new_run(start_timeout=0.3, quorum=1)
    second = run.worker("2")
    run.running("2")
    with pytest.raises(StartTimeoutError, match="rank 1"):
        second.wait("ready", soon())


# Failures


def test_what_one_rank_reports_ends_all_ranks_with_the_same_error(run):
    client, second, third = run.client(), run.worker("2"), run.worker("3")
    second.send("failed", kind="PlanError", message="9 workers on node n1")
    for link in (client, second, third):
        with pytest.raises(PlanError, match="9 workers on node n1") as caught:
            link.wait("ready", soon())
        assert caught.value.code == link.exit_code == 2
        assert link.coordinator_is_alive
    assert [(type(error), str(error)) for error in run.failures] == [(PlanError, "9 workers on node n1")]


def test_the_first_failure_is_the_root_cause_and_the_only_one_that_is_told(run):
    client, second, third = run.client(), run.worker("2"), run.worker("3")
    second.send("failed", kind="PlanError", message="the cause")
    assert eventually(lambda: run.failures)
    third.send("failed", kind="NetworkError", message="a consequence")
    run.coordinator.fail(ClusterLostError("another consequence"))
    with pytest.raises(PlanError, match="the cause"):
        client.wait("ready", soon())
    third.close()
    assert [str(error) for error in run.failures] == ["the cause"]


def test_a_rank_that_comes_after_the_failure_hears_the_cause_too(run):
    run.client()
    run.coordinator.fail(PlanError("nothing fits"))
    with pytest.raises(PlanError, match="nothing fits"):
        run.link("3").wait("start", soon())


def test_when_all_have_heard_of_the_failure_rank_0_is_released_at_once(new_run):
    run = new_run("1 2")
    client, second = run.client(), run.worker("2")
    run.coordinator.fail(PlanError("nothing fits"))
    for link in (client, second):
        with contextlib.suppress(PlanError):
            link.wait("ready", soon())
        link.close()
    assert run.stopped.wait(2)


def test_a_cluster_without_any_worker_is_a_failure(new_run):
    run = new_run("1 2")
    client = run.client()
    run.worker("2", workers=0)
    run.coordinator.scheduler_started(**START)
    with pytest.raises(BatchletError) as caught:
        client.wait("ready", soon())
    assert caught.value.code != 0


# Losses


def test_a_worker_rank_that_is_killed_is_reported_and_the_run_goes_on_with_the_others(run):
    client = run.client()
    run.worker("2")
    process = run.process("3", workers=2)
    run.running("2", "3", "3-1")
    client.wait("ready", soon())
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
    client.wait("ready", soon())
    kill(process)
    with pytest.raises(
        ClusterLostError, match=rf"rank 3 on node n1 died .* {len(others)} workers? (are )?left"
    ) as caught:
        client.wait("never", soon())
    assert caught.value.code == client.exit_code == 81


def test_a_rank_that_dies_while_starting_ends_the_run_at_once(run):
    client = run.client()
    run.worker("2")
    process = run.process("3", workers=None)
    run.running("2")
    assert is_silent(client, "ready")
    kill(process)
    with pytest.raises(ClusterLostError, match="rank 3 on node n1 died while the cluster was starting"):
        client.wait("ready", soon())


def test_a_rank_that_dies_while_starting_is_not_waited_for_where_fewer_are_enough(new_run):
    run = new_run("1 2 3", quorum=1)
    client = run.client()
    run.worker("2")
    process = run.process("3", workers=None)
    run.running("2")
    assert is_silent(client, "ready")
    kill(process)
    assert client.wait("ready", soon())["workers"] == 1
    assert run.losses == ["rank 3 on node n1 died while the cluster was starting"]


def test_when_the_client_is_killed_the_run_ends_for_all(run):
    second, third = run.worker("2"), run.worker("3")
    process = run.process("1", "client", workers=None)
    run.running("2", "3")
    second.wait("ready", soon())
    kill(process)
    assert second.wait("stop", soon())
    assert third.wait("stop", soon())
    second.close()
    third.close()
    assert run.stopped.wait(2)
    (loss,) = run.losses
    assert "client, rank 1 on node n0" in loss
    assert run.failures == []


def test_when_rank_0_is_gone_every_rank_knows_and_none_waits_for_its_words(run):
    client, second = run.client(), run.worker("2")
    second.wait("welcome", soon())
    client.wait("welcome", soon())
    run.coordinator.close()
    for link in (client, second):
        with pytest.raises(
            ClusterLostError, match="Rank 0 on node n0, the scheduler, is lost: its connection ended"
        ) as caught:
            link.wait("ready", soon())
        assert caught.value.code == link.exit_code == 81
        assert not link.coordinator_is_alive


# Signals, versions, and a rank 0 that stands still


def test_a_rank_with_other_versions_ends_the_run_before_it_starts_and_both_are_shown(run):
    client = run.client()
    other = hello("2", "worker", "n1", [2]) | {"versions": VERSIONS | {"dask": "2025.1.0"}}
    run.links.append(connect(run.meeting(), other, soon()))
    for link in run.links:
        with pytest.raises(VersionMismatchError) as caught:
            link.wait("ready", soon())
        assert caught.value.code == link.exit_code == 83
        assert "rank 2 on node n1 has dask 2025.1.0, but rank 0 has dask 2026.8.0" in str(caught.value)
        assert "Python" not in str(caught.value)
    assert client.coordinator_is_alive


def test_a_signal_that_some_rank_got_is_passed_on_to_the_client_once(run):
    client, second = run.client(), run.worker("2")
    second.send("signalled", number=signal.SIGTERM)
    assert client.wait("terminate", soon())["number"] == signal.SIGTERM
    assert client.wait("terminate", soon())["where"] == "rank 2 on node n1"
    run.coordinator.signalled(signal.SIGINT, "rank 0 on node n0")
    assert is_silent(second, "end")
    assert client.wait("terminate", soon())["number"] == signal.SIGTERM
    assert run.failures == []


def test_a_signal_without_a_client_ends_the_run_with_128_plus_its_number(run):
    second = run.worker("2")
    second.wait("welcome", soon())
    run.coordinator.signalled(signal.SIGTERM, "rank 0 on node n0")
    with pytest.raises(TerminatedError, match="SIGTERM ended the run; it was sent to rank 0 on node n0"):
        second.wait("ready", soon())
    assert second.exit_code == 128 + signal.SIGTERM
    assert [error.code for error in run.failures] == [128 + signal.SIGTERM]


def test_a_client_that_does_not_heed_a_signal_is_ended_after_its_grace(new_run):
    run = new_run("1 2", grace=0.1, stop_timeout=0.1)
    client = run.client()
    run.worker("2")
    run.running("2")
    client.wait("ready", soon())
    run.coordinator.signalled(signal.SIGTERM, "rank 0 on node n0")
    with pytest.raises(TerminatedError):
        client.wait("never", soon(2))


def test_a_scheduler_that_stands_still_ends_the_run_and_one_that_is_only_slow_does_not(new_run):
    run = new_run("1 2", scheduler_timeout=0.4)
    client = run.client()
    run.worker("2")
    run.running("2")
    client.wait("ready", soon())
    for _ in range(6):
        run.coordinator.beat()
        assert is_silent(client, "end", 0.1)
    with pytest.raises(ClusterLostError, match=r"has not responded for 0\.4 s \(scheduler_timeout\)"):
        client.wait("never", soon(2))


def test_a_rank_0_that_stands_still_is_noticed_by_the_others(tmp_path):
    code = (
        "import os, sys, time; sys.path[:0] = [sys.argv[1]]; from unit.test_supervision import Run\n"
        "run = Run(); run.coordinator.tell({}); print(run.meeting().to_json(), flush=True); time.sleep(60)"
    )
    folder = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            meeting = CoordinatorRecord.from_json(process.stdout.readline())
            link = connect(meeting, hello("2", "worker", "n1", [2]), soon(), 0.5)
            link.wait("welcome", soon())
            assert is_silent(link, "end", 0.8)
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(ClusterLostError, match=r"it has not responded for 0\.5 s"):
                link.wait("ready", soon())
            assert 0.3 < time.monotonic() - began < 3
            assert not link.coordinator_is_alive
            link.close(0.2)
        finally:
            process.kill()


# The end in good order


def test_when_the_client_is_done_the_workers_leave_first_and_the_client_last(run):
    client, second, third = run.client(), run.worker("2"), run.worker("3")
    run.running("2", "3")
    client.wait("ready", soon())
    client.send("done")
    second.wait("stop", soon())
    third.wait("stop", soon())
    second.close()
    assert is_silent(client, "bye")
    assert not run.stopped.is_set()
    third.close()
    client.wait("bye", soon())
    assert run.stopped.wait(2)
    assert (run.failures, run.losses) == ([], [])
    assert second.exit_code == third.exit_code == 0


def test_a_worker_that_does_not_leave_holds_up_the_end_for_stop_timeout_and_no_longer(new_run):
    run = new_run(stop_timeout=0.3)
    client = run.client()
    run.worker("2")
    run.worker("3")
    run.running("2", "3")
    client.wait("ready", soon())
    client.send("done")
    began = time.monotonic()
    assert run.stopped.wait(2)
    assert 0.2 < time.monotonic() - began < 1.5


def test_a_rank_that_comes_when_the_run_is_over_is_told_to_stop(new_run):
    run = new_run(start_timeout=0.2, stop_timeout=3, quorum=1)
    client = run.client()
    run.worker("2")
    run.running("2")
    client.wait("ready", soon())
    client.send("done")
    client.wait("stop", soon())
    assert run.link("3").wait("stop", soon(1))["op"] == "stop"


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_nothing_is_left_of_a_run_in_its_processes(new_run):
    new_run("2").worker("2").close()
    threads, files = threading.active_count(), open_files()
    run = Run("1 2")
    run.coordinator.tell({})
    client, second = run.client(), run.worker("2")
    run.running("2")
    client.wait("ready", soon())
    client.send("done")
    second.close()
    client.wait("bye", soon())
    client.close()
    run.coordinator.close()
    assert eventually(lambda: threading.active_count() == threads)
    assert eventually(lambda: open_files() == files)


# Strangers


def raw(run: Run, sent: bytes) -> bytes:
    """All that the hub says to a stranger who says this, by TLS if it wants that."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", run.port), timeout=5))
        if run.credentials is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = stack.enter_context(context.wrap_socket(connection))
        answer = connection.recv(4096)
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            # TCP's end alone: an SSLSocket's own method would forget that it is one.
            socket.socket.shutdown(connection, socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(4096):
                answer += more
    return answer


def a_hello(**other: object) -> bytes:
    return (
        json.dumps({**hello("2", "worker", "n1", [2, 3]), "op": "hello", "challenge": "00", **other}).encode() + b"\n"
    )


STRANGERS = {
    "silence": b"",
    "a browser": b"GET / HTTP/1.1\r\nHost: n0\r\n\r\n",
    "no proof": a_hello(),
    "a wrong proof": a_hello(proof="0" * 64),
    "a proof that is no text": a_hello(proof=[1]),
    "a proof that is not ASCII": a_hello(proof="\u00e9" * 64),
    "an empty object": b"{}\n",
    "no object": b"[]\n",
    "no UTF-8": b"\xff\xfe\n",
    "half a line": b'{"op": "hel',
    "a line without an end": b"x" * (5 << 20),
    "a nest": b"[" * 200_000 + b"\n",
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_gets_a_challenge_and_nothing_else_and_disturbs_nobody(new_run, caplog, capfd, sent, tls):
    run = new_run(credentials=Credentials.generate() if tls else None)
    caplog.set_level(logging.DEBUG, logger="asyncio")
    client = run.client()
    answer = raw(run, sent)
    assert set(json.loads(answer)) == {"op", "challenge"}
    assert SECRET.encode() not in answer
    run.worker("2")
    run.worker("3")
    run.running("2", "3")
    assert client.wait("ready", soon())["workers"] == 2
    assert (run.failures, run.losses) == ([], [])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_stranger_who_talks_without_end_is_cut_off(new_run, tls):
    """Nobody need know the secret to say a lot: what the hub keeps of it is little."""
    run = new_run(credentials=Credentials.generate() if tls else None)
    began = time.monotonic()
    assert set(json.loads(raw(run, b"x" * (1 << 17)))) == {"op", "challenge"}
    assert time.monotonic() - began < 2, "the hub waited for more"


def test_a_rank_with_a_wrong_secret_gets_nothing_and_gives_up_at_its_deadline(run):
    began = time.monotonic()
    with pytest.raises(StartTimeoutError, match=r"Node n1 cannot reach rank 0 on node n0 at 127\.0\.0\.1:") as caught:
        connect(run.meeting(secret="00" * 32), hello("2", "worker", "n1", [2]), soon(0.3))
    assert time.monotonic() - began < 3
    assert "interface" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_nobody_listens_a_rank_gives_up_at_its_deadline():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = threading.active_count()
    began = time.monotonic()
    with pytest.raises(StartTimeoutError, match=f"at 127.0.0.1:{port}"):
        connect(
            CoordinatorRecord("run", "ab", "n0", "127.0.0.1", port, SECRET), hello("2", "worker", "n1", [2]), soon(0.3)
        )
    assert time.monotonic() - began < 2
    assert threading.active_count() == before


def test_a_silent_hub_holds_a_rank_up_no_longer_than_its_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        meeting = CoordinatorRecord("run", "ab", "n0", "127.0.0.1", silent.getsockname()[1], SECRET)
        began = time.monotonic()
        with pytest.raises(StartTimeoutError):
            connect(meeting, hello("2", "worker", "n1", [2]), soon(0.3))
        assert time.monotonic() - began < 2


IMPOSTORS = {
    "accepts everybody": b'{"op":"challenge","challenge":"00"}\n{"op":"accepted","proof":"00"}\n{"op":"welcome"}\n',
    "is not ASCII": b'{"op":"challenge","challenge":"00"}\n{"op":"accepted","proof":"\\u00e9"}\n',
    "another program": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("says", IMPOSTORS.values(), ids=IMPOSTORS)
def test_a_rank_trusts_no_hub_that_does_not_know_the_secret_and_never_tells_it(says):
    heard = bytearray()
    ends = threading.Event()

    def pretend(server: socket.socket) -> None:
        server.settimeout(0.05)
        while not ends.is_set():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(says)
                    connection.settimeout(0.3)
                    with contextlib.suppress(OSError):
                        heard.extend(connection.recv(65536))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=pretend, args=[server])
        thread.start()
        try:
            meeting = CoordinatorRecord("run", "ab", "n0", "127.0.0.1", server.getsockname()[1], SECRET)
            with pytest.raises(StartTimeoutError, match="cannot reach rank 0"):
                connect(meeting, hello("2", "worker", "n1", [2]), soon(0.3))
        finally:
            ends.set()
            thread.join()
    assert b"SSH" in says or b"proof" in heard
    assert SECRET.encode() not in heard


def test_a_recorded_handshake_opens_no_second_door(run):
    """The proof answers the hub's challenge of one connection; sent again on another it is worth nothing."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        recorded = bytearray()

        def forward() -> None:
            inner, _ = proxy.accept()
            with inner, socket.create_connection(("127.0.0.1", run.port)) as outer:
                inner.sendall(outer.recv(4096))
                recorded.extend(inner.recv(4096))
                outer.sendall(recorded)
                inner.sendall(outer.recv(4096))
                inner.recv(4096)

        thread = threading.Thread(target=forward)
        thread.start()
        meeting = run.meeting(port=proxy.getsockname()[1])
        connect(meeting, hello("2", "worker", "n1", [2]), soon()).close()
        thread.join(5)
    assert b"proof" in recorded
    assert set(json.loads(raw(run, bytes(recorded)))) == {"op", "challenge"}


# TLS


@pytest.fixture
def closed_run(new_run) -> Run:
    return new_run("1 2", credentials=Credentials.generate())


def test_ranks_with_the_run_s_credentials_meet_over_tls(closed_run):
    client = closed_run.client()
    closed_run.worker("2")
    closed_run.running("2")
    assert client.wait("ready", soon())["workers"] == 1
    assert client._writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")


def test_the_hub_tells_the_key_which_the_record_does_not_have(closed_run):
    assert closed_run.client().credentials == closed_run.credentials
    record = closed_run.meeting().to_json()
    assert "BEGIN CERTIFICATE" in record
    assert "PRIVATE" not in record
    assert closed_run.credentials.key.splitlines()[1] not in record


def test_without_tls_there_is_no_key(run):
    assert run.client().credentials is None


@pytest.mark.parametrize("sent", [STRANGERS["silence"], STRANGERS["a browser"], STRANGERS["a wrong proof"]])
def test_a_stranger_without_tls_does_not_even_get_a_challenge(closed_run, caplog, capfd, sent):
    with socket.create_connection(("127.0.0.1", closed_run.port), timeout=5) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(4096):
                answer += more
    assert b"challenge" not in answer
    client = closed_run.client()
    closed_run.worker("2")
    closed_run.running("2")
    assert client.wait("ready", soon())["workers"] == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


def instead(what: str) -> dict[str, str]:
    """What a rank that is not of this run has instead of the run's own."""
    other = Credentials.generate()
    return {
        "the certificate of another run": {"certificate": other.certificate},
        "no certificate": {"certificate": ""},
        "another secret": {"secret": "00" * 32},
    }[what]


@pytest.mark.parametrize("what", ["the certificate of another run", "no certificate", "another secret"])
def test_a_rank_that_lacks_a_part_of_what_the_run_shares_is_not_let_in(closed_run, what):
    with pytest.raises(StartTimeoutError, match="cannot reach rank 0"):
        connect(closed_run.meeting(**instead(what)), hello("2", "worker", "n1", [2]), soon(0.3))
    assert closed_run.failures == closed_run.losses == []
