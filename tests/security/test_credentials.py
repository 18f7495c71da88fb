"""Who has the run's credentials is of the run, wherever they are; each run has its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from run_helpers import Place
from stand import (
    HELD,
    LOOPBACK,
    PREFIX,
    Held,
    Loot,
    attack_ports,
    foreign_certificate,
    here,
    http_paths,
    intrusions,
)

# Reads from standard input what no command line may show.
CLIENT = """
import base64, json, pickle, socket, sys
from distributed import Client
told = json.load(sys.stdin)
if told["pickle"]:
    security = pickle.loads(base64.b64decode(told["pickle"]))
else:
    from batchlet.roles.dask_security import RunSecurity
    from batchlet.security import Credentials
    certificate, begin, key = told["pem"].partition("-----BEGIN PRIVATE")
    security = RunSecurity(Credentials(certificate, begin + key))
with Client(told["scheduler"], security=security, timeout=told["timeout"], set_as_default=False) as client:
    workers = client.gather(client.map(abs, range(-20, 0), pure=False))
    print("RESULT", socket.gethostname(), sum(workers))
"""


@pytest.mark.slurm
def test_client_on_another_node(slurm_place: Place) -> None:
    """A second client, in a step of its own on the other node, gets in with a pickle of `runner.security` from a pipe.

    With credentials of another run it does not.
    """
    run = Held(slurm_place, "srun", "-N2", "-n4", "--mem=1G")
    try:
        told = run.told()
        job = told["run_id"].rsplit("-", 1)[1].partition(".")[0]
        scheduler = told["hub"][0].rsplit(".", 1)[1]
        nodes = slurm_place.run_only("scontrol", "show", "job", job, timeout=20).stdout
        other = next(name for name in _hosts(slurm_place, nodes) if not name.endswith(f"n{scheduler}"))
        step = ["srun", f"--jobid={job}", "--overlap", "-N1", "-n1", f"--nodelist={other}", "--mem=0"]
        right = json.dumps({"scheduler": told["scheduler"], "pickle": told["pickle"], "timeout": 30})
        result = slurm_place.run_only(*step, sys.executable, "-c", CLIENT, stdin=right, timeout=60)
        assert result.stdout == f"RESULT {other} 210\n", str(result)
        wrong = json.dumps({"scheduler": told["scheduler"], "pickle": "", "pem": foreign_certificate(), "timeout": 3})
        result = slurm_place.run_only(*step, sys.executable, "-c", CLIENT, stdin=wrong, timeout=60)
        assert result.rc != 0, str(result)
        assert "RESULT" not in result.stdout
        assert run.finish().rc == 0
    finally:
        run.end()


def _hosts(place: Place, shown: str) -> list[str]:
    names = next(part.partition("=")[2] for part in shown.split() if part.startswith("NodeList="))
    return place.run_only("scontrol", "show", "hostnames", names, timeout=20).stdout.split()


@pytest.mark.slurm
def test_requeued_run_has_new_credentials(slurm_place: Place) -> None:
    """The same job, requeued, is another run: certificate, key, secret and the dashboard's address are all new."""
    script = slurm_place.base / "job.sh"
    script.write_text('#!/bin/sh\nsrun "$@"\n')
    script.chmod(0o755)
    run = Held(slurm_place, "sbatch", "--wait", "--requeue", "--output=../job.out", "-N2", "-n4", str(script))
    try:
        first = run.told()
        job = first["run_id"].rsplit("-", 1)[1].partition(".")[0]
        subprocess.run(["scontrol", "requeue", job], env=slurm_place.environ, check=True, timeout=20)
        run._told = None
        second = run.told(90)
        for name in ("fingerprint", "key", "token", "secret", "dashboard", "scheduler"):
            assert first[name] != second[name], name
        assert not (slurm_place.cwd / ".batchlet").exists()
        (run.base / "go-on").touch()
        assert run.ended(60).rc == 0
        slurm_place.assert_nothing_left()
    finally:
        run.end()


# Options that must not open what is closed ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "ws"])
def test_protocol_that_does_not_encrypt(place: Place, protocol: str) -> None:
    """`protocol=` does not quietly turn TLS off."""
    result = place.run(sys.executable, str(HELD), str(place.base), json.dumps({"protocol": protocol}), timeout=40)
    assert result.rc == 2, str(result)
    assert "does not encrypt" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"worker_options": {"config": {"distributed.worker.daemon": False}}},
        {"worker_options": {"dashboard_address": f"{LOOPBACK}:0"}},
        {"worker_options": {"dashboard": True}},
        {"scheduler_options": {"dashboard": True}},
        {"scheduler_options": {"http_prefix": "known"}},
        {"scheduler_options": {"dashboard_address": ":0"}},
    ],
    ids=json.dumps,
)
def test_options_passed_through_open_nothing(place: Place, options: dict[str, object]) -> None:
    """Dask's own options, passed through, do not bring back HTTP without the secret."""
    run = Held(place, argv=[json.dumps({"workers_per_node": 1, **options})])
    try:
        run.told()
        loot = Loot(run.base)
        attacks = attack_ports(run.sockets(), [here()], loot, paths=[*http_paths(), "/known/status", "/known/info"])
        assert loot.found() == {}
        got = [each for each in intrusions(attacks) if "/sitemap.json" not in each]
        assert got == []
        result = run.finish()
        assert result.rc == 0, str(result)
    finally:
        run.end()


def test_security_object_without_encryption_says_so(place: Place) -> None:
    """A `Security()` that does not encrypt is what it is: refused, or the start line says "security off"."""
    script = place.script(
        "import sys\n"
        "from batchlet import BatchletRunner\n"
        "from distributed import Client, Security\n"
        "with BatchletRunner(workers_per_node=1, security=Security()) as runner, Client(runner) as client:\n"
        "    sys.stdout.write(runner.scheduler_address)\n"
    )
    result = place.run(sys.executable, script, timeout=40)
    assert result.rc == 2 or "security off" in result.stderr or result.stdout.startswith("tls://"), str(result)


@pytest.mark.slurm
def test_security_object_of_the_user(slurm_place: Place) -> None:
    """`Security.temporary()` is another one on each rank: a clear error (it names security=), or rank 0's serves all."""
    script = slurm_place.script(
        "import sys\n"
        "from batchlet import BatchletRunner\n"
        "from distributed import Client, Security\n"
        "with BatchletRunner(security=Security.temporary()) as runner, Client(runner) as client:\n"
        "    sys.stdout.write(str(client.submit(sum, [1, 2]).result()))\n"
    )
    began = time.monotonic()
    result = slurm_place.run_only(
        "srun", "-n3", sys.executable, script, env={f"{PREFIX}START_TIMEOUT": "20"}, timeout=60
    )
    errors = [line for line in result.stderr.splitlines() if line.startswith("batchlet: error: ")]
    assert (result.rc, result.stdout) == (0, "3") or (
        result.rc == 2 and len(errors) == 1 and "security=" in errors[0] and time.monotonic() - began < 30
    ), str(result)
