"""Workers that share this machine: on CPUs of their own where that was asked for, or where a job has several NUMA domains."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from numa_helpers import WHERE, assert_apart, described_as_two_domains, needs_two_cpus
from run_helpers import Place, Run, json_line


@needs_two_cpus
def test_unless_asked_for_workers_on_one_domain_or_a_laptop_run_wherever_they_like(python: Run) -> None:
    """The kernel knows better what else runs there."""
    result = python(WHERE, env={"BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "2"}, timeout=150)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert [worker["cpus"] for worker in found["workers"]] == [found["client"]] * 2
    assert found["planned"] == [[], []]


@needs_two_cpus
def test_asked_for_each_worker_runs_on_cpus_of_its_own_also_when_it_was_started_again(python: Run) -> None:
    """With all its threads, in its children, and as the plan says; the script itself is not bound."""
    env = {"BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "2", "BATCHLET_DASK_CLUSTER__BIND": "true"}
    result = python(WHERE, env=env, timeout=150)
    assert result.rc == 0, str(result)
    assert_apart(json.loads(json_line(result.stdout)))


@needs_two_cpus
def test_a_job_with_two_numa_domains_has_its_workers_bound_without_being_asked(place: Place, tmp_path: Path) -> None:
    """On a machine that is described so, in a job of LSF that has all of it; the plan that is printed says the same."""
    within = described_as_two_domains(tmp_path)
    cpus = sorted(os.sched_getaffinity(0))
    env = {
        "LSB_JOBID": "1",
        "LSB_MCPU_HOSTS": f"{socket.gethostname()} {len(cpus)}",
        "BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "2",
    }
    plan = place.run(*within, sys.executable, "-m", "batchlet", "--plan", env=env, timeout=120)
    assert plan.rc == 0, str(plan)
    assert "bound_workers                 2  each to whole cores of one of 2 NUMA domains" in plan.stdout, str(plan)
    result = place.run(*within, sys.executable, place.script(WHERE), env=env, timeout=150)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert_apart(found)
    assert found["planned"] == [cpus[: len(cpus) // 2], cpus[len(cpus) // 2 :]]
