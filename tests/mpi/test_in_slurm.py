"""mpirun inside a Slurm job: MPI's variables win there, and srun of the same script in the same job is Slurm's."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mpi_launchers import OPEN_MPI, open_mpi
from run_helpers import BatchJob, Place, reserved_instance
from run_helpers import unavailable as no_slurm

pytestmark = [pytest.mark.slurm, pytest.mark.mpirun, pytest.mark.timeout(240)]

SCRIPT = """
import json, socket, sys
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    known = client.scheduler_info(n_workers=-1)["workers"]
    hosts = client.run(socket.gethostname)
    sys.stdout.write("RESULT " + json.dumps({
        "mode": runner.mode,
        "role": runner.role,
        "workers": sorted([worker["name"], worker["nthreads"], worker["memory_limit"]] for worker in known.values()),
        "nodes": sorted({hosts[address] for address in known}),
    }) + "\\n")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The Slurm of tests/slurm, for this module."""
    sys.path.append(str(Path(__file__).parents[1] / "slurm"))
    from cluster_slurm import SlurmCluster

    with reserved_instance() as instance:
        cluster = SlurmCluster(instance)
        if (reason := cluster.unavailable_reason()) is not None:
            no_slurm(reason)
        cluster.down()
        cluster.up()
        try:
            yield cluster
        finally:
            cluster.down()


@pytest.fixture
def place(cluster: Any) -> Iterator[Place]:
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    place.environ.update(OPEN_MPI)
    yield place
    place.close()


def job(place: Place, *args: str, script: str) -> Any:
    job = BatchJob(place, *args, script=f"#!/bin/sh\n{script}\n").wait(120)
    place.assert_nothing_left(None, job)
    return job


def results(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]


def test_mpirun_and_srun_in_one_job(place: Place) -> None:
    """In one batch job mpirun gives an MPI run and srun, without its variables, a Slurm step: both of the job's size."""
    mpirun, app = open_mpi().mpirun, place.script(SCRIPT)
    assert not any(name.startswith("OMPI_COMM") for name in place.environ)
    done = job(place, "-N1", "-n4", script=f"{mpirun} -n 4 python {app} && srun python {app}")
    assert done.rc == 0, done.output
    by_mpi, by_slurm = results(done.output)
    assert (by_mpi["mode"], by_slurm["mode"]) == ("mpi", "slurm")
    for found in (by_mpi, by_slurm):
        assert found["role"] == "client"
        assert [name for name, *_ in found["workers"]] == [2, 3]
        assert sum(threads for _, threads, _ in found["workers"]) <= 4
        assert sum(memory for *_, memory in found["workers"]) <= 2 << 30, "4 CPUs have 2 GiB"
    lines = [line for line in done.output.splitlines() if line.startswith("batchlet: ")]
    assert len(lines) == 4, done.output
    assert len(done.output.splitlines()) == 6, done.output


def test_mpirun_on_two_nodes_knows_each_nodes_share(place: Place) -> None:
    """mpirun over the nodes of the job, by Slurm's own daemons: each rank knows its node and that node's share."""
    mpirun = f"{open_mpi().mpirun} -n 6 --map-by ppr:3:node:oversubscribe"
    done = job(place, "-N2", "-n6", "--ntasks-per-node=3", script=f"{mpirun} python {place.script(SCRIPT)}")
    assert done.rc == 0, done.output
    (found,) = results(done.output)
    assert found["mode"] == "mpi"
    assert [name for name, *_ in found["workers"]] == [2, 3, 4, 5]
    assert len(found["nodes"]) == 2
    memory = {name: size for name, _, size in found["workers"]}
    assert memory[2] <= 512 << 20, "beside the scheduler and the client"
    assert memory[3] + memory[4] + memory[5] <= 1536 << 20, "3 CPUs have 1.5 GiB"
    assert "6 ranks on 2 nodes, 4 workers" in done.output


def test_an_unmodified_script_has_its_own_exit_code(place: Place) -> None:
    """`mpirun python -m batchlet` in a job runs an unmodified script once, and its exit code is the job's."""
    code = "from dask.distributed import Client; print(Client().submit(sum, [1, 2]).result()); raise SystemExit(3)"
    done = job(place, "-N1", "-n3", script=f"{open_mpi().mpirun} -n 3 python -m batchlet -c '{code}'")
    assert done.rc == 3, done.output
    assert done.output.splitlines().count("3") == 1, done.output


def test_plan_says_mpi_and_the_memory_of_the_job(place: Place) -> None:
    """`--plan` under mpirun in a job says MPI, the job, and the job's memory with its source."""
    done = job(place, "-N1", "-n4", script=f"{open_mpi().mpirun} -n 4 python -m batchlet --plan")
    assert done.rc == 0, done.output
    assert done.output.startswith("mode mpi: OMPI_COMM_WORLD_RANK=0\nOpen MPI in Slurm job "), done.output
    assert "\n4 ranks on 1 node: scheduler rank 0, client rank 1, worker ranks 2 to 3\n" in done.output
    assert "  memory                 2.00 GiB  SLURM_MEM_PER_CPU x 4 CPUs\n" in done.output
    assert os.linesep + "  worker 3 " in done.output
