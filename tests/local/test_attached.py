"""A run of this machine is found, looked at and used from outside, and what dead ones have left is recognised."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Place, Result, eventually

from batchlet.errors import VersionMismatchError
from batchlet.rendezvous import CoordinatorRecord
from batchlet.security import Credentials
from batchlet.versions import versions
from batchlet.visits.visit import Visit

BATCHLET = (sys.executable, "-m", "batchlet")
RUN = """
import os, pathlib, sys, time
import mine
from batchlet import BatchletRunner
from dask.distributed import Client, Security

if __name__ == "__main__":
    go_on = pathlib.Path(sys.argv[1])
    security = {"own": Security.temporary, "off": bool, "on": lambda: True}[sys.argv[2]]()
    runner = BatchletRunner(attach=True, workers_per_node=2, threads_per_worker=1, security=security)
    with runner, Client(runner) as client:
        kept = client.submit(mine.Thing, 5, key="kept")
        kept.result()
        client.publish_dataset(thing=kept)
        print("ready", flush=True)
        while not go_on.exists():
            time.sleep(0.05)
        client.unpublish_dataset("thing")
        assert client.submit(abs, -3).result() == 3
        assert kept.result().number == 5
    print("ended", flush=True)
"""
MODULE = """
class Thing:
    def __init__(self, number):
        self.number = number
"""


@dataclass
class Held:
    """A run that stands still until it is told to go on."""

    place: Place
    process: subprocess.Popen[str]
    go_on: Path

    @property
    def name(self) -> str:
        [record] = (self.place.cwd / ".batchlet").glob("*.json")
        return record.name.removesuffix(".json")

    def finish(self) -> Result:
        self.go_on.touch()
        began = time.monotonic()
        out, err = self.process.communicate(timeout=60)
        return Result(self.process.returncode, out, err, time.monotonic() - began)


@pytest.fixture
def held(place: Place, request: pytest.FixtureRequest) -> Iterator[Held]:
    """A run; by a parameter with another security than Batchlet's own."""
    (place.base / "mine.py").write_text(MODULE)
    command = [sys.executable, place.script(RUN), str(place.base / "go-on"), getattr(request, "param", "on")]
    process = subprocess.Popen(
        command, cwd=place.cwd, env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        yield Held(place, process, place.base / "go-on")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def asked(place: Place, *words: str, stdin: str | None = None) -> Result:
    """Run a command of Batchlet from another directory."""
    elsewhere = place.base / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    here = ["env", f"--chdir={elsewhere}", *BATCHLET, *words]
    return place.run_only(*here, stdin=stdin)


def test_a_run_is_listed_looked_at_and_used_from_another_directory_and_never_ended_by_that(held: Held):
    place, name = held.place, held.name
    listed = asked(place, "ps")
    head, line = listed.stdout.splitlines()
    assert head.split() == ["RUN", "JOB", "SINCE", "NODES", "WORKERS", "CPUS", "MEMORY", "TASKS"]
    assert re.match(rf"{name} +local +\d\d:\d\d \(.* s\) +1 +2 +\d+ % of 2 +\d+ % of \S+ GiB +0 running, 0 ready", line)
    [data] = json.loads(asked(place, "ps", "--json").stdout)
    assert (data["run"], data["state"], data["use"]["workers"]) == (name, "alive", 2)
    top = asked(place, "top", "--once").stdout.splitlines()
    assert f"{name}, " in top[0]
    assert "2 workers on 1 node" in top[0]
    assert len(top) == 4, top
    # By the beginning of its name, the whole, the record's path, or nothing.
    code = "print(client.get_dataset('thing').result().number, client.submit(abs, -7).result())"
    for which in ([name[:8]], [str(place.cwd / ".batchlet" / name)], []):
        used = asked(place, "attach", *which, "-c", code)
        assert (used.rc, used.stdout, used.stderr) == (0, "5 7\n", ""), used
    script = place.script("import sys; print(sys.argv[1:], client.submit(len, sys.argv).result()); sys.exit(7)\n")
    used = asked(place, "attach", name, script, "-c", "x")
    assert (used.rc, used.stdout) == (7, "['-c', 'x'] 3\n"), used
    assert asked(place, "attach", stdin="print(client.submit(abs, -8).result())\n").stdout == "8\n"
    failed = asked(place, "attach", "-c", "1 / 0")
    assert failed.rc == 1
    assert failed.stderr.count("ZeroDivisionError") == 1
    assert "batchlet/" not in failed.stderr, failed
    # What ends a cluster does not end this one.
    ended = asked(place, "attach", "-c", "client.cluster.close(); client.shutdown(); client.close()")
    assert (ended.rc, ended.stderr) == (0, f"batchlet: run {name} goes on: only its own script ends it\n"), ended
    result = held.finish()
    assert (result.rc, result.stdout) == (0, "ended\n"), result
    assert f"batchlet: attach: python -m batchlet attach {name} (or top, dashboard)" in result.stderr
    assert len(result.stderr.splitlines()) == 3, result
    assert list((place.base / "state" / "batchlet" / "runs").iterdir()) == []
    place.assert_nothing_left(set(), result)


@pytest.mark.parametrize(("held", "protocol"), [("off", "tcp"), ("own", "tls")], indirect=["held"])
def test_a_run_without_security_or_with_that_of_its_user_is_attached_to_as_any_other(held: Held, protocol: str):
    place = held.place
    [data] = json.loads(asked(place, "ps", "--json").stdout)
    assert (data["state"], data["use"]["workers"]) == ("alive", 2)
    assert "2 workers on 1 node" in asked(place, "top", "--once").stdout
    code = (
        "import batchlet\nwith batchlet.attach() as mine: print(mine.submit(abs, -7).result(), mine.scheduler.address)"
    )
    used = asked(place, "attach", "-c", f"print(client.submit(abs, -5).result())\n{code}")
    assert (used.rc, used.stderr) == (0, ""), used
    assert re.fullmatch(rf"5\n7 {protocol}://\S+\n", used.stdout), used
    # Without security there is no secret, and the address of the dashboard has none.
    link = asked(place, "dashboard").stdout.splitlines()[0]
    assert bool(re.fullmatch(r"http://localhost:\d+/[0-9a-f]{32}/status", link)) == (protocol == "tls"), link
    result = held.finish()
    assert (result.rc, result.stdout) == (0, "ended\n"), result


WATCHER = """
import sys, threading, time
import batchlet

client = batchlet.attach()
client.submit(abs, -1).result()
forever = client.submit(time.sleep, 1000)
print("attached", flush=True)
try:
    forever.result()
except BaseException as error:
    print(type(error).__name__, client.status, flush=True)
"""
ASYNCHRONOUS = """
import asyncio, batchlet

async def main():
    async with batchlet.attach(asynchronous=True) as client:
        print(await client.submit(abs, -9), client.asynchronous, flush=True)
    client = await batchlet.attach(asynchronous=True, set_as_default=False)
    print(len((await client.scheduler.identity())["workers"]), flush=True)
    while client.status != "closed":
        await asyncio.sleep(0.05)
    print("closed")

asyncio.run(main())
"""


def test_visitors_hear_of_the_end_and_the_end_does_not_wait_for_any_of_them(held: Held):
    place = held.place

    def started(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, cwd=place.cwd, env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline(), process.communicate()
        return process

    watcher = started(sys.executable, place.script(WATCHER))
    coroutine = started(sys.executable, place.script(ASYNCHRONOUS))
    top = started(*BATCHLET, "top", "--interval", "0.2")
    stopped = started(*BATCHLET, "attach", "-c", "import time; print('here', flush=True); time.sleep(1000)")
    killed = started(*BATCHLET, "attach", "-c", "import time; print('here', flush=True); time.sleep(1000)")
    stopped.send_signal(signal.SIGSTOP)
    killed.kill()
    killed.communicate()
    result = held.finish()
    assert (result.rc, result.stdout) == (0, "ended\n"), result
    # With what it takes itself, on a busy machine; a wait for the visitor that stands still would take Dask 30 s.
    assert result.seconds < 15, result
    assert "Traceback" not in result.stderr
    over = f"run {re.search(r'attach (local-[^ ]+)', result.stderr)[1]} is over"  # type: ignore[index]
    out, err = watcher.communicate(timeout=30)
    assert (watcher.returncode, err) == (0, f"batchlet: {over}; its client is closed\n"), out + err
    assert re.fullmatch(r"\w*Cancelled\w* clos\w+\n", out), out
    out, err = coroutine.communicate(timeout=30)
    assert (coroutine.returncode, out, err) == (0, "2\nclosed\n", f"batchlet: {over}; its client is closed\n"), (
        out + err
    )
    out, err = top.communicate(timeout=30)
    assert (top.returncode, err) == (0, f"batchlet: {over}\n"), err
    stopped.kill()
    stopped.communicate()
    place.assert_nothing_left(set(), result)


def test_a_run_that_was_killed_is_a_sentence_and_what_it_has_left_is_removed(held: Held):
    place, name = held.place, held.name
    record = place.cwd / ".batchlet" / f"{name}.json"
    register = place.base / "state" / "batchlet" / "runs"
    os.killpg(held.process.pid, signal.SIGKILL)
    place.kill_processes()
    held.process.wait()
    assert record.exists()
    assert len(list(register.iterdir())) == 1
    refused = asked(place, "attach", name, "-c", "1")
    assert refused.rc == 2
    assert len(refused.errors) == 1, refused
    assert f"Run {name} is over" in refused.errors[0]
    assert f"Its record, {record}, is removed." in refused.errors[0]
    assert not record.parent.exists()
    assert list(register.iterdir()) == []
    for command in ("attach", "top", "dashboard"):
        refused = asked(place, command, name)
        assert refused.rc == 2, refused
        assert f"There is no run {name} of yours that can be attached to, or it is over" in refused.stderr
    empty = asked(place, "ps")
    assert (empty.rc, empty.stdout) == (0, "")
    assert empty.errors == ["batchlet: no run of yours is under way that was started with --attach or --join"]


def test_the_dashboard_opens_and_its_address_is_in_no_argument(held: Held):
    place = held.place
    link = asked(place, "dashboard").stdout.splitlines()[0]
    token = link.split("/")[3]
    assert re.fullmatch(r"http://localhost:\d+/[0-9a-f]{32}/status", link)
    assert token not in asked(place, "ps").stdout + asked(place, "top", "--once").stdout
    browser = place.base / "browser"
    seen = place.base / "seen"
    browser.write_text(
        f'#!/bin/sh\necho "$@" >>{seen}\nls -l "${{1#file://}}" >>{seen}\ncat "${{1#file://}}" >>{seen}\n'
    )
    browser.chmod(0o755)
    opened = subprocess.Popen(
        [*BATCHLET, "dashboard", "--open"], cwd=place.cwd, env={**place.environ, "BROWSER": str(browser)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: seen.exists() and "refresh" in seen.read_text(), 30, "no browser was started")
    argument, listed, page = seen.read_text().splitlines()
    assert argument.startswith("file://")
    assert token not in argument
    assert listed.startswith("-rw------- ")
    assert f'url={link}"' in page
    for process in place.processes():
        assert token not in " ".join(process.cmdline())
    assert held.finish().rc == 0
    _, err = opened.communicate(timeout=30)
    assert opened.returncode == 0
    assert err.splitlines()[-1].endswith("is over"), err
    assert not Path(argument.removeprefix("file://").strip()).exists()


def test_a_visitor_with_other_versions_is_told_so_in_one_sentence(held: Held):
    text = (held.place.cwd / ".batchlet" / f"{held.name}.json").read_text()
    record = CoordinatorRecord.from_json(text)
    with pytest.raises(VersionMismatchError) as refused:
        Visit(record, {**versions(), "dask": "2020.1"})
    assert re.fullmatch(
        r"This process has dask 2020.1, the run has dask \S+: attach with the Python of the run\.", str(refused.value)
    )
    with contextlib.closing(Visit(record, {})) as looks:
        assert looks.cluster is not None


# Records of the dead ---------------------------------------------------------------------------------------------------


@dataclass
class Strangers:
    """Who listens now where a run did: one who says nothing, one who echoes, one with TLS of their own."""

    heard: list[bytes] = field(default_factory=list)

    def listen(self, kind: str) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, args=(server, kind), daemon=True).start()
        return int(server.getsockname()[1])

    def _serve(self, server: socket.socket, kind: str) -> None:
        context = Credentials.generate().coordinator_context() if kind == "tls" else None
        kept = []
        while True:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                kept.append(connection)
                if kind == "silent":
                    continue
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                connection.settimeout(2)
                said = connection.recv(1 << 16)
                self.heard.append(said)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                self.heard.append(connection.recv(1 << 16))


def test_a_thousand_records_of_dead_runs_are_recognised_within_seconds_and_no_stranger_hears_a_secret(place: Place):
    register = place.base / "state" / "batchlet" / "runs"
    register.mkdir(parents=True, mode=0o700)
    certificate = Credentials.generate().certificate
    strangers, secret = Strangers(), "ab" * 32
    node = socket.gethostname().split(".")[0]

    def record(name: str, port: int, where: Path, **more: Any) -> Path:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = where / f"{name}.json"
        known = CoordinatorRecord(name, "n", node, "127.0.0.1", port, secret, certificate, "", time.time())
        file.write_text(replace(known, **more).to_json())
        file.chmod(0o600)
        (register / f"{name}.n").symlink_to(file)
        return file

    dead = [record(f"dead-{number}", 1, place.base / f"w{number % 100}" / ".batchlet") for number in range(1000)]
    reused = place.base / "reused" / ".batchlet"
    dead += [record(f"reused-{kind}", strangers.listen(kind), reused) for kind in ("tls", "echo")]
    silent = record("silent", strangers.listen("silent"), place.base / "silent" / ".batchlet")
    old = record("old", strangers.listen("silent"), place.base / "silent" / ".batchlet", began=1.0e9)
    away = record("away", 1, place.base / "away" / ".batchlet", node="another")
    gone = record("gone", 1, place.base / "gone" / ".batchlet")
    gone.unlink()
    gone.parent.rmdir()
    result = place.run_only(*BATCHLET, "ps")
    assert result.rc == 0, result
    assert result.seconds < 20, result
    assert result.stdout == ""
    said = "\n".join(result.errors)
    assert "batchlet: 1003 records of runs that are over are removed" in said
    assert re.search(r"silent \(since .*\) does not answer", said), said
    assert "1 older run does not answer; `python -m batchlet ps --forget`" in said
    assert re.search(r"away \(since .*\) can be attached to from node another alone", said), said
    assert len(result.errors) == 4, result
    assert not [file for file in dead if file.exists()]
    assert sorted(entry.name for entry in register.iterdir()) == ["away.n", "old.n", "silent.n"]
    assert silent.exists()
    assert old.exists()
    assert away.exists()
    # Whoever listens there now has learnt nothing.
    assert strangers.heard
    assert not [said for said in strangers.heard if secret.encode() in said or b"hello" in said], strangers.heard
    refused = place.run_only(*BATCHLET, "attach", "silent", "-c", "1")
    assert refused.rc == 2
    assert f"If it is over, remove {silent}." in refused.stderr, refused
    assert place.run_only(*BATCHLET, "ps", "--forget").rc == 0
    assert [entry.name for entry in register.iterdir()] == ["away.n"]
    assert not silent.exists()


def test_a_record_that_others_could_have_written_is_not_believed(place: Place):
    directory = place.cwd / ".batchlet"
    directory.mkdir(mode=0o700)
    file = directory / "run-1.json"
    file.write_text(CoordinatorRecord("run-1", "n", "n1", "127.0.0.1", 1, "ab" * 32).to_json())
    file.chmod(0o622)
    refused = place.run_only(*BATCHLET, "attach", ".batchlet/run-1", "-c", "1")
    assert refused.rc == 2
    assert "a record that others may have written" in refused.stderr
    file.chmod(0o600)
    directory.chmod(0o777)
    refused = place.run_only(*BATCHLET, "attach", ".batchlet/run-1", "-c", "1")
    assert refused.rc == 2
    assert "others may use it" in refused.stderr
