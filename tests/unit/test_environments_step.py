"""A rank of the step that Batchlet starts itself in an allocation knows all from its environment, as any other rank does."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace

import pytest

from batchlet.environments import Grant, select
from batchlet.environments.local import Local
from batchlet.environments.mpi import Mpi
from batchlet.environments.slurm import SlurmAllocation, SlurmAllocationStep, SlurmStep
from batchlet.launch_variables import STEP_CLIENT_NODE, STEP_PREFIX, slurm_worker_rank
from batchlet.launchers.srun import Srun

from .shapes import SHAPES

MIB = 1 << 20
STEP = SlurmAllocationStep()
SCRIPT, SHELL = (SHAPES[name].tasks[0].env for name in ("sbatch_without_srun", "salloc_without_srun"))


def rank_of_step(client: dict[str, str], rank: int) -> dict[str, str]:
    """The environment of a rank: what srun is given, and what it sets itself for one task on each of two nodes."""
    inside = "SLURMD_NODENAME" in client
    given = Srun().environ(client, client["SLURMD_NODENAME"] if inside else None)
    return given | {
        "SLURM_STEP_ID": "1",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(rank),
        "SLURM_GTIDS": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_CPUS_ON_NODE": ("5", "1")[rank],
        "SLURMD_NODENAME": f"n{rank + 1}",
    }


@pytest.mark.parametrize("client", [SCRIPT, SHELL], ids=["sbatch", "salloc"])
@pytest.mark.parametrize("mode", ["auto", "allocation"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_of_our_own_step_is_found_before_the_step_of_slurm(client, mode, rank):
    environment, reason = select(mode, rank_of_step(client, rank))
    assert environment == select("auto", rank_of_step(client, rank))[0]
    assert isinstance(environment, SlurmAllocationStep)
    assert reason.startswith(f"{STEP_CLIENT_NODE}=")


@pytest.mark.parametrize(("client", "beside"), [(SCRIPT, [1, 0]), (SHELL, [0, 0])], ids=["sbatch", "salloc"])
def test_the_ranks_are_those_that_the_allocation_has_promised_to_plan(client, beside):
    infos = [STEP.process(rank_of_step(client, rank)) for rank in (0, 1)]
    promised = [info for info, _ in SlurmAllocation().nodes(client)]
    for info, plan in zip(infos, promised, strict=True):
        # Only the client's process knows the run by the name that it has given to it, and a node's name before it is asked.
        assert info == replace(plan, run_id=info.run_id, job=info.job, node=info.node)
    assert [info.extra_clients for info in infos] == beside
    assert len({info.run_id for info in infos}) == 1
    assert [info.slots for info in infos] == [5, 1]


@pytest.mark.parametrize("client", [SCRIPT, SHELL], ids=["sbatch", "salloc"])
def test_each_node_has_the_cpus_of_the_step_and_the_memory_of_the_job(client):
    grants = [STEP.grant(rank_of_step(client, rank)) for rank in (0, 1)]
    assert [grant.cpus.value for grant in grants] == [5, 1]
    assert [(grant.memory.value, grant.memory.source) for grant in grants] == [(1024 * MIB, "SLURM_MEM_PER_NODE")] * 2


def test_memory_by_cpu_is_counted_with_the_cpus_of_the_node():
    client = {**SCRIPT, "SLURM_MEM_PER_CPU": "100"}
    del client["SLURM_MEM_PER_NODE"]
    assert [STEP.grant(rank_of_step(client, rank)).memory.value for rank in (0, 1)] == [500 * MIB, 100 * MIB]


def test_srun_is_given_nothing_that_it_would_take_as_an_option_for_the_step():
    client = {**SCRIPT, "SLURM_EXPORT_ENV": "NONE", "SLURM_CPU_BIND": "cores", "MINE": "1"}
    given = Srun().environ(client, None)
    assert given["MINE"] == "1"
    assert given["SLURM_JOB_ID"] == client["SLURM_JOB_ID"]
    assert not given.keys() & {
        "SLURM_MEM_PER_NODE",
        "SLURM_NTASKS",
        "SLURM_TASKS_PER_NODE",
        "SLURM_EXPORT_ENV",
        "SLURM_CPU_BIND",
    }
    assert given[STEP_CLIENT_NODE] == ""


def test_the_users_code_sees_nothing_of_what_was_meant_for_the_rank():
    rank = rank_of_step(SCRIPT, 1)
    assert any(name.startswith(STEP_PREFIX) for name in rank)
    environ = STEP.task_environ(rank)
    assert [name for name in environ if name.startswith(STEP_PREFIX)] == []
    assert environ["SLURM_MEM_PER_NODE"] == SCRIPT["SLURM_MEM_PER_NODE"]
    assert type(select("auto", environ)[0]) is SlurmStep
    assert SlurmStep().task_environ(environ) == environ


def test_a_rank_of_our_own_step_takes_no_seat_early():
    step = {"SLURM_STEP_ID": "1", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}
    assert slurm_worker_rank(step) == 2
    assert slurm_worker_rank(step | {STEP_CLIENT_NODE: "n1"}) is None


def test_only_a_process_in_an_allocation_starts_ranks_itself():
    assert isinstance(SlurmAllocation().launcher(SCRIPT), Srun)
    assert [env.launcher(SCRIPT) for env in (Mpi(), SlurmStep(), STEP, Local())] == [None] * 4


def test_the_command_line_starts_one_rank_on_each_node_and_says_no_secret():
    command = Srun().command(3, ["python", "-m", "batchlet.node"])
    assert command[0] == "srun"
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1"} <= set(command)
    assert command[-3:] == ["python", "-m", "batchlet.node"]


def test_a_launcher_says_what_to_do_where_it_is_missing_fails_or_is_late(monkeypatch, tmp_path):
    srun = Srun()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("srun") is None
    assert not srun.is_there()
    for words in (srun.missing("Slurm job 7"), srun.failed("Slurm job 7", 1)):
        assert "srun" in words
        assert "Slurm job 7" in words
        assert 'mode="local" (BATCHLET_DASK_CLUSTER__MODE=local)' in words
    assert "did not start within 120 s (start_timeout)" in srun.late("Slurm job 7", 120.0)
    assert srun.ends == (signal.SIGTERM, signal.SIGKILL)


IN_JOB = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login1", "SLURM_TMPDIR": "/local/7", "TMPDIR": "/tmp/me"}


@pytest.mark.parametrize(
    "environment", [Mpi(), SlurmStep(), STEP, SlurmAllocation(), Local()], ids=lambda one: type(one).__name__
)
def test_whoever_started_a_process_inside_a_slurm_job_knows_its_surroundings(environment):
    assert environment.output_is_shared(IN_JOB)
    assert environment.login_host(IN_JOB) == "login1"
    assert environment.scratch_directories(IN_JOB) == ("/local/7", "/tmp/me")
    assert "SLURM_STEP_GPUS" in environment.gpu_variables
    assert "CUDA_VISIBLE_DEVICES" in environment.gpu_variables


def test_outside_slurm_nothing_is_made_up():
    local = Local()
    assert not local.output_is_shared({})
    assert local.login_host({}) is None
    assert local.scratch_directories({"SLURM_TMPDIR": "", "TMPDIR": ""}) == ()
    assert local.grant({}) == Grant()


@pytest.mark.parametrize(
    ("variables", "bound"),
    [
        ({}, False),
        ({"SLURM_GPUS_PER_TASK": "1"}, True),
        ({"SLURM_TRES_PER_TASK": "cpu=2"}, False),
        ({"SLURM_TRES_PER_TASK": "cpu=2,gres/gpu:1"}, True),
        ({"SLURM_TRES_PER_TASK": "gres:GPU=1"}, True),
    ],
)
def test_gpus_that_slurm_binds_to_a_task_are_told_by_its_variables(variables, bound):
    assert SlurmStep().binds_gpus_by_task(variables) is bound
