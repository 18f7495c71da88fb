"""dask-cuda's workers, taken by themselves where they fit and dask-cuda is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import sys

import pytest
from run_helpers import Place, Result, json_line
from stand_in_cuda import stand_in

A, B = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-0a1b2c3d-0000-1111-2222-333344445555"
SIZES: dict[str, object] = {"threads_per_worker": 1, "memory_per_worker": "256MiB"}
# The option without which the stand-in refuses to be made.
POOL: dict[str, object] = {"worker_options": {"rmm_pool_size": "1GB"}}
SCRIPT = """
import json, os, sys
from dask.distributed import Client
from batchlet import BatchletRunner

def look(dask_worker):
    import os
    return [
        str(dask_worker.name), os.environ["CUDA_VISIBLE_DEVICES"], hasattr(dask_worker, "of_dask_cuda"),
        type(dask_worker.data).__name__, sorted(os.sched_getaffinity(0)),
    ]

if __name__ == "__main__":
    with BatchletRunner(**json.loads(sys.argv[1])) as runner, Client(runner) as client:
        found = sorted(client.run(look).values())
        if "cudf" in sys.modules:
            found.append(sys.modules["cudf"].options)
    sys.stdout.write("RESULT " + json.dumps([found, sorted(os.sched_getaffinity(0))]) + "\\n")
"""


def run(place: Place, env: dict[str, str], **options: object) -> Result:
    env = {"CUDA_VISIBLE_DEVICES": f"{A},{B}", **env}
    return place.run(sys.executable, place.script(SCRIPT), json.dumps({**SIZES, **options}), env=env, timeout=120)


def workers(result: Result) -> list[list[object]]:
    assert result.rc == 0, str(result)
    return json.loads(json_line(result.stdout))[0]


def planned(place: Place, env: dict[str, str], *options: str) -> Result:
    env = {"CUDA_VISIBLE_DEVICES": f"{A},{B}", **env}
    return place.run(sys.executable, "-m", "batchlet", "--plan", "--threads-per-worker=1", *options, env=env)


def class_in(plan: Result) -> str | None:
    assert plan.rc == 0, str(plan)
    found = re.search(r"^  worker_class +(\S.*)$", plan.stdout.partition("\nasked for")[0], re.MULTILINE)
    return found and found[1]


def test_where_dask_cuda_is_installed_it_has_the_workers_and_its_options_reach_it(place: Place) -> None:
    """The plan says so; each worker has one GPU, its own first."""
    env = stand_in(place.base)
    options = f"--worker-options={json.dumps(POOL['worker_options'])}"
    assert class_in(planned(place, env, options)) == "dask_cuda.CUDAWorker  dask-cuda is installed"
    result = run(place, env, **POOL)
    assert [worker[:3] for worker in workers(result)] == [["0", f"{A},{B}", True], ["1", f"{B},{A}", True]]
    assert "dask-cuda" not in result.stderr, str(result)


def test_locally_cudf_spills_in_the_clients_process_too(place: Place) -> None:
    """As with LocalCUDACluster, where the workers' cuDF is to spill."""
    options: dict[str, object] = {"worker_options": {"rmm_pool_size": "1GB", "enable_cudf_spill": True}}
    *found, cudf = workers(run(place, stand_in(place.base), **options))
    assert [worker[2] for worker in found] == [True, True]
    assert cudf == {"spill": True, "spill_stats": 0}


def test_the_plain_worker_is_there_for_who_asks_for_it(place: Place) -> None:
    """`worker_class="distributed.Nanny"` is a worker of Dask's own, and nothing is said of the other one."""
    env = stand_in(place.base)
    result = run(place, env, worker_class="distributed.Nanny")
    assert [worker[:3] for worker in workers(result)] == [["0", f"{A},{B}", False], ["1", f"{B},{A}", False]]
    assert class_in(planned(place, env, "--worker-class=distributed.Nanny")) is None


@pytest.mark.parametrize("driver", [True, False])
def test_where_dask_cuda_cannot_work_one_line_says_so_and_workers_are_plain(place: Place, driver: bool) -> None:
    """Without a driver, or where its worker cannot be made, nobody has asked for it: the run goes on without."""
    env = stand_in(place.base, driver=driver)
    result = run(place, env)
    assert [worker[:3] for worker in workers(result)] == [["0", f"{A},{B}", False], ["1", f"{B},{A}", False]]
    said = [
        line for line in result.errors if "workers are Dask's own, dask-cuda is installed, but cannot be used: " in line
    ]
    assert len(said) == 1, str(result)
    assert "Traceback" not in result.stderr, str(result)
    if not driver:
        shown = class_in(planned(place, env))
        assert shown is not None
        assert shown.startswith("distributed.Nanny  dask-cuda is installed, but cannot be used: ")


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        ({"driver": False}, POOL, "only dask-cuda's workers take, but dask-cuda cannot be used on node"),
        ({"dask_cuda": False}, POOL, 'but dask-cuda is not installed: pip install "dask-batchlet[cuda]"'),
        ({}, {**POOL, "gpus_per_worker": 2}, "but dask-cuda has one GPU for each worker, of which these have 2"),
        ({}, {**POOL, "workers_per_gpu": 2}, "but dask-cuda has one worker for each GPU, and workers_per_gpu=2"),
        ({}, {**POOL, "gpus_per_worker": 0}, "have no GPU of NVIDIA's. Ask for GPUs"),
        ({}, {**POOL, "worker_class": "distributed.Nanny"}, "but worker_class='distributed.Nanny' is Dask's own"),
        ({}, {"worker_options": {"rmm_pool_size": "2GB"}}, "dask-cuda's worker could not be made on node"),
        ({}, {"worker_options": {"jit_unspill": True}}, "has jit_unspill, which CUDAWorker of "),
        ({}, {"worker_class": "dask_cuda.CUDAWorker"}, 'worker_class="dask_cuda.CUDAWorker" cannot be used on node'),
    ],
)  # fmt: skip
def test_what_dask_cuda_alone_can_do_is_refused_without_it(
    place: Place, made: dict[str, bool], options: dict[str, object], words: str
) -> None:
    """One sentence says what was found and what was needed, and nothing is left."""
    if made == {"dask_cuda": False} and importlib.util.find_spec("dask_cuda") is not None:
        pytest.skip("dask-cuda is installed")
    sizes = {"threads_per_worker": 1} if "workers_per_gpu" not in options else {"workers_per_node": 2}
    env = {"CUDA_VISIBLE_DEVICES": f"{A},{B}", **stand_in(place.base, **made)}
    arguments = json.dumps({**sizes, "memory_per_worker": "256MiB", **options})
    result = place.run(sys.executable, place.script(SCRIPT), arguments, env=env, timeout=120)
    assert result.rc == 2, str(result)
    assert "Traceback" not in result.stderr, str(result)
    assert [line for line in result.errors if line.startswith("batchlet: error: ")] == [result.errors[-1]], str(result)
    assert words in result.errors[-1], str(result)


def test_of_the_real_dask_cuda_as_much_as_goes_without_a_gpu(place: Place) -> None:
    """Its CUDAWorker, with NVML played: its data store and plugins, and the CPUs are the worker's alone."""
    pytest.importorskip("dask_cuda", reason='dask-cuda is not installed (pip install dask-cuda "cuda-core[cu12]")')
    env = stand_in(place.base, dask_cuda=False)
    result = run(place, env, bind=True)
    found, mine = json.loads(json_line(result.stdout))
    assert [worker[1] for worker in found] == [f"{A},{B}", f"{B},{A}"]
    assert {worker[3] for worker in found} == {"DeviceHostFile"}, str(result)
    cpus = [cpu for worker in found for cpu in worker[4]]
    assert len(set(cpus)) == len(cpus) <= len(mine), "each has its own"
