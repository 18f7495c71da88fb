"""The workers' limits fit the allocation: the sums of each node against its real cgroup and Slurm's CPUs."""

from __future__ import annotations

import json
import platform
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from cluster_slurm import SlurmCluster
from run_helpers import WORKLOADS, Place, Run, json_line, unavailable

pytestmark = pytest.mark.slurm

SCRIPT = WORKLOADS / "limits.py"
MIB = 1 << 20
HEADROOM = "BATCHLET_DASK_CLUSTER__MEMORY_HEADROOM_FRAC"


@pytest.fixture(autouse=True)
def _enforced(cluster: SlurmCluster) -> None:
    if not cluster.memory_enforced:
        unavailable("memory limits are not enforced by the control groups of this machine")


@dataclass(frozen=True)
class Shape:
    """A launch, and what it must come to: workers of each node as (threads, MiB), nodes in order."""

    args: str
    expected: list[list[tuple[int, int]]]
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    headroom: float = 0.0


# A node has 8 CPUs and 4096 MiB; a job that asks for no memory gets 512 MiB for each of its CPUs.
SHAPES = {
    "bare, even": Shape("-N2 -n6", [[(1, 512)], [(1, 512)] * 3]),
    "uneven": Shape("-N3 -n6 --distribution=plane=4", [[(1, 512)] * 2, [(1, 512)], [(1, 512)]]),
    "one per node": Shape("-N3 -n3 -c2", [[(1, 512)], [(1, 512)], [(2, 1024)]]),
    "-c 2": Shape("-N1 -n4 -c2", [[(2, 1024)] * 2]),
    "--mem=2G": Shape("-N2 -n8 --ntasks-per-node=4 --mem=2G", [[(1, 512)] * 2, [(1, 512)] * 4]),
    "--mem-per-cpu": Shape("-N1 -n4 -c2 --mem-per-cpu=300M", [[(2, 600)] * 2]),
    "--exclusive, headroom": Shape(
        "-N2 -n4 -c4 --ntasks-per-node=2 --exclusive", [[], [(4, 1536)] * 2], env={HEADROOM: "0.25"}, headroom=0.25
    ),
    "--mem=0, workers_per_node": Shape("-N1 -n3 -c2 --mem=0", [[(2, 1024)] * 2], {"workers_per_node": 2}),
    "threads_per_worker": Shape("-N1 -n4 -c2", [[(1, 682)] * 4], {"threads_per_worker": 1}),
    "memory_per_worker": Shape("-N1 -n3 -c2", [[(2, 768)] * 2], {"memory_per_worker": "768MiB"}),
    "all three": Shape(
        "-N1 -n3 -c2",
        [[(1, 307)] * 2],
        {"workers_per_node": 2, "threads_per_worker": 1, "memory_per_worker": 0.1},
    ),
}


def check(report: dict[str, Any], headroom: float = 0.0, options: dict[str, Any] | None = None) -> None:
    """Check the rule on each node; what may be used is derived here anew, from the cgroup and the CPUs."""
    nodes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for worker in report["workers"]:
        nodes[worker["node"]].append(worker)
        # What the scheduler was told is what the worker goes by.
        assert (worker["threads"], worker["limit"]) == (worker["nthreads"], worker["memory_limit"])
    for node, workers in nodes.items():
        facts = workers[0]
        heads = len({0, 1} & set(facts["ranks"]))
        # A head that is a rank of its own keeps a rank's share, one that hosts workers too a share and one CPU.
        shares = len(workers) + heads
        if {0, 1} & {worker["name"] for worker in workers}:
            head_cpus = min(heads, facts["cpus"] - len(workers))
        else:
            shares = max(len(facts["ranks"]), shares)
            head_cpus = heads * (facts["cpus"] // shares)
        usable = facts["cgroup"] * (1 - headroom)
        memory_room = usable - heads * (usable // shares)
        cpu_room = facts["cpus"] - head_cpus
        memory, threads = (sum(worker[key] for worker in workers) for key in ("memory_limit", "nthreads"))
        assert memory <= memory_room + 1, f"{node}: limits sum to {memory}, {memory_room} may be used"
        assert threads <= cpu_room, f"{node}: {threads} threads, {cpu_room} CPUs may be used"
        asked = options or {}
        if "memory_per_worker" not in asked:
            assert memory >= 0.9 * memory_room, f"{node}: limits sum to {memory} of {memory_room}"
        if "threads_per_worker" not in asked:
            assert threads >= 0.9 * cpu_room, f"{node}: {threads} threads of {cpu_room} CPUs"
        assert len({worker["host"] for worker in workers}) == 1
        for worker in workers:
            assert 1 <= int(worker["blas"]) <= worker["nthreads"]
    here = [[worker["name"], worker["nthreads"], worker["memory_limit"]] for worker in nodes.get(report["node"], [])]
    assert sorted(here, key=str) == sorted(report["planned"], key=str), "runner.plan is not what runs"
    for name in ("cpus", "memory", "usable_memory", "memory_headroom_frac"):
        value, source = report["figures"][name]
        assert value >= 0, name
        assert source, name
    hosts = {workers[0]["host"] for workers in nodes.values()}
    assert len(hosts) == len(nodes)


def shape_of(report: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Workers of each node as (threads, MiB)."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for worker in report["workers"]:
        found[worker["node"]].append((worker["nthreads"], worker["memory_limit"] // MIB))
    return {node: sorted(workers) for node, workers in found.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_workers_get_no_more_than_their_node_grants_and_at_least_most_of_it(srun: Run, name: str) -> None:
    """The workers of a node get no more than it grants, at least 90 % of what they may, and exactly what is expected."""
    shape = SHAPES[name]
    result = srun(*shape.args.split(), script=SCRIPT, argv=[json.dumps(shape.options)], env=shape.env)
    assert result.rc == 0, str(result)
    report = json.loads(json_line(result.stdout))
    check(report, shape.headroom, shape.options)
    assert sorted(shape_of(report).values()) == sorted(workers for workers in shape.expected if workers)


def test_a_step_smaller_than_its_job_shares_out_its_part(place: Place) -> None:
    """A step that has a part of its job's CPUs and memory shares out that part."""
    step = f"srun --exact -N1 -n4 -c1 --mem=1G python {SCRIPT}"
    result = place.run("salloc", "-N2", "-n12", "--mem=3G", "sh", "-c", step)
    assert result.rc == 0, str(result)
    report = json.loads(json_line(result.stdout))
    check(report)
    assert list(shape_of(report).values()) == [[(1, 256)] * 2]


def test_memory_is_enforced_by_each_worker(srun: Run) -> None:
    """With `--mem=2G` a task that allocates without end is stopped by its worker's own limit; the others go on."""
    env = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    result = srun("-N1", "-n6", "--mem=2G", script=WORKLOADS / "eat.py", env=env)
    assert result.rc == 0, str(result)
    report = json.loads(json_line(result.stdout))
    assert len(report["limits"]) == 4
    assert sum(report["limits"]) <= 2048 * MIB
    assert report["killed"]
    assert report["numbers"] == list(range(60))
    assert report["processes"] == 3, "a worker that had done nothing wrong was started again"
    assert report["again"] == "it works again"
    assert "Traceback" not in result.stderr, str(result)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are those of the GNU C library")
def test_workers_use_the_pages_of_arrays_again(srun: Run, place: Place) -> None:
    """A worker does not give back each array of some megabytes to the system; as Dask sets the allocator, it does."""
    script = WORKLOADS / "page_faults.py"
    for result in (srun("-n3", script=script), place.run(sys.executable, place.script(script))):
        found = json.loads(json_line(result.stdout))
        assert found["pages"] < found["all"] / 10, str(result)
    dasks = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "131072"}
    result = srun("-n3", script=script, env=dasks)
    found = json.loads(json_line(result.stdout))
    assert found["pages"] > found["all"] / 2, str(result)
