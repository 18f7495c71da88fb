"""Another user of the machine, wherever they are, gets nothing from any port of a run; with security off they get it all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from mpi_launchers import open_mpi
from run_helpers import Place
from stand import (
    LOOPBACK,
    PREFIX,
    Attack,
    Held,
    Listening,
    Loot,
    Standpoint,
    as_nobody,
    attack_ports,
    here,
    intrusions,
    standpoints,
)

SLURM = {
    "srun": ("srun", "-N2", "-n5"),
    "srun, one node": ("srun", "-N1", "-n4"),
    "srun, heads alone": ("srun", "-N2", "-n2"),
    "allocation": ("salloc", "-N2", "-n4"),
}
ONE_NODE = ("srun, one node", "local", "mpirun")
MODES = [
    *(pytest.param(mode, marks=pytest.mark.slurm) for mode in SLURM),
    pytest.param("mpirun", marks=pytest.mark.mpirun),
    "local",
]
PORTS_OF_A_WORKER = 3  # its nanny's, its own, and its HTTP server's


@dataclass
class Attacked:
    """A run that has been attacked."""

    mode: str
    run: Held
    told: dict[str, Any]
    sockets: list[Listening]
    points: list[Standpoint]
    attacks: list[Attack]
    loot: Loot


def started(request: pytest.FixtureRequest, mode: str, **env: str) -> tuple[Held, list[Standpoint]]:
    """Start a run in a mode, and say where an attacker can be."""
    # Three workers at most: the machine that runs the tests is small.
    if mode in SLURM:
        cluster = request.getfixturevalue("cluster")
        place, points = Place(cluster.env(), on_timeout=cluster.end_jobs), standpoints(cluster)
        request.addfinalizer(place.close)
        return Held(place, *SLURM[mode], env=env), points
    place = Place()
    request.addfinalizer(place.close)
    if mode == "mpirun":
        launcher = open_mpi()
        env = {**launcher.variables, **env}
        return Held(place, launcher.mpirun, "-n", "4", env=env), [here()]
    return Held(place, env={f"{PREFIX}WORKERS_PER_NODE": "2", **env}), [here()]


def attacked(request: pytest.FixtureRequest, mode: str, paths: Sequence[str] | None = None, **env: str) -> Attacked:
    run, points = started(request, mode, **env)
    request.addfinalizer(run.end)
    told = run.told()
    sockets = run.sockets()
    loot = Loot(run.base)
    attacks = attack_ports(sockets, points, loot, paths=paths)
    return Attacked(mode, run, told, sockets, points, attacks, loot)


@pytest.fixture(scope="module", params=MODES)
def closed(request: pytest.FixtureRequest) -> Attacked:
    """A run as it is by default, after all attacks."""
    return attacked(request, request.param)


def test_nobody_gets_in(closed: Attacked) -> None:
    """No code runs, and nothing comes back but refusals, from any port, any node, by any protocol."""
    workers = len(closed.told["workers"])
    assert len([one for one in closed.sockets if one.family == "tcp"]) >= 2 + PORTS_OF_A_WORKER * workers, (
        closed.sockets
    )
    assert closed.loot.found() == {}
    assert intrusions(closed.attacks) == []
    for secret in ("token", "secret", "key"):
        for text in [closed.told.get(secret)] if closed.told.get(secret) else []:
            assert not [str(attack) for attack in closed.attacks if text[:60] in attack.answer]
    # The attacks did reach the ports: those that are not on the loopback from everywhere.
    reached = {attack.where for attack in closed.attacks if attack.how == "nothing" and attack.end == "open"}
    assert len({where.split(" ")[0] for where in reached}) >= len(closed.sockets) - _unix(closed.sockets)


def _unix(sockets: list[Listening]) -> int:
    return len([one for one in sockets if one.family == "unix"])


def test_every_http_answer_is_the_same(closed: Attacked) -> None:
    """Whatever is asked for without the secret, the answer does not tell a route from none, not even `/` leads anywhere."""
    answers = [attack for attack in closed.attacks if " GET " in attack.how and attack.status]
    assert len(answers) > 100, "no HTTP server was found"
    assert {attack.status for attack in answers} <= {404, 400}, [str(a) for a in answers if a.status not in (400, 404)]
    assert not [str(attack) for attack in closed.attacks if "location:" in attack.answer.lower()]


def test_what_listens_where(closed: Attacked) -> None:
    """TCP alone, HTTP on the loopback; a run on one node is all on the loopback; no socket that has a name for everybody."""
    assert {one.family for one in closed.sockets} <= {"tcp", "unix"}, closed.sockets
    http = {attack.where for attack in closed.attacks if attack.status}
    assert http
    assert all(where.startswith(LOOPBACK) for where in http), http
    for one in closed.sockets:
        if one.family == "tcp":
            assert one.address != "0.0.0.0", one
            if closed.mode in ONE_NODE:
                assert one.address == LOOPBACK, one


def test_unix_sockets_are_closed(closed: Attacked) -> None:
    """multiprocessing's sockets cannot be reached by another user: anybody could have the fork server make processes."""
    paths = [one.address for one in closed.sockets if one.family == "unix"]
    assert paths, "there was a fork server"
    assert not [path for path in paths if path.startswith("@") or not path], "an abstract socket is open to everybody"
    code = (
        "import json, socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        socket.socket(socket.AF_UNIX).connect(path)\n"
        "        print('open', path)\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__)\n"
    )
    done = as_nobody(here(), *paths, code=code)
    assert done.stdout.split() == ["PermissionError"] * len(paths), done


def test_the_run_has_not_noticed(closed: Attacked) -> None:
    """After all that the run does its work, says what it always says, and nothing of the attackers fills its output."""
    result = closed.run.finish()
    assert result.rc == 0, str(result)
    assert json.loads(next(line for line in result.stdout.splitlines() if line.startswith("RESULT "))[7:]) == [
        328350,
        len(closed.told["workers"]),
    ]
    errors = [line for line in result.errors if not line.startswith("batchlet: ")]
    assert len(errors) <= 10, f"{len(errors)} lines, such as\n" + "\n".join(errors[:4])
    closed.run.place.assert_nothing_left({*closed.run.place.files()})


# The control ------------------------------------------------------------------------------------------------------


# Of the pages a few: to make them all, from all nodes, takes Dask minutes.
OPEN = ("/status", "/individual-task-stream", "/info/main/workers.html", "/metrics", "/json/counts.json", "/health")


@pytest.fixture(scope="module", params=MODES)
def wide_open(request: pytest.FixtureRequest) -> Attacked:
    """A run without security, after all attacks."""
    return attacked(request, request.param, OPEN, **{f"{PREFIX}SECURITY": "false"})


def test_control_they_do_get_in(wide_open: Attacked) -> None:
    """Without security the same attacks run code as the run's user in scheduler, nannies and workers, and see the pages.

    This is what shows that the attacks are good.
    """
    assert "security off" in wide_open.run.stderr
    workers = len(wide_open.told["workers"])
    loot = {name for name, uid in wide_open.loot.found().items() if name.endswith("-plain") and uid == 0}
    robbed = {name[:2] for name in loot}
    # The scheduler, each worker and each nanny.
    assert len(robbed) >= 1 + 2 * workers, (loot, wide_open.sockets)
    statuses = {attack.how: attack.status for attack in wide_open.attacks if attack.status not in (0, 404)}
    for path in OPEN:
        assert statuses.get(f"http GET {path}") == 200, path
    assert statuses.get("http websocket /status/ws") == 101
    assert statuses.get("http websocket /eventstream") == 101
    # HTTP of the workers too.
    assert (
        len(
            {attack.where for attack in wide_open.attacks if attack.how == "http GET /metrics" and attack.status == 200}
        )
        > 1
    )
    if wide_open.mode in ("srun", "allocation"):
        assert {name[3:6] for name in loot} == {f"{place:03}" for place in range(len(wide_open.points))}, (
            "not from all nodes"
        )


def test_control_tls_with_the_right_certificate(request: pytest.FixtureRequest) -> None:
    """With the run's own certificate and key the same attack does get in: it is the certificate that keeps others out."""
    run, points = started(request, "local")
    try:
        told = run.told()
        loot = Loot(run.base)
        attack_ports(run.sockets(), points, loot, own=told["pem"])
        found = loot.found()
        assert len({name[:2] for name in found}) == 1 + 2 * len(told["workers"]), found
        assert all(name.endswith("-tls-2") for name in found), found
    finally:
        run.end()


def test_control_the_dashboard_with_its_secret(request: pytest.FixtureRequest) -> None:
    """Who has the address gets the pages and the websocket."""
    run, points = started(request, "local")
    try:
        told = run.told()
        front = "/" + told["token"]
        paths = [f"{front}/status", f"{front}/individual-task-stream", f"{front}/json/counts.json", f"{front}/health"]
        # The first look has the pages loaded.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            attacks = attack_ports(run.sockets(), points, Loot(run.base), paths=["/status", *paths])
            # On the workers' ports it is always 404.
            statuses = sorted(((attack.status, attack.how) for attack in attacks if attack.status), reverse=True)
            found = {how: status for status, how in statuses}
            if found.get(f"http GET {front}/individual-task-stream") == 200:
                break
        assert [found.get(f"http GET {path}") for path in paths] == [200] * len(paths)
        assert found["http GET /status"] == 404
    finally:
        run.end()


# The hub ----------------------------------------------------------------------------------------------------------

HUB = """
import json, socket, ssl, sys
host, port = sys.argv[1], int(sys.argv[2])
secret = "00" * 32
for secure in (False, True):
    try:
        connection = socket.create_connection((host, port), 5)
        connection.settimeout(5)
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        hello = {"op": "hello", "name": "2", "role": "client", "node": "n1", "local_ranks": [], "brings": [],
                 "versions": {}, "challenge": "00", "proof": "00" * 32}
        connection.sendall(json.dumps(hello).encode() + b"\\n")
        connection.sendall(json.dumps({"op": "failed", "kind": "PlanError", "message": "by the attacker"}).encode() + b"\\n")
        while data := connection.recv(65536):
            print(secure, data)
    except OSError as error:
        print(secure, type(error).__name__)
"""

HANG = """
import os, socket, ssl, sys, time
host, port = sys.argv[1], int(sys.argv[2])
held = []
for number in range(int(sys.argv[3])):
    connection = socket.create_connection((host, port), 10)
    # Some say nothing, some begin TLS and stop, some send rubbish.
    if number % 3:
        connection.sendall(b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03" if number % 3 == 1 else os.urandom(2000))
    held.append(connection)
print("hanging", flush=True)
time.sleep(600)
"""


@pytest.mark.slurm
@pytest.mark.parametrize("security", ["true", "false"])
def test_hub_without_the_secret(request: pytest.FixtureRequest, security: str) -> None:
    """Batchlet's own port lets nobody in that does not know the secret, not even with all security off."""
    run, points = started(request, "srun", **{f"{PREFIX}SECURITY": security})
    try:
        host, port = run.told()["hub"]
        for point in points:
            done = as_nobody(point, host, str(port), code=HUB)
            assert "by the attacker" not in done.stdout
            said = [line.split(" ", 1)[1] for line in done.stdout.splitlines()]
            # Without TLS the challenge, which says nothing, is all there is to see.
            allowed = () if security == "true" else ('b\'{"op":"challenge"',)
            for text in said:
                assert text.endswith(("Error", "Alert")) or text.startswith(("b'\\x15\\x03", *allowed)), (text, done)
        result = run.finish()
        assert result.rc == 0, str(result)
        assert "by the attacker" not in result.stderr
    finally:
        run.end()


@pytest.mark.slurm
def test_hanging_connections(request: pytest.FixtureRequest) -> None:
    """Three hundred connections to each port that say nothing or rubbish, from the start on, disturb nobody."""
    run, points = started(request, "srun")
    hanging = []
    try:
        told = run.told()
        login = points[0]
        ports = [one for one in run.sockets() if one.family == "tcp" and one.address != LOOPBACK]
        hanging += [_hang(login, one.address, one.port, 300) for one in ports]
        # A client that comes now gets in nonetheless.
        code = (
            "import json, sys\n"
            "from batchlet.roles.dask_security import RunSecurity\n"
            "from batchlet.security import Credentials\n"
            "from distributed import Client\n"
            "told = json.load(sys.stdin)\n"
            "security = RunSecurity(Credentials(told['pem'].split('-----BEGIN PRIVATE')[0],\n"
            "                                   '-----BEGIN PRIVATE' + told['pem'].split('-----BEGIN PRIVATE')[1]))\n"
            "client = Client(told['scheduler'], security=security, timeout=30, set_as_default=False)\n"
            "print(sum(client.gather(client.map(abs, range(20), pure=False))))\n"
            "client.close()\n"
        )
        done = run.place.run_only(sys.executable, "-c", code, stdin=json.dumps(told), timeout=60)
        assert done.stdout == "190\n", str(done)
        result = run.finish()
        assert result.rc == 0, str(result)
    finally:
        for process in hanging:
            process.kill()
            process.wait()
        run.end()


def _hang(point: Standpoint, host: str, port: int, count: int) -> Any:
    import subprocess

    from stand import AS_NOBODY, foreign_python

    process = subprocess.Popen(
        [*point.enter, *AS_NOBODY, foreign_python(), "-I", "-c", HANG, host, str(port), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    return process
