"""What an agent leaves to the next one is whole, whenever it is killed, and says when there is to be no next one."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from batchlet.node import handover
from batchlet.node.inputs import encode
from batchlet.node.wait import memory_file

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files in memory are Linux'")

ORDERS = {"until": 5.0, "name": b"\0name", "told": False, "early": False, "stranger": [7], "layout": None}


@pytest.fixture
def agent(monkeypatch):
    """Make an agent's end, whose orders are on standard input; gives that and the file as the ranks have it."""
    before = os.dup(0)

    def make(**more: object) -> tuple[handover.Handover, int]:
        orders = {**ORDERS, **more}
        file = memory_file(encode(orders))
        os.dup2(file, 0)
        return handover.Handover(orders), file

    yield make
    os.dup2(before, 0)


def test_what_is_written_later_replaces_what_was_before_and_ports_are_those_of_the_block(agent):
    ours, file = agent()
    ours.keep(session=1, agents=["agent-2"])
    ours.keep(session=2)
    for block in (1, 2):
        ours.begin_block()
        ours.keep_ports({"2": 4000 + block})
        ours.keep_ports({f"3-{block}": 5000 + block})
        words = handover.read_all(file)
        assert (words["session"], words["agents"]) == (2, ["agent-2"])
        assert words["ports"] == {"2": 4000 + block, f"3-{block}": 5000 + block}


def test_the_ports_of_the_one_before_count_for_the_block_in_which_it_has_died(agent):
    ours, file = agent(ports={"2": 4000}, number=1)
    ours.begin_block()
    assert ours.ports == handover.read_all(file)["ports"] == {"2": 4000}
    ours.begin_block()
    assert ours.ports == handover.read_all(file)["ports"] == {}


def test_half_a_message_is_none(agent):
    ours, file = agent()
    ours.keep(record={"port": 1})
    for size in range(os.fstat(file).st_size, 0, -1):
        os.ftruncate(file, size)
        words = handover.read_all(file)
        assert words == {} or words["until"] == ORDERS["until"]


def test_the_next_agent_has_time_and_looks_for_the_record_only_where_there_was_none(agent):
    ours, file = agent()
    first = handover.inherit(handover.read_all(file))
    assert (first["told"], first["early"], first["number"], first["stranger"]) == (False, False, 1, None)
    ours.keep(record={"port": 1}, within=100)
    second = handover.inherit(handover.read_all(file))
    assert (second["told"], second["early"]) == (True, True)
    assert 90 < second["until"] - time.monotonic() <= 100
    assert second["patience"] == pytest.approx(second["until"] - time.monotonic(), abs=5)


def test_there_are_only_so_many(agent):
    for number in range(handover.MOST + 1):
        ours, file = agent(number=number)
        last = number == handover.MOST
        assert (ours.seconds == 0) == last
        assert (handover.inherit(handover.read_all(file)) is None) == last


def test_a_rank_gets_the_file_with_the_word_that_it_is_accepted(agent):
    ours, file = agent()
    agents_end, ranks_end = socket.socketpair()
    with agents_end, ranks_end:
        ours.accept(agents_end.fileno())
        words, given = handover.received(ranks_end, 100)
        assert words == b"accepted\n"
        assert os.fstat(given).st_ino == os.fstat(file).st_ino
        assert not os.get_inheritable(given)
        agents_end.sendall(b"end 0\n")
        assert handover.received(ranks_end, 100) == (b"end 0\n", None)


def test_nobody_starts_an_agent_for_a_run_that_is_over():
    with socket.create_server(("127.0.0.1", 0)) as server:
        record = {"host": "127.0.0.1", "port": server.getsockname()[1]}
        launch = handover.launch_of({**ORDERS, "record": record})
        assert launch(socket=4)["socket"] == 4
    with pytest.raises(SystemExit) as end:
        launch(socket=4)
    assert end.value.code == 0
    # Before it was in touch with rank 0, nobody can tell.
    assert handover.launch_of(ORDERS)(socket=5)["socket"] == 5


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (137, "was killed (SIGKILL)"),
        (-9, "was killed (SIGKILL)"),
        (1, "ended with exit code 1"),
        (255, "was killed (signal 127)"),
    ],
)
def test_how_it_has_ended_is_said_in_words(code, text):
    assert handover.how_it_ended(code) == text


@pytest.mark.skipif(sys.platform != "linux", reason="the shell of waiting ranks is Linux' alone")
def test_without_a_file_there_is_no_next_one():
    read, write = os.pipe()
    before = os.dup(0)
    os.dup2(read, 0)
    try:
        ours = handover.Handover(ORDERS)
        ours.keep(session=1)
        ours.begin_block()
        ours.keep_ports({"2": 1})
        assert ours.seconds == 0
    finally:
        os.dup2(before, 0)
        os.close(read)
        os.close(write)
