"""GPUs on a real Slurm, which sets the variables and forbids what was not granted; the devices are files without a driver."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
from own_cluster import a_cluster
from run_helpers import WORKLOADS, BatchJob, Place, Result, json_line
from stand_in_cuda import stand_in

pytestmark = pytest.mark.slurm

GPUS = WORKLOADS / "gpus.py"
# A node like most, where Slurm sets all the variables that it knows; one with fewer; one of AMD's; one without any.
NODES = ("a100:4:", "a100:2:", "mi250:2:amd_gpu_env", "none:0:")
CUDA, ROCR = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
MIG = "MIG-41b3359c-e721-56e5-8009-12e5797ed514,MIG-65b79fff-6d3c-5490-a288-b31ec705f310"


FREE, CONSTRAINED = "free", "constrained"
# Tests of what is the same with ConstrainDevices.
ALIKE = pytest.mark.parametrize("cluster", [FREE], indirect=True)


@pytest.fixture(scope="module", params=[FREE, CONSTRAINED])
def cluster(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    """A cluster whose nodes have GPUs; "constrained" is ``ConstrainDevices``."""
    with a_cluster(gpus=NODES, devices_constrained=request.param == CONSTRAINED) as cluster:
        yield cluster


@pytest.fixture
def constrained(cluster: SlurmCluster) -> bool:
    return cluster.devices_constrained


def found(result: Result) -> dict[str, Any]:
    assert result.rc == 0, str(result)
    assert all(line.startswith("batchlet: ") for line in result.errors), str(result)
    return json.loads(json_line(result.stdout))


def run(place: Place, cluster: SlurmCluster, args: str, *, set_: str = "", **options: object) -> Result:
    """Run under srun; ``-w 1,2`` are the nodes."""
    args = re.sub(r"-w([\d,]+)", lambda match: "-w" + re.sub(r"(?=\d)", cluster.node_prefix, match[1]), args)
    prefix = ["env", *set_.split()] if set_ else []
    return place.run(
        "srun", *args.split(), *prefix, "python", str(GPUS), str(cluster.devices), json.dumps(options), timeout=120
    )


# The launch, variables set by hand, options, and the devices that come first in the worker's variable, by worker.
SHAPES = {
    "gres, two worker ranks": ("-N1 -n4 -w1 --gres=gpu:4", "", {}, {"2": "0", "2-1": "1", "3": "2", "3-1": "3"}),
    "more GPUs than ranks": ("-N1 -n3 -c2 -w1 --gres=gpu:4", "", {"gpus_per_worker": 2}, {"2": "0,1", "2-1": "2,3"}),
    "fewer GPUs than ranks": (
        "-N1 -n6 -w1 --gres=gpu:2",
        "",
        {"workers_per_gpu": 2},
        {"2": "0", "3": "0", "4": "1", "5": "1"},
    ),
    "per node, ranks uneven": (
        "-N2 -n5 -c2 -w1,2 --gpus-per-node=2",
        "",
        {},
        {"2": "0", "3": "1", "4": "0", "4-1": "1"},
    ),
    "nodes uneven": (
        "-N2 -n5 -c2 -w1,2 --gpus=6",
        "",
        {},
        {"2": "0", "2-1": "1", "3": "2", "3-1": "3", "4": "0", "4-1": "1"},
    ),
    "part of a node": ("-N1 -n4 -w1 --gres=gpu:2", "", {"gpu_peers": False}, {"2": "0", "3": "1"}),
    "none": ("-N1 -n3 -w1", "", {}, {"2": ""}),
    "left alone": ("-N1 -n3 -w1 --gres=gpu:2", "", {"gpus_per_worker": 0}, {"2": ""}),
    "MIG": ("-N1 -n4 -w1 --gres=gpu:2", f"{CUDA}={MIG}", {}, {"2": MIG.split(",")[0], "3": MIG.split(",")[1]}),
    # Slurm knows nothing of these.
    "set by hand": ("-N1 -n4 -w4", f"{CUDA}=5,7", {}, {"2": "5", "3": "7"}),
    "AMD": ("-N1 -n4 -w3 --gres=gpu:2", "", {}, {"2": "0", "3": "1"}),
}


@pytest.mark.parametrize(
    ("cluster", "shape"),
    [*((FREE, shape) for shape in SHAPES), (CONSTRAINED, "nodes uneven"), (CONSTRAINED, "part of a node")],
    indirect=["cluster"],
)
def test_each_gpu_of_a_step_is_one_workers(place: Place, cluster: SlurmCluster, shape: str) -> None:
    """Of GPUs that all ranks of a node see, each is the first one of one worker, which Dask knows by its resource."""
    args, variables, options, expected = SHAPES[shape]
    workers = found(run(place, cluster, args, set_=variables, **options))
    assert workers.keys() == expected.keys()
    variable = ROCR if shape == "AMD" else CUDA
    seen_on: dict[str, set[str]] = {}
    for name, worker in workers.items():
        own = expected[name].split(",") if expected[name] else []
        visible = worker["variables"].get(variable, "").split(",")
        assert visible[: len(own)] == own
        assert worker["resources"] == ({"GPU": len(own)} if own else {})
        seen_on.setdefault(worker["node"], set()).add(" ".join(sorted(visible)))
        if not options.get("gpu_peers", True):
            assert visible == own
        elif own:
            assert len(visible) == len(set(visible))
    if options.get("gpu_peers", True):
        # In whatever order, all workers of a node see the same.
        assert {len(seen) for seen in seen_on.values()} == {1}
    if shape == "none":
        assert all(worker["variables"] == {} for worker in workers.values())
    if shape == "left alone":
        assert seen_on == {f"{cluster.node_prefix}1": {"0 1"}}


@pytest.mark.parametrize("args", ["--gpus-per-task=1", "--gres=gpu:4 --gpu-bind=single:1"])
def test_a_gpu_that_slurm_gives_to_a_rank_is_its_workers(
    place: Place, cluster: SlurmCluster, constrained: bool, args: str
) -> None:
    """Each rank, those of the scheduler and the client too, has a worker for the GPU that it was given."""
    workers = found(run(place, cluster, f"-N1 -n4 -w1 {args}"))
    assert {name: worker["rank"] for name, worker in workers.items()} == {str(rank): rank for rank in range(4)}
    visible = {name: worker["variables"][CUDA] for name, worker in workers.items()}
    if not constrained:
        assert sorted(visible.values()) == ["0", "1", "2", "3"]
        return
    # Each calls its own 0; which one that is, the kernel tells.
    assert set(visible.values()) == {"0"}
    opens = [[device for device in worker["opens"] if device.startswith("a100")] for worker in workers.values()]
    assert sorted(opens) == [[f"a100-{number}"] for number in range(4)]


@ALIKE
def test_in_an_allocation_the_workers_have_all_gpus_and_the_plan_says_so(place: Place, cluster: SlurmCluster) -> None:
    """In a batch script with two nodes the plan names, with its source, what each worker then sees first."""
    nodes = f"{cluster.node_prefix}1,{cluster.node_prefix}2"
    script = f"python -m batchlet --plan --json\npython {GPUS} {cluster.devices} '{{}}'\n"
    args = ("-N2", "-n2", "-c4", f"-w{nodes}", "--gpus-per-task=2")
    job = BatchJob(place, *args, script=f"#!/bin/sh\n{script}").wait(120)
    assert job.rc == 0, job.output
    plan = json.loads(job.output[job.output.index("{") : job.output.index("\n}\n") + 2])
    assert [node["figures"]["gpus"]["value"] for node in plan["nodes"]] == [2, 2]
    sources = [node["figures"]["gpus"]["source"].rstrip("0123456789 ") for node in plan["nodes"]]
    assert sources == [CUDA, "scontrol show job"]
    planned = {(node["node"], str(w["name"])): w["environ"][CUDA] for node in plan["nodes"] for w in node["workers"]}
    seen = json.loads(json_line(job.output))
    assert {(worker["node"], name): worker["variables"][CUDA] for name, worker in seen.items()} == planned
    assert sorted(planned.values()) == ["0,1", "0,1", "1,0", "1,0"]


@pytest.mark.parametrize(
    ("cluster", "args", "options", "words"),
    [
        (FREE, "-N1 -n5 -w1 --gres=gpu:2", [], "3 worker ranks on node {node} have 2 GPUs (CUDA_VISIBLE_DEVICES), 2 of them"),
        (FREE, "-N1 -n4 -w1 --gres=gpu:2 --gpu-bind=single:2", [], "4 ranks of node {node} have 1 GPU each"),
        (CONSTRAINED, "-N1 -n4 -w1 --gres=gpu:2 --gpu-bind=single:2", [], "4 ranks of node {node} have 1 GPU each"),
        (FREE, "-N1 -n1 -w1 --gres=gpu:4", [], "4 workers, one for each GPU ({cuda}), need 4 CPUs on node {node}, which"),
        (FREE, "-N1 -n3 -c2 -w1 --gres=gpu:2", ["--workers-per-node=3"], "3 workers on node {node}, which has 2 GPUs"),
    ],
    indirect=["cluster"],
)  # fmt: skip
def test_more_workers_than_gpus_are_refused(
    place: Place, cluster: SlurmCluster, args: str, options: list[str], words: str
) -> None:
    """One sentence before anything starts, from the plan as from the run: what was found, what was needed, what to type."""
    command = ["srun", *args.replace("-w1", f"-w{cluster.node_prefix}1").split(), "python", "-m", "batchlet", *options]
    for rest in (["--plan"], ["-c", "print(1)"]):
        result = place.run(*command, *rest)
        assert (result.rc, result.stdout) == (2, ""), str(result)
        assert len(result.errors) == 1, str(result)
        assert words.format(node=f"{cluster.node_prefix}1", cuda=CUDA) in result.errors[0], str(result)


@ALIKE
def test_a_gpu_that_all_ranks_were_told_by_hand_is_not_shared_by_accident(place: Place, cluster: SlurmCluster) -> None:
    """Where Slurm knows nothing of the GPUs, the agent of the node tells the same GPU for all from one for each."""
    result = run(place, cluster, "-N1 -n4 -w4", set_=f"{CUDA}=0")
    assert (result.rc, result.stdout) == (2, ""), str(result)
    assert "2 worker ranks on node" in result.stderr, str(result)
    assert "1 GPU (CUDA_VISIBLE_DEVICES), 1 of them would have one" in result.stderr, str(result)


@ALIKE
@pytest.mark.parametrize("driver", [True, False])
def test_dask_cudas_workers_are_taken_where_its_driver_works(place: Place, cluster: SlurmCluster, driver: bool) -> None:
    """On two nodes, each worker with its GPU; where there is no driver one line for all nodes says why they are plain."""
    variables = stand_in(place.base, driver=driver)
    options: dict[str, object] = {"worker_options": {"rmm_pool_size": "1GB"}} if driver else {}
    set_ = " ".join(f"{name}={value}" for name, value in variables.items())
    result = run(place, cluster, "-N2 -n4 -c2 -w1,2 --gres=gpu:2", set_=set_, **options)
    workers = found(result)
    visible = sorted(worker["variables"][CUDA] for worker in workers.values())
    assert visible == sorted(2 * ["0,1", "1,0"]), str(result)
    assert all(worker["resources"] == {"GPU": 1} for worker in workers.values())
    assert {worker["kind"] for worker in workers.values()} == {"OfDaskCuda" if driver else "Worker"}
    said = [line for line in result.errors if "workers are Dask's own, dask-cuda is installed, but cannot" in line]
    assert len(said) == (0 if driver else 1), str(result)


@ALIKE
@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        (False, {"worker_options": {"rmm_pool_size": "1GB"}}, "take, but dask-cuda cannot be used on node"),
        # The stand-in refuses to be made.
        (True, {"worker_options": {"rmm_pool_size": "2GB"}}, "dask-cuda's worker could not be made on node"),
        (True, {"worker_class": "dask_cuda.CUDAWorker"}, 'worker_class="dask_cuda.CUDAWorker" cannot be used on node'),
    ],
)
def test_what_dask_cuda_cannot_do_ends_the_run_with_a_sentence(
    place: Place, cluster: SlurmCluster, driver: bool, options: dict[str, Any], words: str
) -> None:
    """One error, of the first node that has it."""
    set_ = " ".join(f"{name}={value}" for name, value in stand_in(place.base, driver=driver).items())
    result = run(place, cluster, "-N2 -n4 -c2 -w1,2 --gres=gpu:2", set_=set_, **options)
    assert result.rc == 2, str(result)
    said = [line for line in result.errors if "error: " in line]
    assert len(said) == 1, str(result)
    assert words in said[0], str(result)
    assert "Traceback" not in result.stderr, str(result)


OF_JOBS = """
from dask.distributed import Client

with made(jobs=1, gpus=2, walltime="00:10:00") as cluster, Client(cluster) as client:
    client.wait_for_workers(2, timeout=60)
    seen = client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    resources = [worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    sys.stdout.write("RESULT " + json.dumps([sorted(seen.values()), resources]) + "\\n")
"""


@ALIKE
def test_a_submitted_job_asks_for_its_gpus_and_divides_them(place: Place, cluster: SlurmCluster) -> None:
    """`gpus=2` is what Slurm is asked for, and each of the two workers has one of those that the job was granted."""
    result = Login(cluster, place).run(OF_JOBS, timeout=150)
    assert result.rc == 0, str(result)
    assert json.loads(json_line(result.stdout)) == [["0,1", "1,0"], [{"GPU": 1}, {"GPU": 1}]]


OF_DASK_CUDAS_JOBS = """
with made(jobs=2, gpus=2, walltime="00:10:00", **json.loads(sys.argv[1])) as cluster, cluster.get_client() as client:
    client.wait_for_workers(4, timeout=60)
    kinds = client.run(lambda dask_worker: type(dask_worker).__name__)
    sys.stdout.write("RESULT " + json.dumps(sorted(kinds.values())) + "\\n")
"""


@ALIKE
@pytest.mark.parametrize("driver", [True, False])
def test_submitted_jobs_too_take_dask_cudas_workers(place: Place, cluster: SlurmCluster, driver: bool) -> None:
    """Where their nodes have no driver, one line for all jobs says that workers are plain."""
    login = Login(cluster, place)
    login.environ |= stand_in(place.base, driver=driver)
    options = {"worker_options": {"rmm_pool_size": "1GB"}} if driver else {}
    result = login.run(OF_DASK_CUDAS_JOBS, json.dumps(options), timeout=150)
    assert result.rc == 0, str(result)
    assert json.loads(json_line(result.stdout)) == 4 * ["OfDaskCuda" if driver else "Worker"]
    said = [line for line in result.errors if "workers are Dask's own, dask-cuda is installed, but cannot" in line]
    assert len(said) == (0 if driver else 1), str(result)
