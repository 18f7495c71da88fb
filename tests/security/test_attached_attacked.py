"""A run that its owner has attached to, attacked by another user: the record, the register, the door, and what `ps` shows."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from attacks import PRETENDER, Loot, attack_ports, intrusions
from fault_helpers import Running
from held_runs import PREFIX, Held
from run_helpers import Place, eventually
from secrets_search import files_with, secrets_in
from strangers import as_nobody, here, standpoints
from test_jobs_attacked import READER

PAGES = ("/", "/status", "/metrics", "/health", "/json/counts.json")
BATCHLET = (sys.executable, "-m", "batchlet")
STAYS = "import time; client.submit(abs, -1).result(); print('here', flush=True); time.sleep(1000)"


@pytest.mark.parametrize("mode", [pytest.param("srun", marks=pytest.mark.slurm), "local"])
def test_nobody_but_the_owner_finds_reads_enters_or_sees_a_run_that_can_be_attached_to(
    mode: str, request: pytest.FixtureRequest
) -> None:
    if mode == "srun":
        cluster = request.getfixturevalue("cluster")
        place, points = Place(cluster.env(), on_timeout=cluster.end_jobs), standpoints(cluster)
        command, env = ["srun", "-N2", "-n4"], {}
    else:
        place, points, command, env = Place(), [here()], [], {f"{PREFIX}WORKERS_PER_NODE": "2"}
    request.addfinalizer(place.close)
    run = Held(place, *command, env={**env, f"{PREFIX}ATTACH": "true"})
    request.addfinalizer(run.end)
    told = run.told(90)
    [record] = (place.cwd / ".batchlet").glob("*.json")
    register = place.base / "state" / "batchlet" / "runs"
    assert record.stat().st_mode & 0o777 == 0o600
    for private in (record.parent, register):
        assert private.stat().st_mode & 0o777 == 0o700
    # The owner gets in: one who stays, one who looks, and one whose browser stays as well.
    browser = place.base / "browser"
    browser.write_text("#!/bin/sh\nexec sleep 1000\n")
    browser.chmod(0o755)
    visitors = [
        Running(place, *BATCHLET, "attach", "-c", STAYS, name="attach-"),
        Running(place, *BATCHLET, "top", "--interval=0.5", name="top-"),
    ]
    if mode == "local":
        visitors.append(
            Running(place, *BATCHLET, "dashboard", "--open", env={"BROWSER": f"{browser} %s &"}, name="dashboard-")
        )
    for visitor, shows in zip(visitors, ("here", "workers on", "is open"), strict=False):
        visitor.wait_for(shows, 90)
        assert visitor.process.poll() is None, visitor.stderr
    # Nobody else reads the record or the register, or finds the names that are in there.
    for point in points:
        seen = as_nobody(point, str(place.cwd), str(register), code=READER).stdout
        assert f"listed {place.cwd}\n" in seen, "the attack reaches the place"
        assert "batchlet/runs\n" not in seen
        assert ".batchlet\n" not in seen.replace(f"{place.cwd}\n", "")
        assert record.name not in seen
        assert "made" not in seen
    # Nobody enters, whatever port they try, with whatever they say they are.
    loot = Loot(run.base)
    attacks = attack_ports(run.sockets(), points, loot, paths=PAGES, elsewhere=("/health",))
    assert loot.found() == {}
    assert intrusions(attacks) == []
    assert len({attack.where for attack in attacks if attack.how == "nothing" and attack.end == "open"}) >= 4
    text = record.read_text()
    host, port = text.split('"host": "')[1].split('"')[0], text.split('"port": ')[1].split(",")[0]
    assert any(attack.where.startswith(f"{host}:{port} ") for attack in attacks), "the visitors' door was attacked too"
    for point in points:
        done = as_nobody(point, host, port, code=PRETENDER.replace('"role": "client"', '"role": "visitor"'))
        said = done.stdout.splitlines()
        assert said, done
        assert "accepted" not in done.stdout
        assert "key" not in done.stdout
        if mode == "local" or point is points[0]:
            assert any('"op":"challenge"' in line for line in said), "it has got as far as the question"
    # Nothing secret is in what `ps` shows of the run, of the visitors and of what these have started.
    checked = []
    for process in place.processes():
        with contextlib.suppress(OSError, psutil.Error):
            shown = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
            assert not secrets_in(b"".join(shown), told), process.cmdline()
            checked.append(" ".join(process.cmdline()))
    for words in ("batchlet attach", "batchlet top"):
        assert any(words in line for line in checked), checked
    assert files_with(run, told) == []
    # A listing tells no secret either.
    listed = subprocess.run(
        [*BATCHLET, "ps", "--json"], env=place.environ, cwd=place.cwd, capture_output=True, text=True, check=True
    ).stdout
    assert record.name.removesuffix(".json") in listed
    assert not secrets_in(listed.encode(), told)
    result = run.finish(60)
    assert result.rc == 0, result
    for visitor in visitors[1:]:
        assert visitor.process.wait(30) == 0, visitor.stderr
    eventually(lambda: "; its client is closed" in visitors[0].stderr, 30)
    visitors[0].process.kill()
    assert list(register.iterdir()) == []
    assert not record.exists()
