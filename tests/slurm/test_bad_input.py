"""Bad input: one sentence, printed once, exit code 2, at once, and nothing was started."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest
from run_helpers import WORKLOADS, BatchJob, Place, Result, Run

pytestmark = pytest.mark.slurm

PLAIN = WORKLOADS / "plain.py"
PREFIX = "BATCHLET_DASK_CLUSTER__"
SECONDS = 15
# Root may write everywhere. Without these two powers it is a user like others, who can still read its own Python.
WITHOUT_ROOTS_POWERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def assert_refused(result: Result, *fragments: str) -> None:
    """What every refusal has in common; each of the fragments is in its message."""
    assert result.rc == 2, str(result)
    assert "Traceback" not in result.stderr, str(result)
    assert "the block runs" not in result.stdout, str(result)
    assert len(result.errors) == 1, str(result)
    message = result.errors[0]
    assert message.startswith("batchlet: error: "), str(result)
    for fragment in fragments:
        assert fragment in message, f"{fragment!r} is missing: {message}"
    assert result.seconds < SECONDS, str(result)


# Options, variables, and what the message must contain: what was found, and what is possible.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, str], Sequence[str]]] = {
    "headroom of 1.5": ({"memory_headroom_frac": 1.5}, {}, ["memory_headroom_frac=1.5", "below 1"]),
    "headroom of -1": ({"memory_headroom_frac": -1}, {}, ["memory_headroom_frac=-1", "at least 0"]),
    "headroom of abc": ({}, {f"{PREFIX}MEMORY_HEADROOM_FRAC": "abc"}, [f"{PREFIX}MEMORY_HEADROOM_FRAC='abc'"]),
    "no workers": ({"workers_per_node": 0}, {}, ["workers_per_node=0", "at least 1"]),
    "no workers, by variable": ({}, {f"{PREFIX}WORKERS_PER_NODE": "0"}, [f"{PREFIX}WORKERS_PER_NODE='0'"]),
    "too many threads": ({"threads_per_worker": 99}, {}, ["99 threads", "4 CPUs"]),
    "too many threads together": (
        {"workers_per_node": 3, "threads_per_worker": 2},
        {},
        ["3 workers x 2 threads = 6 threads", "4 CPUs", "SLURM_CPUS_ON_NODE"],
    ),
    "too much memory": ({"memory_per_worker": "100GiB"}, {}, ["100 GiB", "2.00 GiB"]),
    "too much memory together": (
        {"workers_per_node": 2, "memory_per_worker": "900MiB"},
        {},
        ["2 workers x 900 MiB", "2.00 GiB"],
    ),
    "too many workers": ({"workers_per_node": 50}, {}, ["50 workers", "4 CPUs"]),
    "unknown mode": ({"mode": "banana"}, {}, ["mode='banana'", '"slurm"', '"local"']),
    "unknown mode, by variable": ({}, {f"{PREFIX}MODE": "banana"}, [f"{PREFIX}MODE='banana'", '"slurm"']),
    "unknown variable": (
        {},
        {f"{PREFIX}MEMORY_HEADROM_FRAC": "0.1"},
        [f"{PREFIX}MEMORY_HEADROM_FRAC", f"{PREFIX}MEMORY_HEADROOM_FRAC"],
    ),
    "unknown keyword": ({"worker_per_node": 2}, {}, ["worker_per_node", "workers_per_node"]),
    "read-only directory": ({}, {f"{PREFIX}RENDEZVOUS_DIR": "/proc/x"}, ["/proc/x", "rendezvous_dir"]),
    "unknown interface": ({"interface": "ib7"}, {}, ["ib7", "does not exist", "eth0 (198.18.", "lo (127.0.0.1)"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_value_that_cannot_be_is_refused_with_what_is_possible(srun: Run, case: str) -> None:
    """A value that cannot be is refused with what was found and what is possible."""
    options, env, fragments = SETTINGS[case]
    result = srun("-N1", "-n4", script=PLAIN, argv=[json.dumps(options)], env=env)
    assert_refused(result, *fragments)


def test_what_does_not_fit_one_of_the_nodes_is_refused_on_all(srun: Run) -> None:
    """What fits one node and not the other is refused on all of them, with the sum of the one that it does not fit."""
    # Four ranks on the first node, of which two work, and one on the second.
    result = srun("-N2", "-n5", "--distribution=plane=4", script=PLAIN, argv=['{"workers_per_node": 2}'])
    assert_refused(result, "2 workers need 2 threads", "1 CPU ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SLURM_PROCID", "abc"), ("SLURM_PROCID", ""), ("SLURM_GTIDS", "0,x"), ("SLURM_STEP_NUM_TASKS", "0")],
)
def test_a_malformed_launcher_variable_is_named(srun: Run, variable: str, value: str) -> None:
    """A variable of Slurm's that is malformed is named, with its value."""
    result = srun("-N2", "-n4", prefix=["env", f"{variable}={value}"], script=PLAIN)
    assert_refused(result, f"{variable}={value!r}")


def test_a_directory_of_somebody_else_is_named_with_the_option_that_helps(srun: Run, place: Place) -> None:
    """A working directory that the user cannot write is named, with the option that helps."""
    os.chown(place.cwd, 65534, 65534)
    result = srun("-N2", "-n4", prefix=WITHOUT_ROOTS_POWERS, script=PLAIN)
    assert_refused(result, str(place.cwd), "Permission denied", "rendezvous_dir")


@pytest.mark.parametrize("part", ["worker", "scheduler"])
def test_an_option_that_dask_refuses_is_named(srun: Run, part: str) -> None:
    """What Dask itself refuses ends the run at once, with one message: which option, and where it was given."""
    result = srun("-n3", script=PLAIN, argv=[json.dumps({f"{part}_options": {"no_such_option": 1}})])
    assert result.rc == 2, str(result)
    assert result.stdout == "", str(result)
    assert result.seconds < SECONDS, str(result)
    messages = [line for line in result.errors if line.startswith("batchlet: error: ")]
    assert len(messages) == 1, str(result)
    assert messages[0].startswith(f"batchlet: error: Dask's {part} did not start"), str(result)
    assert "no_such_option" in messages[0], str(result)
    assert f"{part}_options" in messages[0], str(result)


@pytest.mark.parametrize("use", ["Client(runner)", "runner.n_workers"])
def test_a_runner_that_was_not_entered_says_so(srun: Run, use: str) -> None:
    """A runner that was not entered says so and does not hang."""
    script = textwrap.dedent(
        f"""
        from batchlet import BatchletRunner
        from dask.distributed import Client

        runner = BatchletRunner()
        {use}
        print("the block runs")
        """
    )
    assert_refused(srun("-N2", "-n3", script=script), "`with BatchletRunner() as runner")


def test_a_batch_script_without_srun_does_not_hang(place: Place) -> None:
    """`python app.py` in a batch script, without srun, does not hang: the block runs once."""
    job = BatchJob(place, "-N2", "-n4", script=f"#!/bin/sh\npython {PLAIN}\n").wait(SECONDS)
    assert job.rc == 0, str(job)
    assert job.output.count("the block runs") == 1, str(job)
    place.assert_nothing_left()
