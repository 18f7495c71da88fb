"""No launcher: a process of its own, and what it may use inside somebody else's allocation."""

from __future__ import annotations

import os
import re

import pytest

from batchlet.environments import ENVIRONMENTS, select
from batchlet.environments.local import Local
from batchlet.errors import LauncherError
from batchlet.plan import make_plan
from batchlet.resources import HostFacts, node_resources
from batchlet.settings import MODES

from .shapes import GIB, SHAPES, settings_of


def test_without_a_launcher_the_process_is_alone():
    environment, reason = select("auto", {"HOME": "/root"})
    info = environment.process({})
    assert (info.mode, info.rank, info.world_size, info.local_ranks, info.nodes) == ("local", 0, 1, (0,), 1)
    assert reason == "no launcher was found"
    assert info.node == os.uname().nodename.split(".")[0]


def test_local_is_asked_last():
    assert isinstance(ENVIRONMENTS[-1], Local)


def test_every_mode_is_an_environment_and_the_other_way_round():
    assert set(MODES) == {"auto"} | {environment.name for environment in ENVIRONMENTS}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: f"mode {environment.name}")
def test_a_mode_that_is_asked_for_is_not_guessed(environment):
    assert select(environment.name, {}) == (environment, f'mode="{environment.name}"')


def test_two_local_runs_of_one_process_have_different_names_that_are_safe_as_file_names():
    names = {Local().process({}).run_id for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_a_variable_of_slurm_that_is_no_job_is_no_launcher():
    environment, _ = select("auto", {"SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_NTASKS": "4"})
    assert isinstance(environment, Local)


def test_slurm_mode_outside_slurm_names_what_is_missing():
    environment, _ = select("slurm", {})
    with pytest.raises(LauncherError, match="SLURM_STEP_ID") as caught:
        environment.process({})
    assert caught.value.code == 2


def test_a_laptop_is_used_whole():
    info, host = Local().process({}), HostFacts(8, 8, 16 * GIB)
    plan = make_plan(info, node_resources(Local().grant({}), host), settings_of())
    assert sum(worker.threads for worker in plan.workers) == 8
    assert plan.role == "local"


def test_a_cluster_inside_a_batch_script_keeps_to_what_slurm_granted_on_this_node():
    env = SHAPES["sbatch_without_srun"].tasks[0].env
    assert env["SLURM_CPUS_ON_NODE"] == "5"
    assert env["SLURM_MEM_PER_NODE"] == "1024"
    # A large node, of which neither the CPUs nor the memory are fenced off (no task/affinity, no task/cgroup).
    resources = node_resources(Local().grant(env), HostFacts(64, 64, 256 * GIB))
    plan = make_plan(Local().process(env), resources, settings_of())
    assert sum(worker.threads for worker in plan.workers) <= 5
    assert sum(worker.memory for worker in plan.workers) <= GIB
