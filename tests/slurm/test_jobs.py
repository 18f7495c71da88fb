"""Jobs that are submitted to a real Slurm: clusters that grow and shrink, and are closed to others."""

from __future__ import annotations

import json

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
from run_helpers import Place, json_line

pytestmark = pytest.mark.slurm


@pytest.fixture
def login(cluster: SlurmCluster, place: Place) -> Login:
    return Login(cluster, place)


SYNCHRONOUS = """
import glob, stat, subprocess
from pathlib import Path

with made(jobs=1, memory_headroom_frac=0.1) as cluster:
    cluster.wait_for_workers(2)
    client = cluster.get_client()
    job = cluster.jobs[0]
    script = subprocess.run(["scontrol", "write", "batch_script", job.job_id, "-"], capture_output=True, text=True).stdout
    record = json.loads(next(Path(".batchlet").glob("*.json")).read_text())
    agents = client.run(lambda: [open(f"/proc/{pid}/{name}").read() for pid in (os.getpid(), os.getppid())
                                 for name in ("cmdline", "environ")])
    told = [script, *(text for texts in agents.values() for text in texts)]
    found = {
        "states": states(),
        "limits": sorted({(w["nthreads"], w["memory_limit"]) for w in cluster.scheduler_info["workers"].values()}),
        "addresses": sorted({a.split(":")[0] for a in [cluster.scheduler_address, *cluster.scheduler_info["workers"]]}),
        "dashboard": cluster.dashboard_link.rsplit("/", 2)[0].rsplit(":", 1)[0],
        "modes": sorted({stat.S_IMODE(path.stat().st_mode) & 0o077 for path in Path(".batchlet").glob("*")}
                        | {stat.S_IMODE(Path(".batchlet").stat().st_mode) & 0o077}),
        "told": [name for name in ("secret", "certificate") if any(record[name] in text for text in told)],
        "keys": "PRIVATE KEY" in json.dumps([record, told]),
        "script": "batchlet.job" in script,
        "html": job.job_id in cluster._repr_html_(),
        "logs": sorted(cluster.get_logs())[:2],
        "sum": client.submit(sum, [1, 2, 3]).result(),
    }
    cluster.scale(n=6)
    client.wait_for_workers(6)
    found["groups"] = cluster.plan == cluster.requested == cluster.observed and len(cluster.plan)
    futures = client.map(lambda i: i, range(30))
    client.gather(futures)
    cluster.scale(jobs=1)
    until(lambda: len(cluster.scheduler.workers) == 2 and states() == ["ended", "ended", "joined"])
    found["kept"] = sum(client.gather(futures))
    client.close()
print("RESULT", json.dumps(found))
"""


def test_a_cluster_grows_and_shrinks_within_its_grant_and_tells_nobody_its_secrets(login):
    result = login.run(SYNCHRONOUS)
    assert result.rc == 0, result
    found = json.loads(json_line(result.stdout))
    assert found["states"] == ["joined"]
    # 600 MiB less a tenth, for two workers.
    assert found["limits"] == [[1, 270 << 20]]
    assert found["addresses"] == ["tls"]
    assert found["dashboard"] == "http://localhost"
    assert found["modes"] == [0]
    assert found["told"] == []
    assert not found["keys"]
    assert found["script"]
    assert found["html"]
    assert found["logs"] == ["Cluster", "Scheduler"]
    assert (found["sum"], found["groups"], found["kept"]) == (6, 6, sum(range(30)))
    assert len(result.errors) == 1, result
    assert result.errors[0].startswith("batchlet: slurm: each job 2 workers x 1 thread x 270 MiB"), result


ASYNCHRONOUS = """
import asyncio
from dask.distributed import Client

async def main():
    global cluster
    async with made(jobs=1, nodes_per_job=2, asynchronous=True) as cluster, Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(4)
        nodes = await client.run(lambda: os.uname().nodename)
        names = sorted(w["name"].removeprefix(cluster.name) for w in cluster.scheduler_info["workers"].values())
        await cluster.scale(cores=8)
        await client.wait_for_workers(8)
        while "running" in states():
            await asyncio.sleep(0.05)
        print("RESULT", json.dumps([len(set(nodes.values())), names, states()]))

asyncio.run(main())
"""


def test_a_job_of_two_nodes_brings_workers_on_both_and_awaits_like_any_other_cluster(login):
    result = login.run(ASYNCHRONOUS)
    assert result.rc == 0, result
    assert json.loads(json_line(result.stdout)) == [2, ["-0-0", "-0-1", "-0-2", "-0-3"], ["joined", "joined"]]
    assert len(result.errors) == 1, result
