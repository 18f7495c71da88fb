"""GPUs without a launcher: the variables of the shell, and a class that is made as dask-cuda's."""

from __future__ import annotations

import json
import sys

import pytest
from run_helpers import Place, json_line
from stand_in_cuda import stand_in

A, B = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-0a1b2c3d-0000-1111-2222-333344445555"
SCRIPT = """
import json, os, sys
import dask
from dask.distributed import Client
from batchlet import BatchletRunner

def look():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

if __name__ == "__main__":
    before = dict(os.environ)
    with BatchletRunner(**json.loads(sys.argv[1])) as runner, Client(runner) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        seen = client.run(look)
        found = {str(info["name"]): [seen[address], info["resources"]] for address, info in workers.items()}
        with dask.annotate(resources={"GPU": 1}):
            assert client.submit(sum, [1, 2]).result(timeout=30) == 3
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before["CUDA_VISIBLE_DEVICES"]
    sys.stdout.write("RESULT " + json.dumps(found) + "\\n")
"""


@pytest.mark.parametrize("kind", ["plain", "dask-cuda", "own alone"])
def test_each_worker_has_a_gpu_of_those_that_the_shell_names(place: Place, kind: str) -> None:
    """Locally too there is one worker for each, its own first; a server that makes a Nanny for each device makes one."""
    options: dict[str, object] = {"threads_per_worker": 1, "memory_per_worker": "256MiB"}
    env = {"CUDA_VISIBLE_DEVICES": f"{A},{B}"}
    if kind == "dask-cuda":
        env |= stand_in(place.base, driver=False)
        options |= {"worker_class": "dask_cuda.CUDAWorker", "worker_options": {"rmm_pool_size": "1GB"}}
    elif kind == "own alone":
        options |= {"gpu_peers": False, "worker_options": {"resources": {"LICENCE": 1}}}
    result = place.run(sys.executable, place.script(SCRIPT), json.dumps(options), env=env, timeout=120)
    assert result.rc == 0, str(result)
    assert "Traceback" not in result.stderr, str(result)
    found = json.loads(json_line(result.stdout))
    if kind == "own alone":
        assert found == {"0": [A, {"GPU": 1, "LICENCE": 1}], "1": [B, {"GPU": 1, "LICENCE": 1}]}
    else:
        assert found == {"0": [f"{A},{B}", {"GPU": 1}], "1": [f"{B},{A}", {"GPU": 1}]}


def test_without_gpus_nothing_is_said_and_nothing_imported(place: Place) -> None:
    """A plan of a host without GPUs has no word of them, and NVML's package is not looked for."""
    code = (
        "import sys\nfrom batchlet.cli import main\nmain(['--plan'])\nsys.stdout.write(str('pynvml' in sys.modules))\n"
    )
    result = place.run(sys.executable, "-c", code)
    assert result.rc == 0, str(result)
    assert "gpu" not in result.stdout.lower(), str(result)
    assert result.stdout.endswith("False"), str(result)
