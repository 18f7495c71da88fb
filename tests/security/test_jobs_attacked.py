"""A cluster of submitted jobs, attacked by another user from the login node and from all nodes while jobs pend, start and run.

One cluster stands still for all of these tests: of its two jobs one pends until it is released, the other one to the end.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from attacks import Attack, Loot, attack_ports, attack_unix, intrusions, pretend
from held_runs import Held
from listening import Listening
from run_helpers import Place, eventually
from secrets_search import files_with, secrets_in
from strangers import LOOPBACK, Standpoint, as_nobody, standpoints

pytestmark = pytest.mark.slurm

HELD_JOBS = Path(__file__).parent / "workloads" / "held_jobs.py"
WORKERS = 2  # one on each of the two nodes of the job that is released
OF_CLIENT = 3  # the scheduler's port, that of its dashboard, and the one where agents come in
OF_WORKER = 3  # its nanny's, its own, and its HTTP server's
# Every route of Dask's is tried on runs (test_attacked.py), whose servers are the same.
PAGES = (
    "/",
    "/status",
    "/metrics",
    "/json/counts.json",
    "/health",
    "/api/v1",
    "/individual-task-stream",
    "/favicon.ico",
)

# Says what it could read, list or make of all that is under some places, and of files whose names are known.
READER = """
import os, sys
for top in sys.argv[1:]:
    for folder, folders, names in os.walk(top):
        print("listed", folder)
    for path in [top, *(os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names)]:
        try:
            with open(path) as file:
                print("read", path, len(file.read()))
        except OSError:
            pass
    try:
        os.mkdir(os.path.join(top, "planted"))
        print("made something in", top)
    except OSError:
        pass
"""


class Sights:
    """What another user, or whoever reads the batch system's files, can see of a cluster; looked at again and again."""

    def __init__(self, run: Held, told: dict[str, Any], state: Path) -> None:
        self._run = run
        self._told = told
        self._state = state
        self.secrets: set[str] = set()
        self.open: set[str] = set()
        self.processes = 0
        self.scripts = 0

    def of_processes(self) -> None:
        """Argv and environment of all processes, the batch system's own commands among them, and modes of files."""
        for process in self._run.processes(launchers=True):
            with contextlib.suppress(OSError, psutil.Error):
                words = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
                self._search(b"".join(words), " ".join(process.cmdline()))
                self.processes += 1
        for path in [self.directory, *self.directory.rglob("*")]:
            with contextlib.suppress(OSError):
                # What is in a directory that only its owner can use, is behind that.
                if path.parent.name != self.directory.name and path != self.directory:
                    continue
                if path.stat().st_mode & 0o077:
                    self.open.add(f"{path.name} {path.stat().st_mode:o}")

    def of_jobs(self) -> None:
        """Jobs' scripts, and all that Slurm has written: their environments too."""
        for job in self._told["jobs"]:
            for command in (["write", "batch_script", job, "-"], ["--detail", "show", "job", job]):
                shown = subprocess.run(
                    ["scontrol", *command], env=self._run.place.environ, capture_output=True, timeout=20
                )
                self._search(shown.stdout, " ".join(command))
                self.scripts += b"batchlet.job" in shown.stdout
        for path in self._state.rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    self._search(path.read_bytes(), str(path))

    @property
    def directory(self) -> Path:
        return self._run.place.cwd / ".batchlet"

    def _search(self, data: bytes, where: str) -> None:
        self.secrets.update(f"{name} in {where}" for name in secrets_in(data, self._told))


@dataclass
class Attacked:
    """A cluster, and what its attackers found."""

    run: Held
    told: dict[str, Any]
    points: list[Standpoint]
    loot: Loot
    sights: Sights
    sockets: dict[str, list[Listening]] = field(default_factory=dict)
    attacks: dict[str, list[Attack]] = field(default_factory=dict)
    read: str = ""
    errors: list[str] = field(default_factory=list)

    def attack(self, phase: str) -> None:
        """Try everything at all that listens at this moment."""
        self.sockets[phase] = sockets = self.run.sockets()
        self.attacks[phase] = self._ports(sockets) + attack_unix(sockets, self.points, self.loot)
        self.sights.of_processes()
        self.sights.of_jobs()
        directory = self.sights.directory
        known = [str(directory), *map(str, directory.glob("*")), *map(str, directory.glob("*/*"))]
        for point in self.points[:2]:
            self.read += as_nobody(point, *known, code=READER).stdout

    def attack_starting(self, job: str) -> None:
        """Release a job, and attack each socket as soon as it is there, until its workers are up."""
        known: dict[Any, Listening] = {}
        attacks: list[Future[list[Attack]]] = []
        with ThreadPoolExecutor(8) as pool:
            attacks.append(pool.submit(self._ports, self.sockets["pend"]))
            subprocess.run(["scontrol", "release", job], env=self.run.place.environ, check=True, timeout=20)
            up = self.run.base / "up"

            def look() -> bool:
                here = {one.key: one for one in self.run.sockets()}
                if new := [one for key, one in here.items() if key not in known]:
                    known.update(here)
                    attacks.append(pool.submit(self._ports, new))
                self.sights.of_processes()
                return up.exists()

            self.run.wait(look, 60, "the job did not come up")
        self.sockets["start"] = list(known.values())
        self.attacks["start"] = [one for each in attacks for one in each.result()]

    def _ports(self, sockets: list[Listening]) -> list[Attack]:
        return attack_ports(sockets, self.points, self.loot, paths=PAGES, elsewhere=["/health"])


@pytest.fixture(scope="module")
def attacked(cluster: Any) -> Iterator[Attacked]:
    """The cluster, after all attacks."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    options = {
        "jobs": 2, "nodes_per_job": 2, "cores": 1, "memory": "600MiB", "workers_per_node": 1,
        "job_extra_directives": ["--hold"], "scheduler_options": {"interface": f"slurm{cluster.instance}"},
    }  # fmt: skip
    run = Held(place, script=HELD_JOBS, argv=[json.dumps(options)])
    try:
        told = run.told()
        found = Attacked(run, told, standpoints(cluster), Loot(run.base), Sights(run, told, cluster.state_dir))
        found.attack("pend")
        found.attack_starting(told["jobs"][0])
        found.attack("run")
        found.errors = run.result().errors
        yield found
    finally:
        run.end()
        place.close()


def test_nobody_gets_in_while_jobs_pend_start_and_run(attacked: Attacked) -> None:
    """No code runs, and nothing comes back but refusals, from any port, from the login node or any other."""
    assert attacked.loot.found() == {}
    for phase, attacks in attacked.attacks.items():
        assert intrusions(attacks) == [], phase
        for secret in ("token", "secret", "key"):
            assert not [str(attack) for attack in attacks if attacked.told[secret][:60] in attack.answer], phase
        assert {attack.standpoint for attack in attacks} == {point.name for point in attacked.points}, phase
    # The attacks did reach the ports.
    for phase, least in (("pend", OF_CLIENT), ("start", OF_CLIENT), ("run", OF_CLIENT + OF_WORKER * WORKERS)):
        reached = {
            attack.where.split(" ")[0]
            for attack in attacked.attacks[phase]
            if attack.how == "nothing" and attack.end == "open"
        }
        assert len(reached) >= least, (phase, attacked.sockets[phase])


def test_control_the_clusters_own_certificate_opens_it(attacked: Attacked) -> None:
    """With the cluster's certificate and key the same attack does get in: it is they that keep others out."""
    pem = attacked.told["pem"]
    attack_ports(attacked.sockets["run"], attacked.points, attacked.loot, own=pem, paths=["/"], standing=1)
    found = set(attacked.loot.found())
    attacked.loot.clear()
    # The scheduler, each worker and each nanny.
    assert len({name[:2] for name in found}) == 1 + 2 * WORKERS, found
    assert all(name.endswith("-tls-2") for name in found), found


def test_who_does_not_know_the_secret_is_no_job(attacked: Attacked) -> None:
    """Where agents come in, nobody is heard that has not proved to know the cluster's secret."""
    host = attacked.told["scheduler"].split("//")[1].rsplit(":", 1)[0]
    pretend(attacked.points, host, attacked.told["hub"])
    assert attacked.run.process.poll() is None
    assert "by the attacker" not in attacked.run.stderr


def test_all_that_listens_is_closed_to_others(attacked: Attacked) -> None:
    """TCP alone, HTTP on the loopback; Unix sockets with a name answer nobody."""
    for phase, sockets in attacked.sockets.items():
        assert {one.family for one in sockets} <= {"tcp", "unix"}, sockets
        assert not [one for one in sockets if one.address == "0.0.0.0"], sockets
        http = {attack.where for attack in attacked.attacks[phase] if attack.status}
        assert http, phase
        assert all(where.startswith(LOOPBACK) for where in http), http
        names = {one.address for one in sockets if one.family == "unix"} - {""}
        assert names or phase != "run", "there was a fork server"
        # Open to everybody by nature; links ask the kernel who it is.
        links = {name for name in names if name.startswith("@batchlet-link-")}
        assert phase != "run" or len(links) == 1 + 2 * WORKERS, names
        assert not [name for name in names - links if name.startswith("@")], "an abstract socket is open to everybody"
        tried = [attack for attack in attacked.attacks[phase] if attack.target in names]
        assert not [str(attack) for attack in tried if attack.answer]
        assert {attack.end for attack in tried if attack.target not in links} <= {"PermissionError"}, tried
        assert phase != "run" or {attack.target for attack in tried} == names


def test_secrets_are_in_no_script_no_environment_no_argument_and_in_no_file_of_others(attacked: Attacked) -> None:
    """Nor does anybody else read, list or make anything where the record and the logs are."""
    sights = attacked.sights
    assert not sights.secrets
    assert sights.processes > 20
    # Both jobs', while they pend and while one of them runs.
    assert sights.scripts == 4
    assert not sights.open
    assert attacked.read == ""
    assert [path.stat().st_mode & 0o777 for path in sights.directory.glob("*.json")] == [0o600]
    assert files_with(attacked.run, attacked.told) == []


def test_the_cluster_has_not_noticed(attacked: Attacked) -> None:
    """After all that it does its work, says next to nothing, and leaves no job and no file."""
    run = attacked.run
    result = run.finish()
    assert result.rc == 0, str(result)
    (said,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert json.loads(said[7:]) == [328350, WORKERS, ["joined", "pending"]]
    # Before it was let in, for control: its own line, and one about those who knock.
    knocked = [line for line in attacked.errors if "TLS handshake" in line or "SSL Error" in line]
    assert len(knocked) <= 1, attacked.errors
    assert len(attacked.errors) <= 1 + len(knocked), attacked.errors
    assert attacked.loot.found() == {}
    queue = lambda: run.place.run_only("squeue", "--noheader", timeout=20).stdout  # noqa: E731
    eventually(lambda: not queue(), 30, queue, pause=0.3)
    run.place.assert_nothing_left()
