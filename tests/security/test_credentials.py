"""Each run has credentials of its own, a requeued one too, and no option quietly does without them."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future
from typing import Any

import pytest
from attacks import Loot, attack_ports, http_paths, intrusions
from held_runs import HELD, PREFIX, Batch, Held, batch
from mpi_launchers import open_mpi
from run_helpers import Place
from strangers import LOOPBACK, here

from batchlet.security import Credentials


@pytest.mark.slurm
def test_a_requeued_run_has_new_credentials(requeued: Future[Batch]) -> None:
    """The same job, requeued, is another run: certificate, key, secret and the dashboard's address are all new."""
    first, second = requeued.result().lives
    for name in ("fingerprint", "key", "token", "secret", "dashboard", "scheduler"):
        assert first[name] != second[name], name
    assert first["run_id"] != second["run_id"]


@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["srun", "python"])
def test_the_address_of_the_dashboard_is_in_no_file_for_everybody(
    request: pytest.FixtureRequest, cluster: Any, launcher: str
) -> None:
    """Slurm makes the job's output file, with a mode by which every user reads it: the secret must not be in there.

    It names a file that only the owner reads, for as long as the run goes on.
    """
    job = (
        request.getfixturevalue("requeued").result()
        if launcher == "srun"
        else batch(cluster, launcher="", requeue=False)
    )
    assert job.readable, "the file is not what this test is about"
    for life in job.lives:
        assert life["token"] not in job.output
    ((path, (mode, text)),) = job.notes.items()
    assert f"dashboard: cat {path}\n" in job.output
    assert mode == 0o600
    address, tunnel = text.splitlines()
    assert address == job.lives[-1]["dashboard"]
    assert tunnel.startswith("ssh -N -L ")
    assert job.left == [], "the address outlives the run"


@pytest.mark.mpirun
def test_no_address_where_no_file_can_be_written(place: Place) -> None:
    """Without a place for that file the address is told to the script alone, and the run goes on."""
    launcher = open_mpi()
    env = {
        "SLURM_JOB_ID": "7",
        f"{PREFIX}MODE": "mpi",
        f"{PREFIX}RENDEZVOUS": "mpi",
        f"{PREFIX}RENDEZVOUS_DIR": "/proc/x",
    }
    run = Held(place, launcher.mpirun, "-n", "3", env={**launcher.variables, **env})
    try:
        token = run.told()["token"]
        result = run.finish()
        assert result.rc == 0, str(result)
        assert "dashboard: runner.dashboard_link has it" in result.stderr
        assert token not in result.stderr
    finally:
        run.end()


# Options that must not open what is closed ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "ws", "ucx", "ucxx://"])
def test_a_protocol_that_does_not_encrypt_is_refused(place: Place, protocol: str) -> None:
    """`protocol=` does not quietly turn TLS off."""
    result = place.run(sys.executable, str(HELD), str(place.base), json.dumps({"protocol": protocol}), timeout=40)
    assert result.rc == 2, str(result)
    assert "does not encrypt" in result.stderr


def test_options_passed_through_open_nothing(place: Place) -> None:
    """Dask's own options, passed through, do not bring back HTTP without the secret."""
    options = {
        "workers_per_node": 1,
        "scheduler_options": {"dashboard": True, "http_prefix": "known", "dashboard_address": ":0"},
        "worker_options": {
            "config": {"distributed.worker.daemon": False},
            "dashboard": True,
            "dashboard_address": f"{LOOPBACK}:0",
        },
    }
    run = Held(place, argv=[json.dumps(options)])
    try:
        run.told()
        loot = Loot(run.base)
        attacks = attack_ports(run.sockets(), [here()], loot, paths=[*http_paths(), "/known/status", "/known/info"])
        assert loot.found() == {}
        assert len([attack for attack in attacks if attack.status == 404]) > 100, "no HTTP server was found"
        assert intrusions(attacks) == []
        result = run.finish()
        assert result.rc == 0, str(result)
    finally:
        run.end()


def test_security_object_without_encryption_says_so(place: Place) -> None:
    """A `Security()` that does not encrypt is refused: who wants that says so."""
    script = place.script(
        "import sys\n"
        "from batchlet import BatchletRunner\n"
        "from distributed import Client, Security\n"
        "with BatchletRunner(workers_per_node=1, security=Security()) as runner, Client(runner) as client:\n"
        "    sys.stdout.write(runner.scheduler_address)\n"
    )
    result = place.run(sys.executable, script, timeout=40)
    assert result.rc == 2, str(result)
    assert "security=False" in result.stderr


@pytest.mark.slurm
def test_a_security_object_that_differs_between_ranks_is_refused(slurm_place: Place) -> None:
    """`Security.temporary()` is another one on each rank: a clear error that names security=, at once."""
    script = slurm_place.script(
        "import sys\n"
        "from batchlet import BatchletRunner\n"
        "from distributed import Client, Security\n"
        "with BatchletRunner(security=Security.temporary()) as runner, Client(runner) as client:\n"
        "    sys.stdout.write(str(client.submit(sum, [1, 2]).result()))\n"
    )
    began = time.monotonic()
    result = slurm_place.run_only("srun", "-n3", sys.executable, script, env={f"{PREFIX}START_TIMEOUT": "20"})
    errors = [line for line in result.stderr.splitlines() if line.startswith("batchlet: error: ")]
    assert result.rc == 2, str(result)
    assert len(errors) == 1, str(result)
    assert "security=" in errors[0]
    assert time.monotonic() - began < 15


OWN = """
import sys
from batchlet import BatchletRunner
from distributed import Client, Security

files = {f"tls_{role}_{kind}": sys.argv[1] for role in ("scheduler", "worker", "client") for kind in ("cert", "key")}
security = Security(tls_ca_file=sys.argv[1], require_encryption=True, **files)
with BatchletRunner(security=security) as runner, Client(runner) as client:
    first, *others = client.scheduler_info(n_workers=-1)["workers"]
    made = client.map(bytes, range(1000, 1020), workers=[first])
    print(runner.scheduler_address[:6], sum(client.gather(client.map(len, made, workers=others))))
    print(client.security.tls_client_cert == sys.argv[1])
"""


@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["srun", "salloc"])
def test_ones_own_certificates_are_those_of_the_cluster(slurm_place: Place, launcher: str) -> None:
    """A site's certificates, as files that all nodes see: the cluster uses them and no others."""
    pem = slurm_place.base / "own.pem"
    credentials = Credentials.generate()
    pem.touch(mode=0o600)
    pem.write_text(credentials.certificate + credentials.key)
    command = ["srun", "-N2", "-n4"] if launcher == "srun" else ["salloc", "--quiet", "-N2", "-n2"]
    result = slurm_place.run(*command, sys.executable, slurm_place.script(OWN), str(pem), timeout=90)
    assert result.rc == 0, str(result)
    assert result.stdout == "tls:// 20190\nTrue\n", str(result)
    assert len(result.errors) == 2, str(result)
