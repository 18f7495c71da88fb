"""The messages between the processes of a run: what is written is read, and what is none is refused."""

from __future__ import annotations

import json

import pytest

from batchlet.control.connection import error_of
from batchlet.control.messages import (
    BlockOver,
    Closed,
    Failed,
    Hello,
    Message,
    Planned,
    ReportFailure,
    SchedulerStarted,
    Stop,
    Terminate,
)
from batchlet.control.wire import decode, encode, name_of
from batchlet.errors import PlanError, TerminatedError, terminated

# One of each that is more than its name, as JSON gives it back.
MESSAGES = [
    Hello("agent-2", "worker", "n1", [2, 3], ["2"], {"dask": "2026.8.0"}),
    Planned("2", [["2", 4, 1 << 30]]),
    SchedulerStarted("tls://10.0.0.1:8786", ["127.0.0.1", 8787]),
    SchedulerStarted("tls://10.0.0.1:8786"),
    Terminate(15, "rank 2 on node n1"),
    BlockOver({"rank 0": [["process started", 1.5]]}),
    Closed(),
    Stop(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: name_of(type(message)))
def test_a_message_is_read_as_it_was_written_in_one_line(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


def test_every_kind_has_a_name_of_its_own():
    names = [name_of(cls) for cls in Message.__subclasses__()]
    assert len(set(names)) == len(names)
    assert {"hello", "report_failure", "failed", "closed", "scheduler_started"} <= set(names)


REFUSED = {
    "nothing": b"",
    "half a line": b'{"op":"stop"}',
    "no JSON": b"GET / HTTP/1.1\n",
    "no object": b"[]\n",
    "no kind": b"{}\n",
    "an unknown kind": b'{"op":"message"}\n',
    "a kind that is no text": b'{"op":["stop"]}\n',
    "a field that is missing": b'{"op":"hello","name":"2","role":"worker"}\n',
    "a number that is a text": b'{"op":"terminate","number":"15","where":"here"}\n',
    "a list that is a text": b'{"op":"planned","participant":"2","workers":"2"}\n',
    "a mapping that is a list": b'{"op":"block_over","timeline":[]}\n',
    "null": b'{"op":"scheduler_died","how":null}\n',
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED)
def test_what_is_no_message_is_refused(line):
    assert decode(line) is None


def test_a_hello_of_another_version_with_more_fields_is_understood():
    """It must be, for its versions to be compared."""
    line = json.dumps({"op": "hello", "name": "2", "role": "worker", "node": "n1", "colour": "red"}).encode() + b"\n"
    assert decode(line) == Hello("2", "worker", "n1")


@pytest.mark.parametrize("error", [PlanError("9 workers"), terminated(10, "rank 0")], ids=lambda e: type(e).__name__)
def test_an_error_comes_out_as_it_went_in(error):
    found = error_of(Failed.of(error))
    assert (type(found), str(found), found.exit_code) == (type(error), str(error), error.exit_code)
    assert isinstance(found, (PlanError, TerminatedError))
    assert ReportFailure.of(error) == ReportFailure(type(error).__name__, str(error))
