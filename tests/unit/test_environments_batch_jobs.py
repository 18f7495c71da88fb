"""A process in a job of another batch system than Slurm takes what the job was granted on its node, not the host."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from batchlet.environments import detected
from batchlet.environments.batch_jobs import job_grant
from batchlet.environments.local import Local
from batchlet.environments.mpi import Mpi
from batchlet.plan import make_plan
from batchlet.resources import HostFacts, node_resources

from .shapes import GIB, settings_of

HERE = os.uname().nodename.split(".")[0]
GRIDENGINE = {"SGE_TASK_ID": "undefined", "JOB_ID": "1", "NSLOTS": "2", "NHOSTS": "1", "PE": "smp", "QUEUE": "all.q"}


def granted(environ: dict[str, str]) -> tuple[int, str] | None:
    cpus = job_grant(environ).cpus
    return cpus and (cpus.value, cpus.source)


def test_a_script_in_a_job_of_gridengine_is_local_and_keeps_to_its_slots():
    environment = detected(GRIDENGINE)
    assert isinstance(environment, Local)
    resources = node_resources(environment.grant(GRIDENGINE), HostFacts(64, 64, 256 * GIB))
    plan = make_plan(environment.process(GRIDENGINE), resources, settings_of())
    assert sum(worker.threads for worker in plan.workers) == 2
    assert sum(worker.memory for worker in plan.workers) <= 8 * GIB


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"NSLOTS": "2", "NCPUS": "4", "LSB_DJOB_NUMPROC": "3"}, None),
        (GRIDENGINE, (2, "NSLOTS")),
        (GRIDENGINE | {"NSLOTS": "many"}, None),
        (GRIDENGINE | {"NSLOTS": "0"}, None),
        (GRIDENGINE | {"NHOSTS": "2", "PE_HOSTFILE": "/no/such/file"}, None),
        ({"PBS_JOBID": "1.pbs01", "NCPUS": "4"}, (4, "NCPUS")),
        ({"PBS_JOBID": "1.pbs01"}, None),
        (
            {"LSB_JOBID": "1", "LSB_MCPU_HOSTS": f"other 8 {HERE}.site 3", "LSB_DJOB_NUMPROC": "11"},
            (3, "LSB_MCPU_HOSTS"),
        ),
        ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "alias 3", "LSB_DJOB_NUMPROC": "3"}, (3, "LSB_DJOB_NUMPROC")),
        ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "other 8 another 3", "LSB_DJOB_NUMPROC": "11"}, None),
        ({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "odd"}, None),
        ({"OAR_JOB_ID": "1"}, None),
        ({"_CONDOR_MACHINE_AD": "/no/such/file"}, None),
    ],
)
def test_the_grant_is_read_from_the_jobs_variables(environ, expected):
    assert granted(environ) == expected


@pytest.mark.parametrize(
    ("name", "text", "environ", "expected"),
    [
        ("PE_HOSTFILE", "other 8 q@other UNDEFINED\nHERE.site 3 q@x UNDEFINED\nHERE 1 r@x <NULL>\n", GRIDENGINE, 4),
        ("PE_HOSTFILE", "\n \nHERE\nHERE x\n", GRIDENGINE, 2),
        # mpiprocs=8:ompthreads=1
        ("PBS_NODEFILE", "HERE.site\n" * 8 + "other\n" * 8, {"PBS_JOBID": "1", "NCPUS": "1"}, 8),
        # ncpus=8:mpiprocs=2
        ("PBS_NODEFILE", "HERE\n" * 2, {"PBS_JOBID": "1", "NCPUS": "8"}, 8),
        # Torque, nodes=2:ppn=4
        ("PBS_NODEFILE", "HERE\n" * 4 + "other\n" * 4, {"PBS_JOBID": "1", "PBS_NUM_PPN": "4"}, 4),
        ("OAR_NODEFILE", "HERE\n" * 5 + "other\n", {"OAR_JOB_ID": "1"}, 5),
        ("_CONDOR_MACHINE_AD", 'Cpus = 6\nMemory = 2048\nName = "slot1@x"\n', {}, 6),
    ],
)
def test_the_grant_is_read_from_the_jobs_files(tmp_path, name, text, environ, expected):
    (tmp_path / "file").write_text(text.replace("HERE", HERE))
    assert granted({**environ, name: str(tmp_path / "file")})[0] == expected


def test_gridengine_limits_memory_by_the_address_space():
    code = (
        "import os, resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
        "from batchlet.environments.batch_jobs import job_grant; print(job_grant(os.environ).memory)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=GRIDENGINE, capture_output=True, text=True, check=True)
    assert done.stdout == f"Figure(value={3 * GIB}, source='h_vmem (ulimit -v)')\n"


def test_htcondor_grants_memory_too(tmp_path):
    (tmp_path / "ad").write_text("Cpus = 6\nMemory = 2048\n")
    memory = job_grant({"_CONDOR_MACHINE_AD": str(tmp_path / "ad")}).memory
    assert (memory.value, memory.source) == (2 * GIB, "_CONDOR_MACHINE_AD")


def test_ranks_of_mpi_in_such_a_job_share_its_slots():
    ranks = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    grant = Mpi().grant(GRIDENGINE | {"NSLOTS": "1"} | ranks)
    if len(os.sched_getaffinity(0)) > 1:
        assert (grant.cpus.value, grant.cpus.source) == (1, "NSLOTS")
