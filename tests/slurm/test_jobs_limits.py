"""The workers of a submitted job, whatever its shape, keep to what Slurm has granted it on each node, and use it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
from run_helpers import Place, Result

pytestmark = pytest.mark.slurm

MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    """What a job is asked for; and, where its directives make that less, what of it is granted on each node."""

    options: dict[str, Any]
    cpus: int | None = None
    mib: int | None = None
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        return self.options.get("nodes_per_job", 1)


SHAPES = {
    "one worker": Shape({"cores": 2, "memory": "600MiB", "workers_per_node": 1}),
    "a worker for each CPU": Shape({"cores": 4, "memory": "1GiB", "workers_per_node": 4}),
    "threads that do not divide": Shape({"cores": 7, "memory": "900MiB", "workers_per_node": 3}),
    "memory in odd bytes": Shape({"cores": 1, "memory": 700_000_001, "workers_per_node": 1}),
    "memory between two whole gibibytes": Shape({"cores": 2, "memory": "1200MiB", "workers_per_node": 2}),
    "headroom": Shape({"cores": 2, "memory": "1GB", "workers_per_node": 2, "memory_headroom_frac": 0.1}),
    "three nodes": Shape({"cores": 2, "memory": "600MiB", "workers_per_node": 2, "nodes_per_job": 3}),
    "the whole node": Shape(
        {"cores": 8, "memory": "2GiB", "workers_per_node": 4, "job_extra_directives": ["--exclusive"]}
    ),
    # What is there beyond what was asked for is not taken: how many workers a job has is settled before.
    "the whole node for a quarter of it": Shape(
        {"cores": 2, "memory": "600MiB", "workers_per_node": 2, "job_extra_directives": ["--exclusive"]}
    ),
    "less memory than asked for": Shape({"cores": 2, "memory": "1GiB", "workers_per_node": 2, "job_mem": "600M"}, mib=600),
    "fewer CPUs than asked for": Shape({"cores": 4, "memory": "600MiB", "workers_per_node": 2, "job_cpu": 2}, cpus=2),
    "fewer CPUs on two nodes": Shape(
        {"cores": 4, "memory": "600MiB", "workers_per_node": 2, "nodes_per_job": 2,
         "job_extra_directives": ["--cpus-per-task=3"]},
        cpus=3,
    ),
    "without the client's environment": Shape(
        {"cores": 2, "memory": "600MiB", "workers_per_node": 2, "nodes_per_job": 2,
         "job_extra_directives": ["--export=NONE"], "setup_script_commands": ["export OF_SCRIPT=there"]},
        environ={"OF_SCRIPT": "there", "OF_CLIENT": ""},
    ),
}  # fmt: skip

SCRIPT = """
import asyncio
from dask.distributed import Client

os.environ["OF_CLIENT"] = "here"

async def one(name, options, turn):
    async with turn, made(jobs=1, asynchronous=True, **options) as cluster, Client(cluster, asynchronous=True) as client:
        while [job.state for job in cluster.jobs] != ["joined"]:
            assert cluster.keeper.book.gave_up is None, name
            await asyncio.sleep(0.05)
        told = subprocess.run(["scontrol", "--detail", "--oneliner", "show", "job", cluster.jobs[0].job_id],
                              capture_output=True, text=True).stdout
        seen = await client.run(lambda: [os.uname().nodename, os.environ.get("OF_SCRIPT", ""), os.environ.get("OF_CLIENT", "")])
        workers = [[seen[address][0], worker["nthreads"], worker["memory_limit"]]
                   for address, worker in cluster.scheduler_info["workers"].items()]
        environ = [{"OF_SCRIPT": script, "OF_CLIENT": mine} for _, script, mine in seen.values()]
        print("SHAPE", json.dumps({"name": name, "job": cluster.jobs[0].job_id, "scontrol": told, "workers": workers,
                                   "environ": environ}), flush=True)

async def main():
    # Some of them side by side.
    turn = asyncio.Semaphore(3)
    await asyncio.gather(*(one(name, options, turn) for name, options in json.loads(sys.argv[1]).items()))

asyncio.run(asyncio.wait_for(main(), 100))
"""


@dataclass(frozen=True)
class Seen:
    """What was seen of all shapes."""

    jobs: dict[str, dict[str, Any]]
    result: Result


@pytest.fixture(scope="module")
def seen(cluster: SlurmCluster) -> Seen:
    """One client has a job of each shape."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    try:
        options = json.dumps({name: shape.options for name, shape in SHAPES.items()})
        result = Login(cluster, place).run(SCRIPT, options, timeout=120)
        assert result.rc == 0, result
        found = [json.loads(line[6:]) for line in result.stdout.splitlines() if line.startswith("SHAPE ")]
        return Seen({job["name"]: job for job in found}, result)
    finally:
        place.close()


def granted(scontrol: str, cluster: SlurmCluster) -> dict[str, tuple[int, int]]:
    """CPUs and bytes of the job on each of its nodes."""
    found = {}
    for nodes, cpus, mib in re.findall(r" Nodes=(\S+) CPU_IDs=(\S+) Mem=(\d+)", scontrol):
        prefix, _, numbers = nodes.partition("[")
        names = [nodes] if not numbers else [f"{prefix}{number}" for number in expanded(numbers.rstrip("]"))]
        assert set(names) <= set(cluster.node_names), scontrol
        found |= {name: (len(expanded(cpus)), int(mib) * MIB) for name in names}
    return found


def expanded(text: str) -> list[int]:
    """Read "0-2,5"."""
    ends = [part.split("-") for part in text.split(",")]
    return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]


@pytest.mark.parametrize("name", SHAPES)
def test_the_workers_of_a_job_keep_to_its_grant_and_use_it(seen: Seen, cluster: SlurmCluster, name: str) -> None:
    """On each node threads and limits sum to at most what Slurm has granted, and to 90 % of it, or of what was asked for."""
    shape, job = SHAPES[name], seen.jobs[name]
    grants = granted(job["scontrol"], cluster)
    assert len(grants) == shape.nodes, job
    usable = 1 - shape.options.get("memory_headroom_frac", 0)
    for node, (cpus, memory) in grants.items():
        here = [(threads, limit) for where, threads, limit in job["workers"] if where == node]
        threads, limits = sum(threads for threads, _ in here), sum(limit for _, limit in here)
        assert threads <= cpus, job
        assert limits <= memory * usable, job
        assert threads == min(cpus, shape.options["cores"]), job
        assert limits >= 0.9 * memory * usable, job
        if shape.cpus is not None:
            assert cpus == shape.cpus, job
        if shape.mib is not None:
            assert memory == shape.mib * MIB, job
    less = [line for line in seen.result.errors if f"job {job['job']} on node" in line and "was granted" in line]
    # One line from each node that has less than was asked for.
    assert len(less) == (shape.nodes if shape.cpus or shape.mib else 0), seen.result
    assert all(environ == shape.environ for environ in job["environ"]) or not shape.environ, job
