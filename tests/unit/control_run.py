"""A coordinator over real sockets on the loopback, and who connects to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pytest

from batchlet.control.connection import Connection
from batchlet.control.coordinator import Coordinator, CoordinatorConfig
from batchlet.control.events import Rules
from batchlet.control.messages import Hello, Message, Planned
from batchlet.errors import EndError, StartTimeoutError
from batchlet.rendezvous import CoordinatorRecord
from batchlet.security import Credentials

SECRET = os.urandom(32).hex()
GIB = 1 << 30
VERSIONS = {"Python": "3.11.2", "dask": "2026.8.0"}
PATIENCE = 30.0
START = {"address": "tcp://127.0.0.1:1", "dashboard": None}

# A participant of a run in a process of its own, to be killed.
PARTICIPANT = """
import json, sys, time
from batchlet.rendezvous import CoordinatorRecord
from batchlet.control.connection import Connection
from batchlet.control.messages import Hello, Planned, Welcome
hello = Hello(**json.loads(sys.argv[2]))
connection = Connection(CoordinatorRecord.from_json(sys.argv[1]), hello, time.monotonic() + 20, 30.0)
workers = json.loads(sys.argv[3])
if workers is not None:
    connection.send(Planned(hello.name, workers))
connection.wait(Welcome, time.monotonic() + 20)
print("here", flush=True)
time.sleep(60)
"""


def hello(name: str, role: str, node: str, local_ranks: Sequence[int], brings: Sequence[str] = ()) -> Hello:
    return Hello(name, role, node, tuple(local_ranks), tuple(brings), VERSIONS)


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def connect(record: CoordinatorRecord, greeting: Hello, deadline: float, patience: float = PATIENCE) -> Connection:
    return Connection(record, greeting, deadline, patience)


class Owner:
    """The process that a coordinator lives in."""

    def __init__(self, run: Run) -> None:
        self.met = run.met.set
        self.stop_serving = run.stopped.set
        self.conclude = lambda: None
        self.failed = run.failures.append
        self.lost = run.losses.append
        self.end_hard = run.stuck.set
        self.expected_nodes = dict
        self.begin_block = run.asked.append
        self.end_block = run.block_over.set
        self.keep = lambda told, node: run.kept.extend((node, *entry) for entry in told)
        self.use_of_block = dict


class Run:
    """A coordinator, and what it has said to its process."""

    def __init__(
        self,
        participants: str = "1 2 3",
        *,
        start_timeout: float = 20.0,
        stop_timeout: float = 2.0,
        grace: float = 20.0,
        scheduler_timeout: float = 60.0,
        quorum: int | None = None,
        credentials: Credentials | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.kept: list[tuple[object, ...]] = []
        self.met = threading.Event()
        self.stopped = threading.Event()
        self.stuck = threading.Event()
        self.block_over = threading.Event()
        self.asked: list[str] = []
        self.credentials = credentials
        self.failures: list[EndError] = []
        self.losses: list[str] = []
        self.connections: list[Connection] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.host = host
        config = CoordinatorConfig(
            host=host,
            secret=SECRET,
            credentials=credentials,
            node="n0",
            ranks=1 + len(participants.split()),
            stop_timeout=stop_timeout,
            scheduler_timeout=scheduler_timeout,
            versions=VERSIONS,
        )
        self.rules = Rules(
            participants=participants.split(),
            start_timeout=start_timeout,
            patience=start_timeout,
            stop_timeout=stop_timeout,
            grace=grace,
            scheduler_timeout=scheduler_timeout,
            quorum=lambda _: quorum,
        )
        self.coordinator = Coordinator(config, Owner(self))
        self.port = self.coordinator.listen()
        self.coordinator.begin(self.rules, "")

    def record(self, **other: object) -> CoordinatorRecord:
        fields = {
            "run_id": "run",
            "nonce": "ab",
            "node": "n0",
            "host": self.host,
            "port": self.port,
            "secret": SECRET,
            "certificate": self.credentials.certificate if self.credentials else "",
        } | other
        return CoordinatorRecord(**fields)  # type: ignore[arg-type]

    def connection(
        self, name: str, role: str = "worker", node: str = "n1", local_ranks: tuple[int, ...] = (2, 3)
    ) -> Connection:
        connection = connect(self.record(), hello(name, role, node, list(local_ranks)), time.monotonic() + 5)
        self.connections.append(connection)
        return connection

    def client(self) -> Connection:
        return self.connection("1", "client", "n0", (0, 1))

    def worker(self, name: str, workers: int = 1) -> Connection:
        connection = self.connection(name)
        connection.send(Planned(name, self.names(name, workers)))
        return connection

    @staticmethod
    def names(name: str, workers: int = 1) -> list[list[object]]:
        return [[name if number == 0 else f"{name}-{number}", 2, GIB] for number in range(workers)]

    def process(self, name: str, role: str = "worker", workers: int | None = 1) -> subprocess.Popen[str]:
        """A participant in a process of its own, connected."""
        words = [
            self.record().to_json(),
            json.dumps(
                asdict(hello(name, role, "n0", [0, 1]) if role == "client" else hello(name, role, "n1", [2, 3], [name]))
            ),
            json.dumps(None if workers is None else self.names(name, workers)),
        ]
        process = subprocess.Popen([sys.executable, "-c", PARTICIPANT, *words], stdout=subprocess.PIPE, text=True)
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
        for connection in self.connections:
            if connection._thread.is_alive():
                connection.close()
        if self.coordinator._thread.is_alive():
            self.coordinator.close()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(5)


def is_silent(connection: Connection, kind: type[Message], seconds: float = 0.1) -> bool:
    """Whether the message does not come."""
    try:
        connection.wait(kind, time.monotonic() + seconds)
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


@dataclass(frozen=True)
class Never(Message):
    """What nobody sends."""
