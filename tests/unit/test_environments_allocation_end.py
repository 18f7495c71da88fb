"""When the allocation ends is read from the job's variables and from what its batch system answers, and from nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from batchlet.environments.allocation_end import (
    AllocationEnd,
    allocation_end,
    commands_environ,
    find_allocation_end,
    questions,
)

NOON = 1795867200.0  # 2026-11-28T12:00:00 in UTC
SLURM = {"SLURM_JOB_ID": "7"}
GRIDENGINE = {"SGE_TASK_ID": "undefined", "JOB_ID": "15", "QUEUE": "all.q"}
PBS = {"PBS_JOBID": "12[3].pbs01"}
LSF = {"LSB_JOBID": "12", "LSB_JOBINDEX": "0"}


def job(number: int = 7, limit: str = "00:10:00", end: str = "2026-11-28T12:10:00") -> str:
    return (
        f"JobId={number} JobName=x.sh UserId=me(1) RunTime=00:00:00 TimeLimit={limit} TimeMin=N/A SubmitTime="
        f"2026-11-28T11:59:59 StartTime=2026-11-28T12:00:00 EndTime={end} Deadline=N/A Nodes=n1 CPU_IDs=0 Mem=100\n"
    )


def end_of(environ: dict[str, str], answer: str = "", started: float = NOON) -> tuple[float, str] | None:
    end = allocation_end(environ, answer, now=NOON, started=started)
    return end and (end.at - NOON, end.source)


@pytest.mark.parametrize(
    ("environ", "answer", "expected"),
    [
        ({}, job(), None),
        (SLURM, "", None),
        (SLURM, job(), (600, "scontrol show job 7")),
        (SLURM, job(5, end="2026-11-28T12:00:01") + job(), (600, "scontrol show job 7")),
        (SLURM, job(70), None),
        (SLURM, job(limit="UNLIMITED", end="2027-11-28T12:00:00"), None),
        (SLURM, job(limit="365-00:00:00", end="2027-11-28T12:00:00"), None),
        (SLURM, job(limit="1-00:00:00", end="2026-11-29T12:00:00"), (86400, "scontrol show job 7")),
        (SLURM, job(end="Unknown"), None),
        (SLURM, "slurm_load_jobs error: Unable to contact slurm controller", None),
        # The limit may have been changed since the job began.
        (SLURM | {"SLURM_JOB_END_TIME": str(int(NOON) + 60)}, job(), (600, "scontrol show job 7")),
        (SLURM | {"SLURM_JOB_END_TIME": str(int(NOON) + 60)}, "", (60, "SLURM_JOB_END_TIME")),
        (SLURM | {"SLURM_JOB_END_TIME": "soon"}, "", None),
        (
            SLURM | {"SLURM_JOB_START_TIME": str(int(NOON)), "SLURM_JOB_END_TIME": str(int(NOON) + 365 * 86400)},
            "",
            None,
        ),
        # Its own clock is what the controller goes by: a minute fast, a minute slow, and the same.
        (SLURM, job() + "Configuration data as of 2026-11-28T12:01:00\nX = y\n", (540, "scontrol show job 7")),
        (SLURM, job() + "Configuration data as of 2026-11-28T11:59:00\nX = y\n", (660, "scontrol show job 7")),
        (SLURM, job() + "Configuration data as of 2026-11-28T12:00:01\nX = y\n", (600, "scontrol show job 7")),
        (GRIDENGINE, "", None),
        (GRIDENGINE, "hard resource_list:         h_rt=3600,h_vmem=1G\n", (3600, "h_rt (qstat -j)")),
        (GRIDENGINE, "hard_resource_list:         h_vmem=1G,h_rt=1:00:00\n", (3600, "h_rt (qstat -j)")),
        (GRIDENGINE, "soft resource_list:         h_rt=3600\n", None),
        (
            GRIDENGINE,
            "hard resource_list:  h_rt=3600,s_rt=3000\ns_rt    INFINITY\nh_rt   24:00:00\n",
            (3000, "s_rt (qstat -j)"),
        ),
        (GRIDENGINE, "hard resource_list:  h_rt=3600\nh_rt   00:30:00\n", (1800, "h_rt (qconf -sq)")),
        (PBS, "", None),
        (PBS | {"PBS_WALLTIME": "60"}, "", (60, "PBS_WALLTIME")),
        (
            PBS | {"PBS_WALLTIME": "60"},
            "Job Id: 12\n    Resource_List.walltime = 01:00:00\n    stime = Sat Nov 28 11:50:00 2026\n",
            (3000, "walltime (qstat -f)"),
        ),
        (
            PBS,
            "Job Id: 12\n    Resource_List.walltime = 01:00:00\n    start_time = Sat Nov 28 11:30:00 2026\n",
            (1800, "walltime (qstat -f)"),
        ),
        (PBS, "Job Id: 12\n    Resource_List.walltime = 00:01:00\n", (60, "walltime (qstat -f)")),
        (LSF, "", None),
        (LSF, "1:30 L\n", (5400, "bjobs -o time_left")),
        (LSF, "1:30 E\n", None),
        (LSF, "-\n", None),
        ({"OAR_JOB_ID": "1", "OAR_JOB_WALLTIME_SECONDS": "3600"}, "", (3600, "OAR_JOB_WALLTIME_SECONDS")),
        ({"OAR_JOB_ID": "1"}, "", None),
        ({"_CONDOR_MACHINE_AD": "/no/such/file"}, "", None),
    ],
)
def test_the_end_is_read_from_variables_and_answers(environ, answer, expected):
    assert end_of(environ, answer) == expected


def test_where_only_the_length_is_told_it_counts_from_the_jobs_first_process():
    assert end_of(PBS | {"PBS_WALLTIME": "60"}, started=NOON - 50) == (10, "PBS_WALLTIME")
    assert end_of(SLURM, job(), started=NOON - 50) == (600, "scontrol show job 7")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        (SLURM, ("scontrol --all --detail --oneliner show job 7", "scontrol show config")),
        ({"SLURM_JOB_ID": "7;rm"}, ()),
        (GRIDENGINE, ("qstat -j 15", "qconf -sq all.q")),
        (GRIDENGINE | {"JOB_ID": "-u", "QUEUE": "-x"}, ()),
        (PBS, ("qstat -f 12[3].pbs01",)),
        ({"PBS_JOBID": "-x"}, ()),
        (LSF, ("bjobs -noheader -o time_left 12",)),
        (LSF | {"LSB_JOBINDEX": "4"}, ("bjobs -noheader -o time_left 12[4]",)),
    ],
)
def test_a_system_is_asked_about_this_job_alone(environ, expected):
    assert tuple(" ".join(command) for command in questions(environ)) == expected


def test_the_answer_comes_in_utc_and_in_one_form_whatever_the_user_has_set():
    given = {"TZ": "Asia/Tokyo", "SLURM_TIME_FORMAT": "relative", "LC_ALL": "de_DE", "PATH": "/bin", "HOME": "/me"}
    made = commands_environ(given)
    assert made == given | {"TZ": "UTC0", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
    assert given["TZ"] == "Asia/Tokyo"


def command(directory: Path, name: str, text: str) -> dict[str, str]:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return {"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}


def test_the_system_is_asked_and_a_command_that_fails_or_is_not_there_says_nothing(tmp_path):
    assert find_allocation_end(LSF | {"PATH": str(tmp_path)}) is None
    environ = LSF | command(tmp_path, "bjobs", 'echo "0:10 L"')
    end = find_allocation_end(environ)
    assert end is not None
    assert 590 < end.at - time.time() <= 600
    assert find_allocation_end(LSF | command(tmp_path, "bjobs", 'echo "0:10 L"; exit 1')) is None


def test_a_command_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("batchlet.environments.allocation_end.ANSWER_TIMEOUT", 0.5)
    began = time.monotonic()
    environ = SLURM | command(tmp_path, "scontrol", "exec sleep 60") | {"SLURM_JOB_END_TIME": str(int(NOON))}
    assert find_allocation_end(environ) == AllocationEnd(NOON, "SLURM_JOB_END_TIME")
    assert time.monotonic() - began < 10


def test_a_job_without_a_start_began_with_the_first_process_of_its_session():
    end = find_allocation_end({"OAR_JOB_ID": "1", "OAR_JOB_WALLTIME_SECONDS": "100000000"})
    assert end is not None
    started = end.at - 100000000
    assert time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - 1 < started < time.time()
