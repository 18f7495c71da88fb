"""The time that a job has: its end is known, the script is stopped before, the job starts again if that was asked for."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import slurmd_of
from run_helpers import REPOSITORY, WORKLOADS, BatchJob, Job, Place, Run, environ_of, eventually, json_line

pytestmark = pytest.mark.slurm

ATTEMPTS = WORKLOADS / "attempts.py"
CHECKPOINT = REPOSITORY / "slurm_examples" / "checkpoint.py"
PREFIX = "BATCHLET_DASK_CLUSTER__"

STOPPED = """
import json, time
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    def save():
        print("saved", client.submit(sum, [1, 2]).result(), round(runner.time_left), flush=True)
    print("RESULT", json.dumps([runner.time_left, runner.ends_at.timestamp()]), flush=True)
    runner.before_end(callback=save)
    try:
        client.submit(time.sleep, 100).result()
    finally:
        print("finally", client.submit(sum, [1, 2, 3]).result(), flush=True)
"""


def test_a_run_is_stopped_before_slurm_ends_it(srun: Run) -> None:
    """With `--time=1`: callback, exception and exit code come before Slurm's SIGTERM, with a cluster that works."""
    before = time.time()
    result = srun("-n4", "--time=1", script=STOPPED, env={PREFIX + "STOP_BEFORE": "35s"}, timeout=100)
    assert result.rc == 84, str(result)
    left, end = json.loads(json_line(result.stdout))
    assert 35 < left <= 60, str(result)
    assert before + 55 < end < before + 75, str(result)
    said = [line for line in result.stdout.splitlines() if not line.startswith("RESULT")]
    assert re.fullmatch(r"saved 3 3[345]", said[0]), str(result)
    assert said[1:] == ["finally 6"], str(result)
    texts = ("batchlet: time is up: the run ends at ", "batchlet: ended by TimeIsUpError")
    assert all(sum(line.startswith(text) for line in result.errors) == 1 for text in texts), str(result)
    assert "TIME LIMIT" not in result.stderr, str(result)
    assert "SIGTERM" not in result.stderr, str(result)
    assert result.seconds < 58, str(result)


def test_the_plan_shows_the_end_and_what_is_too_long_is_refused(place: Place) -> None:
    """`--plan` shows the end with its source, and a moment that is over already is refused by plan and run: one sentence."""
    plan = ["srun", "-n2", "--time=3", "python", "-m", "batchlet", "--plan"]
    shown = place.run(*plan)
    assert re.search(
        r"^ends at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, in (2 min \d+|3 min 0) s: scontrol show job \d+$", shown.stdout, re.M
    )
    found = json.loads(place.run(*plan, "--json").stdout)
    assert 150 < found["time_left"] <= 180, found
    assert found["ends_at_source"].startswith("scontrol show job "), found
    for rest in (["--plan"], ["-c", "print('runs')"]):
        command = ["srun", "-n4", "--time=3", "python", "-m", "batchlet", "--stop-before=5min", *rest]
        result = place.run(*command, timeout=60)
        assert (result.rc, result.stdout) == (2, ""), str(result)
        assert len(result.errors) == 1, str(result)
        assert result.errors[0].startswith(
            "batchlet: error: stop_before (5 min 0 s) is more than the time that is left: the run ends in "
        ), str(result)


UNLIMITED = """
from batchlet import BatchletRunner
with BatchletRunner() as runner:
    print(runner.time_left, runner.ends_at, runner.before_end("1h", print), runner.attempt)
"""


def test_a_job_without_a_limit_has_no_end(srun: Run) -> None:
    """Where the limit is UNLIMITED there is no end: nothing is stopped, and who has asked for it is told, once."""
    result = srun("-n4", script=UNLIMITED, env={PREFIX + "STOP_BEFORE": "1min", PREFIX + "REQUEUE": "true"})
    assert (result.rc, result.stdout) == (0, "None None None 1\n"), str(result)
    assert len(result.errors) == 4, str(result)
    assert "stop_before has no effect: this job has no time limit" in result.errors[1], str(result)
    assert "requeue has no effect: job " in result.errors[2], str(result)
    assert "no batch script" in result.errors[2], str(result)


def submitted(place: Place, *args: str, command: str, env: Mapping[str, str]) -> BatchJob:
    script = "#!/bin/sh\n" + "".join(f"export {PREFIX}{name}={value}\n" for name, value in env.items()) + command + "\n"
    return BatchJob(place, "--open-mode=append", *args, script=script)


def wait_until_under_way(place: Place, *jobs: BatchJob) -> None:
    for job in jobs:
        output = place.cwd / f"slurm-{job.id}.out"

        def shown(output: Path = output) -> str:
            return output.read_text() if output.exists() else "no output"

        eventually(lambda shown=shown: "under way" in shown(), 90, lambda job=job, shown=shown: (job._facts(), shown()))


def ended(place: Place, job: BatchJob, seconds: float) -> tuple[Job, int]:
    """Wait for the end; the job, and how many times it was started again."""
    done = job.wait(seconds)
    (place.cwd / f"state-{job.id}.json").unlink(missing_ok=True)
    return done, int(job._facts()["Restarts"])


def undisturbed(steps: int) -> int:
    return sum(number * number for number in range(steps))


def test_three_attempts_give_the_result_of_one(place: Place) -> None:
    """Time up, then a scheduler that is killed: each has the job started again, once, from where it was saved."""
    env = {"TIME_LIMIT": "16", "STOP_BEFORE": "8", "REQUEUE": "true"}
    job = submitted(place, "-n4", command=f"srun python {ATTEMPTS} time scheduler 60", env=env)
    done, again = ended(place, job, 150)
    assert (done.rc, again) == (0, 2), done.output
    lines = done.output.splitlines()
    assert [line.split(" from")[0] for line in lines if line.startswith("attempt")] == [
        "attempt 1", "attempt 2", "attempt 3"
    ], done.output  # fmt: skip
    assert f"RESULT {undisturbed(60)}" in lines, done.output
    assert sum(line.startswith("saved") for line in lines) == 1, done.output
    assert sum(f"job {job.id} goes back into the queue; attempt" in line for line in lines) == 2, done.output
    assert sum("batchlet: error: " in line for line in lines) == 1, done.output
    place.assert_nothing_left()


def test_a_job_that_is_stopped_while_it_starts_starts_again(place: Place) -> None:
    """Its time is up before the cluster is ready: no error that ends the job for good."""
    limit = '$(test -n "$SLURM_RESTART_COUNT" && echo 200 || echo 2)'
    job = submitted(
        place, "-n4", command=f"srun python {ATTEMPTS} late 5", env={"TIME_LIMIT": limit, "REQUEUE": "true"}
    )
    done, again = ended(place, job, 120)
    assert (done.rc, again) == (0, 1), done.output
    assert done.output.count(f"job {job.id} goes back into the queue; attempt 2 of 10 follows") == 1, done.output
    assert "attempt 1" not in done.output, done.output
    assert f"RESULT {undisturbed(5)}" in done.output, done.output
    place.assert_nothing_left()


def test_a_preempted_job_goes_on_where_it_was(place: Place, cluster: SlurmCluster) -> None:
    """A job whose nodes another one gets is saved and started again once, whether Slurm requeues or cancels it."""
    command = f"exec srun --ntasks=4 python {ATTEMPTS} wait 30"
    jobs = [
        submitted(place, "--nodes=2", "--exclusive", f"--partition={name}", command=command, env={"REQUEUE": "true"})
        for name in ("low", "cheap")
    ]
    wait_until_under_way(place, *jobs)
    everything = f"--nodes={len(cluster.node_names)}"
    other = BatchJob(place, everything, "--exclusive", "--partition=high", script="#!/bin/sh\nsleep 2\n")
    for job in jobs:
        done, again = ended(place, job, 150)
        assert (done.rc, again) == (0, 1), done.output
        assert f"RESULT {undisturbed(30)}" in done.output, done.output
        assert done.output.count("saved ") == 1, done.output
    assert other.wait(30).rc == 0
    place.assert_nothing_left()


def test_a_job_that_is_cancelled_does_not_start_again(place: Place) -> None:
    """`scancel` is the end, whatever the script has asked for."""
    job = submitted(place, "-n4", command=f"exec srun python {ATTEMPTS} wait 60", env={"REQUEUE": "true"})
    wait_until_under_way(place, job)
    subprocess.run(["scancel", job.id], env=place.environ, check=True, timeout=20)
    done, again = ended(place, job, 60)
    assert again == 0, done.output
    assert "not requeued: Slurm is ending the job already" in done.output, done.output


def test_a_job_that_may_not_start_again_says_so_and_ends(place: Place) -> None:
    """Where that was done often enough, one sentence says so, and the job ends with 84."""
    settings = {"TIME_LIMIT": "9", "STOP_BEFORE": "5", "REQUEUE": "true", "MAX_ATTEMPTS": "1"}
    done, again = ended(place, submitted(place, "-n4", command=f"srun python {ATTEMPTS} time 60", env=settings), 90)
    assert (done.rc, again) == (84, 0), done.output
    assert done.output.count("batchlet: not requeued: this was attempt 1 of 1 (max_attempts)\n") == 1, done.output
    assert place.run_only("squeue", "--noheader").stdout.split() == []


def test_a_job_that_must_not_be_requeued_is_followed_by_another_one(place: Place) -> None:
    """Of the same script and arguments, with the options of the command line; it goes on where the first one was saved."""
    script = place.cwd / "job.sh"
    settings = {"TIME_LIMIT": "16", "STOP_BEFORE": "8", "REQUEUE": "true", "MAX_ATTEMPTS": "2"}
    script.write_text(
        "#!/bin/bash\n# Its own options are no others:\n#SBATCH --time=7 --export=NONE\n\n"
        + "".join(f"export {PREFIX}{name}={value}\n" for name, value in settings.items())
        + f"export PATH={place.environ['PATH']} TMPDIR={place.tmp} TEST_RUN_MARK={place.mark}\n"
        + f"export SLURM_CONF={place.environ['SLURM_CONF']}\n"
        + f'exec srun --export=ALL python {ATTEMPTS} "$@"\n'
    )
    asked = ("-n4", "-N2", "--no-requeue", "--time=8", "--job-name=chain", "--mem-per-cpu=300M", "--partition=low")
    submitted = place.run_only("sbatch", "--parsable", *asked, str(script), "time", "22")
    first = BatchJob.of(place, submitted.stdout.strip())
    done = first.wait(90)
    facts = first._facts()
    said = f"batchlet: job {first.id} must not be requeued"
    assert done.rc == 84, done.output
    assert done.output.count(f"{said}: where it is stopped, another job that follows it is submitted\n") == 1, (
        done.output
    )
    follows = re.search(rf"^{said}; job (\d+) follows it as attempt 2 of 2$", done.output, re.M)
    assert follows, done.output
    other = BatchJob.of(place, follows[1])
    last = other.wait(90)
    assert last.rc == 0, last.output
    assert "attempt 2 from" in last.output, last.output
    assert f"RESULT {undisturbed(22)}" in last.output, last.output
    for name in ("JobName", "NumNodes", "NumTasks", "TimeLimit", "MinMemoryCPU", "Partition", "WorkDir", "Requeue"):
        assert other._facts()[name] == facts[name], (name, other._facts(), facts)
    (place.cwd / f"state-{first.id}.json").unlink()
    script.unlink()
    place.assert_nothing_left()


@pytest.mark.timeout(400)
def test_the_example_gives_the_result_of_an_undisturbed_run(place: Place) -> None:
    """`slurm_examples/checkpoint.py` prints in three attempts what it prints in one; SIGTERM without scancel is a warning."""
    command = ["python", str(CHECKPOINT), "--samples", "2e8"]
    alone = place.run(*command, timeout=120)
    assert alone.rc == 0, str(alone)
    job = submitted(place, "-n4", command=f"exec srun {' '.join(command)}", env={})
    output = place.cwd / f"slurm-{job.id}.out"
    for attempt in ("attempt 1,", "attempt 2,"):
        eventually(lambda text=attempt: output.exists() and text in output.read_text(), 120, job._facts)
        # As `sbatch --signal=TERM@300` has Slurm do.
        subprocess.run(["scancel", "--signal=TERM", f"{job.id}.0"], env=place.environ, check=True, timeout=20)
    done, again = ended(place, job, 150)
    assert (done.rc, again) == (0, 2), done.output
    assert "attempt 3, without limit, " in done.output, done.output
    assert done.output.count("saved ") == 2, done.output
    result = [line for line in alone.stdout.splitlines() if line.startswith("pi ")]
    assert [line for line in done.output.splitlines() if line.startswith("pi ")] == result, done.output
    place.assert_nothing_left()


@pytest.mark.parametrize("first", ["the run", "slurm"])
def test_a_job_that_loses_a_node_goes_on_elsewhere(place: Place, cluster: SlurmCluster, first: str) -> None:
    """A node that dies has the job started again once, on other nodes, whoever notices first; all workers were there."""
    command = f"exec srun --ntasks=4 python {ATTEMPTS} wait 20"
    job = submitted(place, "--nodes=2", "--ntasks=4", "--exclusive", command=command, env={"REQUEUE": "true"})
    try:
        wait_until_under_way(place, job)
        # The ranks 2 and 3 are there.
        node = place.run_only("scontrol", "show", "hostnames", job._facts()["NodeList"]).stdout.split()[1]

        def declare_down() -> None:
            words = ["update", f"nodename={node}", "state=down", "reason=died"]
            subprocess.run(["scontrol", *words], env=place.environ, check=True, timeout=30)

        slurmd_of(node).kill()
        if first == "slurm":
            declare_down()
        for process in place.processes():
            if environ_of(process).get("SLURMD_NODENAME") == node:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if first == "the run":
            output = place.cwd / f"slurm-{job.id}.out"
            eventually(lambda: "goes back into the queue" in output.read_text(), 60, output.read_text)
            declare_down()
        done, again = ended(place, job, 150)
        assert (done.rc, again) == (0, 1), done.output
        assert "attempt 2 from" in done.output, done.output
        assert f"RESULT {undisturbed(20)}" in done.output, done.output
        assert node not in place.run_only("scontrol", "show", "hostnames", job._facts()["NodeList"]).stdout.split()
    finally:
        # With all its nodes.
        cluster.down()
        cluster.up()
