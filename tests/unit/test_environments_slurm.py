"""A Slurm step's environment, as real jobs see it and as no job should."""

from __future__ import annotations

import re
import stat

import pytest

from batchlet.environments import Grant, select
from batchlet.environments.slurm import SlurmAllocation, SlurmStep
from batchlet.errors import LauncherError

from .shapes import SHAPES, STEPS

SLURM = SlurmStep()
MIB = 1 << 20

# A step of 5 tasks on 2 nodes, seen by rank 3, the first one on the second node.
GOOD = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_GTIDS": "3,4",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
    "SLURM_CPUS_ON_NODE": "2",
    "SLURMD_NODENAME": "n2",
}


def changed(**variables: str | None) -> dict[str, str]:
    """GOOD with some variables set to other values, or removed."""
    return {name: value for name, value in (GOOD | variables).items() if value is not None}


def refusal(environ, read=SLURM.process) -> str:
    with pytest.raises(LauncherError) as caught:
        read(environ)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_the_captured_jobs_are_there():
    assert len(STEPS) >= 25
    assert len(SHAPES) >= len(STEPS) + 2


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_every_task_of_a_real_step_knows_its_rank_and_they_agree_on_the_rest(shape):
    infos = [SLURM.process(task.env) for task in shape.tasks]
    assert [info.rank for info in infos] == list(range(len(infos)))
    assert {info.world_size for info in infos} == {len(infos)}
    assert len({info.run_id for info in infos}) == 1
    assert {info.nodes for info in infos} == {len({info.node for info in infos})}
    for info in infos:
        assert info.local_ranks == tuple(other.rank for other in infos if other.node == info.node)


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_a_real_step_is_recognised_and_says_by_what(shape):
    environment, reason = select("auto", shape.tasks[0].env)
    assert (environment.name, reason) == ("slurm", f"SLURM_STEP_ID={shape.tasks[0].env['SLURM_STEP_ID']}")


@pytest.mark.parametrize(
    "shape", [shape for name, shape in STEPS.items() if "cyclic" not in name and name != "plane"], ids=lambda s: s.name
)
def test_the_ranks_of_a_node_are_the_same_without_slurm_gtids_if_the_tasks_are_in_blocks(shape):
    for task in shape.tasks:
        without = {name: value for name, value in task.env.items() if name != "SLURM_GTIDS"}
        assert SLURM.process(without) == SLURM.process(task.env)


def test_a_cyclic_distribution_is_read_from_slurm_gtids():
    infos = [SLURM.process(task.env) for task in STEPS["cyclic"].tasks]
    assert {info.local_ranks for info in infos} == {(0, 2, 3, 4, 5), (1,)}


ALLOCATION = SlurmAllocation()
WITHOUT_SRUN = ["sbatch_without_srun", "salloc_without_srun"]


@pytest.mark.parametrize("name", WITHOUT_SRUN)
def test_a_process_in_an_allocation_without_srun_is_its_client_and_no_rank(name):
    env = SHAPES[name].tasks[0].env
    environment, reason = select("auto", env)
    info = environment.process(env)
    assert environment.name == info.mode == "allocation"
    assert f"SLURM_JOB_ID={env['SLURM_JOB_ID']}" in reason
    assert info.world_size == 2
    assert info.rank == info.client_rank
    assert info.rank not in info.local_ranks


def test_a_batch_script_runs_on_the_first_node_and_salloc_s_shell_on_none():
    script, shell = (ALLOCATION.process(SHAPES[name].tasks[0].env) for name in WITHOUT_SRUN)
    assert (script.node, script.nodes, script.extra_clients, script.slots) == ("n1", 2, 1, 5)
    assert (shell.nodes, shell.extra_clients) == (3, 0)
    assert ALLOCATION.grant(SHAPES["sbatch_without_srun"].tasks[0].env).cpus.value == 5
    assert ALLOCATION.grant(SHAPES["salloc_without_srun"].tasks[0].env) == Grant()


@pytest.mark.parametrize("name", WITHOUT_SRUN)
def test_an_allocation_knows_the_cpus_memory_and_tasks_of_each_of_its_nodes(tmp_path, monkeypatch, name):
    install_scontrol(tmp_path, monkeypatch, "echo n1; echo n2")
    nodes = ALLOCATION.nodes(SHAPES[name].tasks[0].env)
    assert [(info.node, info.local_ranks, info.slots, info.client_rank) for info, _ in nodes] == [
        ("n1", (0,), 5, None),
        ("n2", (1,), 1, None),
    ]
    assert [grant.cpus.value for _, grant in nodes] == [5, 1]
    assert {grant.memory.value for _, grant in nodes} == {1024 * MIB}


def test_two_runs_in_one_allocation_have_different_names():
    env = SHAPES["sbatch_without_srun"].tasks[0].env
    names = {ALLOCATION.process(env).run_id for _ in range(9)}
    assert len(names) == 9
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967294"])
def test_the_steps_in_which_slurm_runs_shells_and_batch_scripts_are_no_steps_of_tasks(step):
    environment, _ = select("auto", changed(SLURM_STEP_ID=step))
    assert environment.name == "allocation"


@pytest.mark.parametrize("name", WITHOUT_SRUN)
def test_a_batch_script_may_ask_for_a_cluster_of_its_own(name):
    environment, _ = select("local", SHAPES[name].tasks[0].env)
    assert environment.process(SHAPES[name].tasks[0].env).world_size == 1


def test_a_requeued_job_is_another_run():
    env = dict(STEPS["sbatch_requeued"].tasks[0].env)
    assert env["SLURM_RESTART_COUNT"] == "1"
    again = SLURM.process(env)
    first = SLURM.process({name: value for name, value in env.items() if name != "SLURM_RESTART_COUNT"})
    assert again.run_id != first.run_id
    assert again.job.endswith("restart 1")


def test_runs_of_different_jobs_steps_and_restarts_have_different_names_that_are_safe_as_file_names():
    names = {
        SLURM.process(changed(SLURM_JOB_ID=job, SLURM_STEP_ID=step, SLURM_RESTART_COUNT=restart)).run_id
        for job in ("1", "11")
        for step in ("0", "1", "11")
        for restart in (None, "1", "2")
    }
    assert len(names) == 18
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("mem", None),
        ("bare", None),
        ("mem_zero", None),
        ("sbatch_step_smaller", 1024 * MIB),
        ("sbatch_default_memory", 4 * 512 * MIB),
        ("sbatch_mem_per_cpu", 6 * 200 * MIB),
        ("sbatch_step_exact", 3 * 256 * MIB),
    ],
)
def test_memory_is_read_from_the_variables_that_a_real_job_has(name, memory):
    grant = SLURM.grant(STEPS[name].tasks[0].env)
    assert (grant.memory.value if grant.memory else None) == memory


@pytest.mark.parametrize(
    ("variables", "memory", "source"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2048, "SLURM_MEM_PER_NODE"),
        ({"SLURM_MEM_PER_NODE": "0"}, None, None),
        ({"SLURM_MEM_PER_CPU": "100"}, 200, "SLURM_MEM_PER_CPU x 2 CPUs"),
        ({"SLURM_MEM_PER_CPU": "0"}, None, None),
        ({"SLURM_MEM_PER_GPU": "100", "SLURM_GPUS_ON_NODE": "4"}, 400, "SLURM_MEM_PER_GPU x 4 GPUs"),
        ({"SLURM_MEM_PER_GPU": "100"}, None, None),
        ({}, None, None),
    ],
)
def test_each_memory_variable_has_its_own_meaning(variables, memory, source):
    figure = SLURM.grant(changed(**variables)).memory
    if memory is None:
        assert figure is None
    else:
        assert (figure.value, figure.source) == (memory * MIB, source)


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_the_cpus_of_a_real_step_are_those_of_the_node_not_of_the_task(shape):
    for task in shape.tasks:
        assert SLURM.grant(task.env).cpus.value == int(task.env["SLURM_CPUS_ON_NODE"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SLURM_PROCID", "three"),
        ("SLURM_PROCID", "-1"),
        ("SLURM_PROCID", ""),
        ("SLURM_PROCID", "3\n4"),
        ("SLURM_PROCID", "1.0"),
        ("SLURM_STEP_NUM_TASKS", "0"),
        ("SLURM_STEP_NUM_TASKS", "5(x2)"),
        ("SLURM_JOB_ID", "17_3"),
        ("SLURM_STEP_NUM_NODES", "0"),
        ("SLURM_RESTART_COUNT", "once"),
        ("SLURM_GTIDS", "3,,4"),
        ("SLURM_GTIDS", "3-4"),
        ("SLURM_STEP_ID", "batch"),
        ("SLURM_STEP_ID", ""),
    ],
)
def test_a_malformed_variable_is_named_with_its_value_and_what_was_expected(name, text):
    message = refusal(changed(**{name: text}))
    assert message.startswith(f"{name}={text!r} is malformed: expected ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SLURM_CPUS_ON_NODE", "0"),
        ("SLURM_CPUS_ON_NODE", "2(x2)"),
        ("SLURM_MEM_PER_NODE", "2G"),
        ("SLURM_MEM_PER_CPU", "-1"),
    ],
)
def test_a_malformed_grant_is_named_with_its_value_and_what_was_expected(name, text):
    assert refusal(changed(**{name: text}), SLURM.grant).startswith(f"{name}={text!r} is malformed: expected ")


@pytest.mark.parametrize("text", ["3;2", "3(2)", "x2", "3,", "2(x0)", ""])
def test_malformed_counts_per_node_are_named(text):
    message = refusal(changed(SLURM_GTIDS=None, SLURM_STEP_TASKS_PER_NODE=text))
    assert message.startswith(f"SLURM_STEP_TASKS_PER_NODE={text!r} is malformed: expected ")


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_JOB_ID", "SLURM_CPUS_ON_NODE"])
def test_a_missing_variable_is_named_together_with_what_to_do(name):
    read = SLURM.grant if name == "SLURM_CPUS_ON_NODE" else SLURM.process
    message = refusal(changed(**{name: None}), read)
    assert name in message
    assert "is not set" in message
    assert "srun" in message


def test_without_any_variable_for_the_ranks_of_the_node_both_are_named():
    message = refusal(changed(SLURM_GTIDS=None, SLURM_STEP_TASKS_PER_NODE=None))
    assert "SLURM_GTIDS" in message
    assert "SLURM_STEP_TASKS_PER_NODE" in message


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_PROCID": "5", "SLURM_GTIDS": "3,4,5"}, "SLURM_PROCID=5 cannot be: the step has 5 tasks"),
        ({"SLURM_PROCID": "1"}, r"SLURM_PROCID=1 is not among the ranks of this node, \[3, 4\]"),
        ({"SLURM_GTIDS": None, "SLURM_NODEID": "2"}, "names 2 nodes, but the step has 2 and this one is number 2"),
        ({"SLURM_GTIDS": None, "SLURM_STEP_TASKS_PER_NODE": "5"}, "names 1 nodes, but the step has 2"),
    ],
)
def test_variables_that_contradict_each_other_are_shown(variables, said):
    assert re.search(said, refusal(changed(**variables)))


def test_the_environment_is_only_read():
    before = dict(GOOD)
    SLURM.process(GOOD)
    SLURM.grant(GOOD)
    assert before == GOOD


# `scontrol --detail --oneliner show job`, as it answers on Slurm 22.05.8 for `srun -N2 -n4 -c2 --mem-per-cpu=256M`.
SCONTROL_JOB = (
    "JobId=17 JobName=bash JobState=RUNNING NodeList=n[1-2] BatchHost=n1 NumNodes=2 NumCPUs=8 NumTasks=4 CPUs/Task=2 "
    "TRES=cpu=8,mem=2G,node=2,billing=8 JOB_GRES=(null)   Nodes=n1 CPU_IDs=0-5 Mem={first} GRES=   "
    "Nodes=n2 CPU_IDs=0-1 Mem=512 GRES= MinCPUsNode=2 MinMemoryCPU=256M"
)


def install_scontrol(folder, monkeypatch, body: str) -> None:
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def answer(first: str) -> str:
    job = SCONTROL_JOB.format(first=first)
    return f'case "$*" in *hostnames*) echo "$3" | tr , "\\n";; *) echo "{job}";; esac'


@pytest.mark.parametrize(("first", "mib"), [("1536", 1536), ("1.50G", 1536), ("2G", 2048)])
def test_the_controller_is_asked_for_the_memory_of_every_node(tmp_path, monkeypatch, first, mib):
    install_scontrol(tmp_path, monkeypatch, answer(first))
    told = SLURM.ask(GOOD)
    assert {node: figure.value for node, figure in told.items()} == {"n1": mib * MIB, "n2": 512 * MIB}
    assert told["n1"].source == "scontrol show job 17"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("exit 1", "refuses"),
        ("echo 'slurm_load_jobs error: Invalid job id specified'", "knows no such job"),
        ("", "is silent"),
        (answer("N/A"), "answers in words nobody knows"),
    ],
    ids=lambda text: text[:12],
)
def test_a_controller_that_does_not_help_is_a_source_that_says_nothing(tmp_path, monkeypatch, body, what):
    install_scontrol(tmp_path, monkeypatch, body)
    assert "n1" not in SLURM.ask(GOOD), what


def test_memory_that_slurm_does_not_hand_out_is_no_limit(tmp_path, monkeypatch):
    install_scontrol(tmp_path, monkeypatch, answer("0"))
    assert set(SLURM.ask(GOOD)) == {"n2"}


def test_without_scontrol_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert SLURM.ask(GOOD) == {}
