"""Orders travel through a pipe, and a member ends when its starter is gone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import cloudpickle
import pytest

from batchlet.environments import ProcessInfo
from batchlet.environments.slurm import SlurmStep
from batchlet.node.bootstrap import HostOrders, StepOrders, command, send, start_host
from batchlet.rendezvous.base import CoordinatorRecord
from batchlet.settings import Settings

RECEIVE = """
import json, sys
from batchlet.node.bootstrap import receive
try:
    while True:
        print(json.dumps(repr(receive())), flush=True)
except EOFError:
    print(json.dumps("the end"))
"""


@pytest.fixture
def receiver():
    """A process that shows what it receives."""
    process = subprocess.Popen([sys.executable, "-c", RECEIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    for pipe in (process.stdin, process.stdout):
        pipe.close()
    process.kill()
    process.wait(10)


def shown(process) -> list[str]:
    process.stdin.close()
    return [json.loads(line) for line in process.stdout]


def orders() -> StepOrders:
    settings = Settings.resolve({"workers_per_node": 2}, {})
    return StepOrders(settings, ("/somewhere",), 30.0)


def test_what_is_sent_is_received_in_order_and_then_the_end(receiver):
    first = ProcessInfo("slurm", 0, 2, "n1", 1, (0, 1), "run")
    meeting = CoordinatorRecord("run", "nonce", "n1", "10.1.2.3", 4242, "ab" * 32)
    send(receiver.stdin, {"key": "value"})
    send(receiver.stdin, meeting)
    send(receiver.stdin, first)
    assert shown(receiver) == [repr({"key": "value"}), repr(meeting), repr(first), "the end"]


def test_orders_survive_the_way(receiver):
    send(receiver.stdin, orders())
    text, end = shown(receiver)
    assert end == "the end"
    for part in ("workers_per_node=2", "('/somewhere',)", "patience=30.0"):
        assert part in text


def test_a_large_order_arrives_whole(receiver):
    send(receiver.stdin, "x" * 3_000_000)
    (text, end) = shown(receiver)
    assert (len(text), end) == (3_000_002, "the end")


def test_half_an_order_is_the_end(receiver):
    receiver.stdin.write((1000).to_bytes(8, "big") + b"half")
    assert shown(receiver) == ["the end"]


def test_a_class_of_the_users_main_module_travels_by_value():
    program = """
import sys
from batchlet.node.bootstrap import StepOrders, send
from batchlet.settings import Settings
class Mine:
    def __repr__(self): return "mine, by value"
settings = Settings.resolve({"worker_class": Mine, "worker_options": {"key": Mine()}}, {})
send(sys.stdout.buffer, StepOrders(settings, (), 30.0))
"""
    sent = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60).stdout
    settings = cloudpickle.loads(sent[8:]).settings
    assert repr(settings.worker_class()) == repr(settings.worker_options["key"]) == "mine, by value"


def test_the_command_line_says_nothing_but_who_it_is():
    assert command() == [sys.executable, "-m", "batchlet.node"]


def test_a_member_without_a_starter_ends_at_once_and_silently():
    began = time.monotonic()
    done = subprocess.run(command(), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert time.monotonic() - began < 20


def test_a_host_ends_with_its_starter():
    """It waits for rank 0, which is not there; nobody sits down, and the one who could is gone."""
    ours, theirs = socket.socketpair()
    order = HostOrders(
        settings=Settings.resolve({"start_timeout": 60.0}, {}),
        sys_path=tuple(sys.path),
        patience=60.0,
        info=ProcessInfo("slurm", 2, 4, "n1", 1, (0, 1, 2, 3), "run"),
        environment=SlurmStep(),
        socket=theirs.fileno(),
        listen=False,
        by_file=False,
        dask_config=None,
    )
    process = start_host(order)
    theirs.close()
    ours.close()
    try:
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
