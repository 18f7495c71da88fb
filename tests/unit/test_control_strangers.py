"""Who connects to the coordinator without being of the run, and TLS between those who are."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import threading
import time
from dataclasses import asdict

import pytest

from batchlet.control.messages import (
    Ready,
)
from batchlet.errors import (
    StartTimeoutError,
)
from batchlet.rendezvous import CoordinatorRecord
from batchlet.security import Credentials

from . import control_run
from .control_run import (
    SECRET,
    Run,
    connect,
    hello,
    soon,
)

# Nothing here may take long, whatever goes wrong: a wait without an end is a finding.
pytestmark = pytest.mark.timeout(20)

new_run, run = control_run.new_run, control_run.run


# Strangers


def raw(run: Run, sent: bytes) -> bytes:
    """All that the coordinator says to a stranger who says this, by TLS if it wants that."""
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
        json.dumps({**asdict(hello("2", "worker", "n1", [2, 3])), "op": "hello", "challenge": "00", **other}).encode()
        + b"\n"
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
    assert client.wait(Ready, soon()).workers == 2
    assert (run.failures, run.losses) == ([], [])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_stranger_who_talks_without_end_is_cut_off(new_run, tls):
    """Nobody need know the secret to say a lot: what the coordinator keeps of it is little."""
    run = new_run(credentials=Credentials.generate() if tls else None)
    began = time.monotonic()
    assert set(json.loads(raw(run, b"x" * (1 << 17)))) == {"op", "challenge"}
    assert time.monotonic() - began < 2, "the coordinator waited for more"


def test_a_rank_with_a_wrong_secret_gets_nothing_and_gives_up_at_its_deadline(run):
    began = time.monotonic()
    with pytest.raises(StartTimeoutError, match=r"Node n1 cannot reach rank 0 on node n0 at 127\.0\.0\.1:") as caught:
        connect(run.record(secret="00" * 32), hello("2", "worker", "n1", [2]), soon(0.3))
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


def test_a_silent_coordinator_holds_a_rank_up_no_longer_than_its_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        record = CoordinatorRecord("run", "ab", "n0", "127.0.0.1", silent.getsockname()[1], SECRET)
        began = time.monotonic()
        with pytest.raises(StartTimeoutError):
            connect(record, hello("2", "worker", "n1", [2]), soon(0.3))
        assert time.monotonic() - began < 2


IMPOSTORS = {
    "accepts everybody": b'{"op":"challenge","challenge":"00"}\n{"op":"accepted","proof":"00"}\n{"op":"welcome"}\n',
    "is not ASCII": b'{"op":"challenge","challenge":"00"}\n{"op":"accepted","proof":"\\u00e9"}\n',
    "another program": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("says", IMPOSTORS.values(), ids=IMPOSTORS)
def test_a_rank_trusts_no_coordinator_that_does_not_know_the_secret_and_never_tells_it(says):
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
            record = CoordinatorRecord("run", "ab", "n0", "127.0.0.1", server.getsockname()[1], SECRET)
            with pytest.raises(StartTimeoutError, match="cannot reach rank 0"):
                connect(record, hello("2", "worker", "n1", [2]), soon(0.3))
        finally:
            ends.set()
            thread.join()
    assert b"SSH" in says or b"proof" in heard
    assert SECRET.encode() not in heard


def test_a_recorded_handshake_opens_no_second_door(run):
    """The proof answers the coordinator's challenge of one connection; sent again on another it is worth nothing."""
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
        record = run.record(port=proxy.getsockname()[1])
        connect(record, hello("2", "worker", "n1", [2]), soon()).close()
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
    assert client.wait(Ready, soon()).workers == 1
    assert client._writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")


def test_the_coordinator_tells_the_key_which_the_record_does_not_have(closed_run):
    assert closed_run.client().credentials == closed_run.credentials
    record = closed_run.record().to_json()
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
    assert client.wait(Ready, soon()).workers == 1
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
        connect(closed_run.record(**instead(what)), hello("2", "worker", "n1", [2]), soon(0.3))
    assert closed_run.failures == closed_run.losses == []
