"""What the launchers' variables tell by themselves, and that whoever acts on them early is never mistaken."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from batchlet import launch_variables
from batchlet.environments import select
from batchlet.environments.slurm import SlurmStep
from batchlet.errors import LauncherError
from batchlet.launch_variables import (
    MPI_LAUNCHERS,
    STEP_CLIENT_NODE,
    mpi_launcher,
    reserved_step,
    slurm_worker_rank,
    whole_number,
)
from batchlet.node.attach import may_attach_early
from batchlet.plan import WORKER, role_of

from .shapes import SHAPES, STEPS

# Rank 2 of a step of 4 tasks on one node.
WORKER_RANK = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0,1,2,3",
    "SLURM_STEP_TASKS_PER_NODE": "4",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURMD_NODENAME": "n1",
}


def names_of(row: tuple) -> list[str]:
    """All the variables in a line of the table of launchers."""
    return [name for part in row[1:] for name in ((part,) if isinstance(part, str) else part) if name]


MPI_VARIABLES = sorted({name for row in MPI_LAUNCHERS for name in names_of(row)})
OTHER_VARIABLES = [
    STEP_CLIENT_NODE,
    "SLURM_JOBID",
    "SLURM_STEPID",
    "SLURM_NNODES",
    "SLURM_LOCALID",
    "SLURM_RESTART_COUNT",
    "SLURM_CLUSTER_NAME",
]
VARIABLES = [*WORKER_RANK, *MPI_VARIABLES, *OTHER_VARIABLES]
VALUES = st.one_of(
    st.integers(0, 8).map(str),
    st.sampled_from(
        [
            "",
            " ",
            "2 ",
            "007",
            "-1",
            "+2",
            "2.0",
            "0x2",
            "two",
            "²",
            "٣",
            "4294967040",
            "4294967295",
            "4294967296",
            "9" * 5000,
        ]
    ),
    st.sampled_from(["0,1,2,3", "2,3", "2(x2)", "4(x9999999999)", "0,,1", "²,1", "n1"]),
    st.text(max_size=4),
)
REMOVED = st.none()
CHANGES = st.dictionaries(st.sampled_from(VARIABLES), st.one_of(REMOVED, VALUES), max_size=6)


def changed(changes: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in (WORKER_RANK | changes).items() if value is not None}


@hypothesis_settings(max_examples=1500)
@given(st.one_of(CHANGES.map(changed), st.dictionaries(st.sampled_from(VARIABLES), VALUES)))
@example({"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "PMIX_RANK": "7", "PMIX_SIZE": "16"})
@example(changed({"SLURM_STEP_NUM_TASKS": "2"}))
@example(changed({"SLURM_PROCID": "²"}))
@example(changed({"SLURM_STEP_ID": "4294967295"}))
@example(changed({STEP_CLIENT_NODE: ""}))
@example(changed({"PMI_RANK": "2", "PMI_SIZE": "4", "PMIX_RANK": "3"}))
def test_who_takes_a_seat_early_is_a_worker_rank_of_a_slurm_step_for_the_ordinary_selection_too(environ):
    assume(may_attach_early(environ, {}))
    environment, _ = select("auto", environ)
    assert type(environment) is SlurmStep
    try:
        info = environment.process(environ)
    except LauncherError:
        return
    assert info.rank == slurm_worker_rank(environ)
    assert role_of(info, info.rank) == WORKER


@hypothesis_settings(max_examples=500)
@given(st.dictionaries(st.sampled_from(VARIABLES), VALUES))
def test_no_value_of_a_variable_is_more_than_a_launcher_error(environ):
    environment, _ = select("auto", environ)
    for read in (environment.process, environment.grant, environment.is_first):
        with contextlib.suppress(LauncherError):
            read(environ)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_worker_ranks_of_every_captured_step_are_plain_and_nobody_else_is(shape):
    for task in shape.tasks:
        rank = int(task.env["SLURM_PROCID"]) if shape.name in STEPS else 0
        assert slurm_worker_rank(task.env) == (rank if rank >= 2 else None)


@pytest.mark.parametrize("row", MPI_LAUNCHERS, ids=lambda row: row[0])
def test_a_rank_of_an_mpi_launcher_inside_a_step_is_no_rank_of_the_step(row):
    environ = WORKER_RANK | {row[1]: "7", row[2][0]: "16"}
    assert mpi_launcher(environ) == row[0]
    assert slurm_worker_rank(environ) is None


@pytest.mark.parametrize("of_srun", [{"PMI_RANK": "2", "PMI_SIZE": "4"}, {"PMIX_RANK": "2"}])
def test_what_srun_sets_for_mpi_hides_no_worker_rank(of_srun):
    assert mpi_launcher(WORKER_RANK | of_srun) is None
    assert slurm_worker_rank(WORKER_RANK | of_srun) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), (" 12\n", 12), ("007", 7), ("4294967295", 4294967295)]
    + [(text, None) for text in (None, "", "-1", "+1", "1.0", "²", "1_0", "1" * 11)],
)
def test_a_number_is_digits_and_not_too_many(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("step", "reserved"), [("0", False), ("4294967039", False), ("4294967040", True), ("x", False)]
)
def test_the_steps_of_scripts_and_shells_are_not_steps_of_tasks(step, reserved):
    assert reserved_step(step) is reserved


def test_nothing_is_imported_for_it():
    tree = ast.parse(Path(launch_variables.__file__).read_text())
    at_once = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert at_once == []
    code = "import sys; before = set(sys.modules); exec(open(sys.argv[1]).read()); print(set(sys.modules) - before)"
    shown = subprocess.run(
        [sys.executable, "-c", code, launch_variables.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert shown == "set()\n"


def test_no_other_module_spells_the_variables_of_slurm_or_mpi():
    package = Path(launch_variables.__file__).parent
    ours = Path(launch_variables.__file__)
    known = {
        value for name, value in vars(launch_variables).items() if name.startswith("SLURM") and isinstance(value, str)
    }
    known |= set(MPI_VARIABLES)
    found = {}
    for file in package.rglob("*.py"):
        constants = {
            node.value
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if file != ours and constants & known:
            found[str(file.relative_to(package))] = sorted(constants & known)
    assert found == {}
