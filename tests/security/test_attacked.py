"""Runs under each launcher, closed as they are by default, and the same with security off, attacked by another user.

One run of each kind stands still for all of these tests. From a closed one another user gets nothing, wherever they are;
the same attacks on an open one do get in, which shows that they are good.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from attacks import Attack, Loot, attack_ports, attack_unix, decoys, foreign_certificate, intrusions, pretend
from browser import browser, wait_for
from held_runs import PREFIX, Held
from listening import Listening
from mpi_launchers import open_mpi
from run_helpers import Place, eventually
from secrets_search import files_with, secrets_in
from strangers import LOOPBACK, Standpoint, flooding, here, standpoints

SRUN = pytest.param("srun", marks=pytest.mark.slurm)
ALLOCATION = pytest.param("allocation", marks=pytest.mark.slurm)
MPIRUN = pytest.param("mpirun", marks=pytest.mark.mpirun)
# A test that is for the first of these only does not have the others' runs started anew.
MODES = [SRUN, "local", ALLOCATION, MPIRUN]
ON_ONE_NODE = ("local", "mpirun")
PORTS_OF_A_WORKER = 3  # its nanny's, its own, and its HTTP server's
# Of the pages of an open run a few: to make them all takes Dask minutes.
PAGES = ("/status", "/individual-task-stream", "/info/main/workers.html", "/metrics", "/json/counts.json", "/health")


@dataclass
class Attacked:
    """A run that has been attacked."""

    run: Held
    told: dict[str, Any]
    sockets: list[Listening]
    points: list[Standpoint]
    attacks: list[Attack]
    loot: Loot

    @property
    def head(self) -> Standpoint:
        """Where the scheduler is."""
        of_scheduler = int(self.told["scheduler"].rsplit(":", 1)[1])
        namespace = next(one.namespace for one in self.sockets if one.port == of_scheduler)
        return next(point for point in self.points if point.namespace == namespace)


@dataclass
class Pair:
    """The same run twice: closed, and with security off."""

    mode: str
    closed: Attacked
    opened: Attacked


@pytest.fixture(scope="module", params=MODES)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Both runs of a mode, side by side, after all attacks."""
    mode = request.param
    closed, points = start(request, mode)
    opened, _ = start(request, mode, **{f"{PREFIX}SECURITY": "false"})
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(attacked, closed, points, None), pool.submit(attacked, opened, points, PAGES)
        return Pair(mode, one.result(), other.result())


def start(request: pytest.FixtureRequest, mode: str, **env: str) -> tuple[Held, list[Standpoint]]:
    """Start a run in a mode, with two or three workers, and say where an attacker can be."""
    if mode in ("srun", "allocation"):
        cluster = request.getfixturevalue("cluster")
        place, points = Place(cluster.env(), on_timeout=cluster.end_jobs), standpoints(cluster)
        command = ["srun", "-N2", "-n4"] if mode == "srun" else ["salloc", "-N2", "-n4"]
    else:
        place, points, command = Place(), [here()], []
    if mode == "mpirun":
        launcher = open_mpi()
        command = [launcher.mpirun, "-n", "4"]
        env = {**launcher.variables, **env}
    if mode == "local":
        env = {f"{PREFIX}WORKERS_PER_NODE": "2", **env}
    if mode == "srun":
        # A third worker comes from another job.
        env = {f"{PREFIX}JOIN": "true", "WAIT_FOR_WORKERS": "3", **env}
    request.addfinalizer(place.close)
    run = Held(place, *command, env=env)
    request.addfinalizer(run.end)
    if mode == "srun":
        run.wait(lambda: "more nodes: " in run.stderr, 60, "nobody can join")
        name = run.stderr.partition("batchlet join ")[2].split()[0]
        run.beside("srun", "-N1", "-n1", sys.executable, "-m", "batchlet", "join", name)
    return run, points


def attacked(run: Held, points: list[Standpoint], pages: tuple[str, ...] | None) -> Attacked:
    """Attack all its ports from everywhere; pages are asked for from one place if they are given."""
    told = run.told()
    sockets, loot = run.sockets(), Loot(run.base)
    attacks = attack_ports(sockets, points, loot, paths=pages, elsewhere=pages and ["/health"])
    attacks += attack_unix(sockets, points, loot)
    return Attacked(run, told, sockets, points, attacks, loot)


# Ports ----------------------------------------------------------------------------------------------------------


def test_nobody_gets_in(pair: Pair) -> None:
    """No code runs, and nothing comes back but refusals, from any port, any node, by any protocol."""
    closed = pair.closed
    workers = len(closed.told["workers"])
    tcp = [one for one in closed.sockets if one.family == "tcp"]
    assert len(tcp) >= 2 + PORTS_OF_A_WORKER * workers, closed.sockets
    assert closed.loot.found() == {}
    assert intrusions(closed.attacks) == []
    for secret in ("token", "secret", "key"):
        if text := closed.told[secret]:
            assert not [str(attack) for attack in closed.attacks if text[:60] in attack.answer]
    # The attacks did reach the ports.
    reached = {
        attack.where.split(" ")[0] for attack in closed.attacks if attack.how == "nothing" and attack.end == "open"
    }
    assert len(reached) >= len(tcp)


def test_control_they_do_get_in(pair: Pair) -> None:
    """Without security the same attacks run code as the run's user in scheduler, nannies and workers, and see the pages."""
    opened = pair.opened
    assert "security off" in opened.run.stderr
    workers = len(opened.told["workers"])
    expected = 1 + 2 * workers  # the scheduler, each worker and each nanny

    def robbed() -> set[str]:
        return {name for name, uid in opened.loot.found().items() if name.endswith("-plain") and uid == 0}

    opened.run.wait(lambda: len({name[:2] for name in robbed()}) >= expected, 10, "not all processes were robbed")
    attacks = list(opened.attacks)
    http = [one for one in opened.sockets if any(each.status and f":{one.port} (" in each.where for each in attacks)]

    def seen() -> dict[str, int]:
        return {attack.how: attack.status for attack in attacks if attack.status not in (0, 404)}

    def metrics() -> set[str]:
        return {attack.where for attack in attacks if (attack.how, attack.status) == ("http GET /metrics", 200)}

    def missing() -> list[str]:
        pages = {path for path in PAGES if seen().get(f"http GET {path}") != 200}
        return sorted(pages if len(metrics()) > workers else pages | {"/metrics"})

    def all_pages_seen() -> bool:
        # Who looks first has the pages loaded, which takes a moment.
        if paths := missing():
            # Asked again and again by somebody who never waits for the answer, Dask would make page after page.
            attacks.extend(attack_ports(http, opened.points, opened.loot, paths=paths, standing=1, patience=30))
        return not missing()

    eventually(all_pages_seen, 90, lambda: (missing(), seen()))
    assert seen().get("http websocket /status/ws") == 101
    assert seen().get("http websocket /eventstream") == 101
    # HTTP of the workers too.
    assert len(metrics()) == 1 + workers
    if pair.mode not in ON_ONE_NODE:
        assert {name[3:6] for name in robbed()} == {f"{place:03}" for place in range(len(opened.points))}, (
            "not everywhere"
        )


@pytest.mark.parametrize("pair", [SRUN], indirect=True)
def test_control_the_certificate_of_the_run_opens_it(pair: Pair) -> None:
    """With the run's own certificate and key the same attack does get in: it is they that keep others out."""
    closed = pair.closed
    attack_ports(closed.sockets, closed.points, closed.loot, own=closed.told["pem"], paths=["/"], standing=1)
    found = set(closed.loot.found())
    closed.loot.clear()
    assert len({name[:2] for name in found}) == 1 + 2 * len(closed.told["workers"]), found
    assert all(name.endswith("-tls-2") for name in found), found


def test_every_http_answer_is_the_same(pair: Pair) -> None:
    """Whatever is asked for without the secret, the answer does not tell a route from none, not even `/` leads anywhere."""
    attacks = pair.closed.attacks
    answers = [attack for attack in attacks if " GET " in attack.how and attack.status]
    assert len(answers) > 100, "no HTTP server was found"
    # 400: not HTTP, or not in its order.
    assert not [str(attack) for attack in answers if attack.status not in (404, 400)]
    assert not [str(attack) for attack in attacks if "location:" in attack.answer.lower()]


@pytest.mark.parametrize("pair", [SRUN, "local"], indirect=True)
def test_control_the_secret_opens_the_dashboard(pair: Pair) -> None:
    """Who has the address gets the pages, from the scheduler's node; at any other place the same address leads nowhere."""
    closed = pair.closed
    paths = [f"/{closed.told['token']}{path}" for path in PAGES]
    http = [one for one in closed.sockets if one.address == LOOPBACK]
    port = int(closed.told["dashboard"].split(":")[2].split("/")[0])

    def opening() -> list[Attack]:
        return [
            attack
            for attack in attack_ports(http, closed.points, closed.loot, paths=paths, patience=20)
            if attack.status == 200
        ]

    # The first look has the pages loaded, which takes a moment.
    attacks = eventually(
        lambda: found if len(found := opening()) >= len(paths) else None, 30, "not all pages opened", 0.5
    )
    assert {(attack.how, attack.standpoint) for attack in attacks} >= {
        (f"http GET {path}", closed.head.name) for path in paths
    }
    assert {attack.where.split(" ")[0] for attack in attacks} == {f"{LOOPBACK}:{port}"}


def test_http_is_on_the_loopback_and_nothing_listens_everywhere(pair: Pair) -> None:
    """TCP alone, HTTP on the loopback; a run on one node is all on the loopback."""
    closed = pair.closed
    assert {one.family for one in closed.sockets} <= {"tcp", "unix"}, closed.sockets
    http = {attack.where for attack in closed.attacks if attack.status}
    assert http
    assert all(where.startswith(LOOPBACK) for where in http), http
    for one in closed.sockets:
        if one.family == "tcp":
            assert one.address != "0.0.0.0", one
            assert pair.mode not in ON_ONE_NODE or one.address == LOOPBACK, one


def test_unix_sockets_answer_nobody(pair: Pair) -> None:
    """Nor does a Unix socket: multiprocessing's fork server would make processes for whoever may connect to it."""
    closed = pair.closed
    names = {one.address for one in closed.sockets if one.family == "unix"} - {""}
    assert names, "there was a fork server"
    # The scheduler's, and those of each worker and its nanny.
    links = [name for name in names if name.startswith("@batchlet-link-")]
    assert len(links) == 1 + 2 * len(closed.told["workers"]), names
    assert not [one for one in pair.opened.sockets if one.address.startswith("@batchlet-link-")], "with security off"
    attacks = [attack for attack in closed.attacks if attack.target in names]
    assert {attack.target for attack in attacks} == names
    assert not [str(attack) for attack in attacks if attack.answer]
    for name in names:
        if name.startswith("@"):
            # Open to everybody by nature; ours ask the kernel who it is.
            assert name.startswith("@batchlet-"), f"{name} is open to everybody"
        else:
            assert {attack.end for attack in attacks if attack.target == name} == {"PermissionError"}, name


def test_control_the_attack_hears_unix_sockets(place: Place) -> None:
    """A Unix socket that does answer is heard, with a name in the file system and with an abstract one."""
    with decoys(place.base) as sockets:
        attacks = attack_unix(sockets, [here()], Loot(place.base))
    assert {attack.target for attack in attacks if attack.answer == "who is there?"} == {one.address for one in sockets}


# What can be seen -------------------------------------------------------------------------------------------------


def test_no_secret_in_argv_or_environment(pair: Pair) -> None:
    """No process of the run, its launcher and helpers included, has key, secret or token in what `ps` can show."""
    checked = 0
    for process in pair.closed.run.processes(launchers=True):
        with contextlib.suppress(OSError, psutil.Error):
            seen = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
            assert not secrets_in(b"".join(seen), pair.closed.told), (process.pid, process.cmdline())
            checked += 1
    assert checked >= 4


def test_no_file_has_the_key(pair: Pair) -> None:
    """Once the ranks have met, the private key is in no file, temporary and shared-memory ones included."""
    assert files_with(pair.closed.run, pair.closed.told) == []


# The browser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [SRUN, "local"], indirect=True)
def test_the_dashboard_works_in_a_browser_with_the_secret_only(pair: Pair) -> None:
    """The address in the file that the start line names shows the task stream; without the secret: 404."""
    run, told = pair.closed.run, pair.closed.told
    link = told["dashboard"]
    said = re.search(r"dashboard: cat (\S+)", run.stderr)
    assert said is not None, run.stderr
    assert (run.place.cwd / said[1]).read_text().splitlines()[0] == link, "the link is not what the start line says"
    assert told["token"] not in run.stderr, "this file is readable for all"
    with browser(run.place, pair.closed.head) as page:
        closed = link.replace("/" + told["token"], "")
        for url in (closed, closed.removesuffix("status"), closed.replace("/status", f"/{'0' * 32}/status")):
            page.open(url)
            assert page.status() in (403, 404), (url, page.source[:300])
            assert told["token"] not in page.url + page.source
        page.open(link.removesuffix("status") + "individual-task-stream")
        # Loaded at the first look, which takes a moment.
        wait_for(lambda: page.rectangles() > 8, "tasks in the task stream", page)
        assert page.run("return location.pathname") == f"/{told['token']}/individual-task-stream"
        before = page.rectangles()
        wait_for(lambda: page.rectangles() > before, "more tasks, by the websocket", page)
        wait_for(lambda: page.pixels() > 50, "something drawn", page)
        page.open(link)
        wait_for(lambda: page.rectangles() > 8, "tasks in the status page", page)
        # What the page loads comes from the run itself: nobody else learns of the address.
        loaded = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
        front = link.split(told["token"])[0]
        assert not [
            url for url in loaded if told["token"] in url and not url.startswith((front, front.replace("http", "ws")))
        ]


# Others at the same run ---------------------------------------------------------------------------------------------

# Reads from standard input what no command line may show.
CLIENT = """
import base64, json, pickle, socket, sys
from distributed import Client
told = json.load(sys.stdin)
if told["pickle"]:
    security = pickle.loads(base64.b64decode(told["pickle"]))
else:
    from batchlet.dask_backend.tls import RunSecurity
    from batchlet.security import Credentials
    certificate, begin, key = told["pem"].partition("-----BEGIN PRIVATE")
    security = RunSecurity(Credentials(certificate, begin + key))
with Client(told["scheduler"], security=security, timeout=told["timeout"], set_as_default=False) as client:
    workers = client.gather(client.map(abs, range(-20, 0), pure=False))
    print("RESULT", socket.gethostname(), sum(workers))
"""


@pytest.mark.parametrize("pair", [SRUN], indirect=True)
def test_a_client_on_another_node_gets_in_with_the_runs_credentials_only(pair: Pair) -> None:
    """A client in a step of its own on the other node gets in with a pickle of `runner.security`; with foreign ones not."""
    run, told = pair.closed.run, pair.closed.told
    nodes = {one.namespace for one in pair.closed.sockets}
    other = next(each.name for each in pair.closed.points if each.namespace in nodes and each != pair.closed.head)
    job = told["run_id"].rsplit("-", 1)[1].partition(".")[0]
    step = ["srun", f"--jobid={job}", "--overlap", "-N1", "-n1", f"--nodelist={other}", "--mem=0", sys.executable]
    right = {"scheduler": told["scheduler"], "pickle": told["pickle"], "timeout": 30}
    wrong = {"scheduler": told["scheduler"], "pickle": "", "pem": foreign_certificate(), "timeout": 2}

    def client(said: dict[str, Any]) -> Any:
        return run.place.run_only(*step, "-c", CLIENT, stdin=json.dumps(said), timeout=60)

    with ThreadPoolExecutor(2) as pool:
        let_in, kept_out = pool.map(client, [right, wrong])
    assert let_in.stdout == f"RESULT {other} 210\n", str(let_in)
    assert kept_out.rc != 0, str(kept_out)
    assert "RESULT" not in kept_out.stdout


@pytest.mark.parametrize("pair", [SRUN], indirect=True)
@pytest.mark.parametrize("which", ["closed", "opened"])
def test_the_coordinator_lets_nobody_in_without_the_secret(pair: Pair, which: str) -> None:
    """Batchlet's own port lets nobody in that does not know the secret, not even with all security off."""
    one = getattr(pair, which)
    pretend(one.points[:2], *one.told["coordinator"])
    assert one.run.process.poll() is None
    assert "by the attacker" not in one.run.stderr


@pytest.mark.parametrize("pair", [SRUN], indirect=True)
def test_hanging_connections_keep_no_client_out(pair: Pair) -> None:
    """Three hundred connections to each port that say nothing or rubbish keep no client out."""
    closed = pair.closed
    ports = [one for one in closed.sockets if one.family == "tcp" and one.address != LOOPBACK]
    with contextlib.ExitStack() as hanging:
        for one in ports:
            hanging.enter_context(flooding(here(), one.address, one.port, 300, "mixed"))
        said = {**closed.told, "timeout": 30}
        done = closed.run.place.run_only(sys.executable, "-c", CLIENT, stdin=json.dumps(said), timeout=60)
        assert done.stdout.endswith(" 210\n"), str(done)


# The end --------------------------------------------------------------------------------------------------------


def test_the_run_has_not_noticed(pair: Pair) -> None:
    """After all that the run does its work, says what it always says, and leaves no file, least of all one with its key."""
    run, told = pair.closed.run, pair.closed.told
    result = run.finish()
    assert result.rc == 0, str(result)
    said = next(line for line in result.stdout.splitlines() if line.startswith("RESULT "))
    assert json.loads(said[7:]) == [328350, len(told["workers"])]
    # One line in each process about those who knock.
    processes = 2 + 2 * len(told["workers"])
    knocked = [line for line in result.errors if "TLS handshake" in line or "SSL Error" in line]
    assert len(knocked) <= processes, f"{len(knocked)} lines, such as\n" + "\n".join(knocked[:4])
    assert pair.closed.loot.found() == {}
    run.place.assert_nothing_left()
    assert files_with(run, told) == []
