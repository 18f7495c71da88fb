"""How long a run has, and what Slurm says of its job."""

from __future__ import annotations

import pytest

from batchlet.environments import slurm_job, slurm_successor
from batchlet.environments.allocation_end import AllocationEnd
from batchlet.errors import PlanError, SettingsError
from batchlet.settings import Settings
from batchlet.walltime import check_lead, default_lead, end_of_run, room_for_script

SLURM = AllocationEnd(1000.0, "scontrol show job 7")


@pytest.mark.parametrize(
    ("allocation", "time_limit", "expected"),
    [(None, None, None), (SLURM, None, SLURM), (SLURM, 950.0, SLURM), (None, 10.0, 110.0), (SLURM, 10.0, 110.0)],
)
def test_the_earlier_end_counts(allocation, time_limit, expected):
    found = end_of_run(allocation, time_limit, 100.0)
    assert found == (AllocationEnd(expected, "time_limit") if isinstance(expected, float) else expected)


@pytest.mark.parametrize(("left", "lead"), [(60, 30), (40, 20), (600, 60), (3000, 300), (86400, 300), (10, 5)])
def test_without_a_word_a_run_that_is_requeued_stops_in_time(left, lead):
    assert default_lead(left) == lead


def test_a_moment_that_is_over_is_refused_with_the_end_and_its_source():
    check_lead(60.0, SLURM, 900.0, "stop_before")
    with pytest.raises(
        PlanError, match=r"^stop_before \(2 min 0 s\) is more .* ends in 60.0 s, at .*scontrol show job 7.*--time"
    ):
        check_lead(120.0, SLURM, 940.0, "stop_before")
    with pytest.raises(PlanError, match=r"was to end at .* raise time_limit\.$"):
        check_lead(1.0, AllocationEnd(1.0, "time_limit"), 2.0, "before_end")


@pytest.mark.parametrize(("lead", "room"), [(300, 280), (30, 15), (4, 2), (0, 20)])
def test_the_script_has_most_of_the_time_and_the_cluster_some(lead, room):
    assert room_for_script(lead, 15.0, 20.0) == room


def shown(**changes: str) -> str:
    fields = {"JobState": "RUNNING", "Requeue": "1", "BatchFlag": "1", "PreemptTime": "None"} | changes
    return "JobId=7 " + " ".join(f"{name}={value}" for name, value in fields.items()) + "\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", None),
        ("slurm_load_jobs error: Invalid job id specified", None),
        (shown().replace("JobId=7", "JobId=8"), None),
        (shown(), ("RUNNING", True, True, False)),
        (shown(JobState="COMPLETING", PreemptTime="2026-11-28T12:00:00"), ("COMPLETING", True, True, True)),
        (shown(BatchFlag="0", Requeue="0", PreemptTime="N/A"), ("RUNNING", False, False, False)),
        (shown().replace("JobId=7", "JobId=8") + shown(BatchFlag="2"), ("RUNNING", True, True, False)),
    ],
)
def test_the_job_is_read_from_the_controllers_answer(answer, expected):
    job = slurm_job.read({"SLURM_JOB_ID": "7"}, answer)
    assert (job and (job.state, job.batch, job.requeue, job.preempted)) == expected


@pytest.mark.parametrize(
    ("environ", "attempt"),
    [
        ({}, 1),
        ({"SLURM_RESTART_COUNT": "2"}, 3),
        ({"SLURM_RESTART_COUNT": "x"}, 1),
        ({"SLURM_JOB_ID": "8", "BATCHLET_ATTEMPTS_BEFORE": "2/8"}, 3),
        # Inherited by a job that was submitted from within job 8.
        ({"SLURM_JOB_ID": "9", "BATCHLET_ATTEMPTS_BEFORE": "2/8", "SLURM_RESTART_COUNT": "1"}, 2),
        ({"SLURM_JOB_ID": "8", "BATCHLET_ATTEMPTS_BEFORE": "/8"}, 1),
    ],
)
def test_attempts_are_counted_from_one(environ, attempt):
    assert slurm_job.attempt(environ) == attempt


SHOWN = (
    "JobId=12 JobName=my job UserId=u(1) Account=physics QOS=(null) JobState=RUNNING Reason=None Requeue=0 BatchFlag=1 "
    "TimeLimit=1-00:05:00 Partition=low ReqNodeList=(null) ExcNodeList=n7 NumNodes=2 NumCPUs=16 NumTasks=8 CPUs/Task=2 "
    "ReqB:S:C:T=0:0:*:* NtasksPerN:B:S:C=4:0:*:* MinMemoryCPU=512M MinTmpDiskNode=0 Features=(null) OverSubscribe=NO "
    "TresPerNode=gres:gpu:a100:2 Licenses=(null) Command=/home/u/job.sh --samples 1e9 WorkDir=/home/u "
    "StdErr=/home/u/12.err StdIn=/dev/null StdOut=/home/u/out-12-112.txt Power= "
)


def test_a_successor_is_asked_for_as_its_predecessor_was():
    job = slurm_job.read({"SLURM_JOB_ID": "12"}, SHOWN)
    assert job is not None
    assert not job.requeue
    assert job.facts["Command"].split() == ["/home/u/job.sh", "--samples", "1e9"]
    assert set(slurm_successor.options(job.facts, "12")) == {
        "--job-name=my job", "--account=physics", "--time=1-00:05:00", "--partition=low", "--exclude=n7", "--nodes=2",
        "--ntasks=8", "--cpus-per-task=2", "--ntasks-per-node=4", "--mem-per-cpu=512M", "--exclusive", "--gres=gpu:a100:2",
        "--chdir=/home/u", "--error=/home/u/%j.err", "--input=/dev/null", "--output=/home/u/out-%j-112.txt",
        "--no-requeue", "--open-mode=append", "--dependency=afterany:12",
    }  # fmt: skip


def test_a_successors_script_says_how_many_attempts_there_were():
    script = "#!/bin/bash -l\n#SBATCH --time=1\n\n# a comment\n#SBATCH -n 4\nmodule load x\nsrun python a.py\n"
    first = slurm_successor.with_attempt(script, 1, "12")
    assert first == script.replace(
        "module", "export BATCHLET_ATTEMPTS_BEFORE=1/$SLURM_JOB_ID\nexport BATCHLET_FIRST_JOB=12\nmodule"
    )
    second = slurm_successor.with_attempt(first, 2, "12")
    assert second == first.replace("BEFORE=1", "BEFORE=2")
    for shell in ("#!/bin/sh", "#! /usr/bin/zsh", "#!/usr/bin/env bash", "#!/usr/bin/env -S bash -l"):
        assert slurm_successor.with_attempt(f"{shell}\nsrun a\n", 1, "1") is not None, shell
    for other in ("#!/usr/bin/env python3", "#!/usr/bin/fish", "#!/bin/tcsh", ""):
        assert slurm_successor.with_attempt(f"{other}\nsrun a\n", 1, "1") is None, other


@pytest.mark.parametrize("name", ["time_limit", "stop_before", "requeue", "max_attempts"])
def test_what_is_for_runs_is_refused_where_jobs_are_submitted(name):
    with pytest.raises(SettingsError, match=f"^{name}= is for a run within its job"):
        Settings.resolve({"submit": "slurm", name: 1}, {})
    with pytest.raises(SettingsError, match=f"^BATCHLET_DASK_CLUSTER__{name.upper()} is for a run"):
        Settings.resolve({"submit": "slurm"}, {f"BATCHLET_DASK_CLUSTER__{name.upper()}": "1"})
