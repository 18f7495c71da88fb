"""Who connects to the coordinator without being of the run, and TLS between those who are."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from batchlet import open_files
from batchlet.control import door
from batchlet.control.messages import (
    Failed,
    Finish,
    Ready,
    Stop,
    Welcome,
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
    is_silent,
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
        # Who is no rank is sent away at once, maybe before it has finished.
        with contextlib.suppress(OSError):
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


# Many strangers

MANY = 2000
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
FLOODS = {"idle": b"", "half a TLS hello": HALF_A_HELLO, "garbage": b"\x00\x9fgarbage" * 200}

# They are in a process of their own, as they are in life: connect so many times, say the same, stay; or so many a second.
FLOOD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
host, port, number, words, again = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bytes.fromhex(sys.argv[4]), sys.argv[5:]
held, began = [], None
while True:
    for nth in range(number):
        if began is not None:
            time.sleep(max(0.0, began + nth / number - time.monotonic()))
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        connection.setblocking(False)
        connection.connect_ex((host, port))
        held.append(connection)
        if words:
            time.sleep(0.0001)
            try:
                connection.send(words)
            except OSError:
                pass
    print("connected", flush=True)
    if not again:
        time.sleep(60)
    held = held[-number:]
    began = time.monotonic()
"""


@contextlib.contextmanager
def flood(run: Run, words: bytes, *, again: bool = False) -> Iterator[None]:
    """Strangers by the thousand, all connected when the block begins; `again` and again while it runs."""
    command = [sys.executable, "-c", FLOOD, run.host, str(run.port), str(MANY), words.hex(), *["again"][:again]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("words", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("again", [False, True], ids=["before", "before and during"])
def test_thousands_of_strangers_delay_a_rank_by_two_seconds_at_most_and_no_one_who_is_in(new_run, caplog, words, again):
    # Not once in three times: what else this machine has to do is no stranger's work.
    times: list[float] = []
    while not times or (times[-1] >= 2 and len(times) < 3):
        run = new_run("1 2 3", credentials=Credentials.generate())
        client = run.client()
        run.worker("2")
        with flood(run, words, again=again):
            began = time.monotonic()
            run.worker("3")
            times.append(time.monotonic() - began)
            run.running("2", "3")
            assert client.wait(Ready, soon()).workers == 2
            # Those who are in stand the flood, too.
            assert is_silent(client, Failed, 1.0)
        assert (run.failures, run.losses) == ([], [])
        client.send(Finish())
        client.wait(Stop, soon())
    assert times[-1] < 2, times
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_of_those_who_have_proved_nothing_the_oldest_go_and_their_files_with_them(run):
    limit = open_files.for_strangers(2)
    files = len(list(Path("/dev/fd").iterdir()))
    with flood(run, b""):
        time.sleep(1.0)
        assert len(run.coordinator._door._unproved) <= limit
        assert len(list(Path("/dev/fd").iterdir())) - files < limit + 50
        client = run.client()
        assert client.wait(Welcome, soon()).facts


def test_a_stranger_who_says_nothing_is_sent_away_after_its_time(run, monkeypatch):
    monkeypatch.setattr(door, "UNPROVED_TIMEOUT", 0.2)
    with socket.create_connection(("127.0.0.1", run.port), timeout=5) as connection:
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
        assert time.monotonic() - began < 2


class Tired:
    """A socket that cannot accept the first few times."""

    def __init__(self, real: socket.socket, kind: int) -> None:
        self.real, self.kind, self.calls = real, kind, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def accept(self) -> object:
        self.calls += 1
        if self.calls < 5:
            raise OSError(self.kind, "too many")
        return self.real.accept()


@pytest.mark.parametrize("kind", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_when_there_are_no_more_files_the_coordinator_waits_for_one_without_hurry(run, monkeypatch, kind):
    client = run.client()
    client.wait(Welcome, soon())
    tired = Tired(run.coordinator._door._socket, kind)
    monkeypatch.setattr(run.coordinator._door, "_socket", tired)
    began = time.monotonic()
    run.worker("2").wait(Welcome, soon())
    assert 0.15 < time.monotonic() - began < 2
    assert tired.calls < 10
    assert is_silent(client, Failed, 0.05)


def test_a_coordinator_listens_on_ipv6_where_that_is_its_address(new_run):
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 on this machine")
    run = new_run("1 2", credentials=Credentials.generate(), host="::1")
    client = run.client()
    run.worker("2")
    run.running("2")
    assert client.wait(Ready, soon()).workers == 1
    with pytest.raises(StartTimeoutError, match=rf"cannot reach rank 0 on node n0 at \[::1\]:{run.port} "):
        connect(run.record(secret="00" * 32), hello("2", "worker", "n1", [2]), soon(0.3))


@pytest.mark.parametrize(
    ("ranks", "limit", "strangers"),
    [
        (4, 1 << 20, 256),
        (4, resource.RLIM_INFINITY, 256),
        (1000, 1 << 20, 2000),
        (1000, 1024, 256),
        (4, 60, 15),
        (4, 3, 1),
    ],
)
def test_no_fewer_may_be_at_the_door_than_the_ranks_of_the_run_unless_there_are_no_files(
    monkeypatch, ranks, limit, strangers
):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert open_files.for_strangers(ranks) == strangers
