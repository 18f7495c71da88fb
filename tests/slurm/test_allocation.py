"""A script in an allocation without srun: Batchlet starts one step of its own, and nothing outlives the script."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from run_helpers import REPOSITORY, BatchJob, Place, Result, json_line

pytestmark = pytest.mark.slurm

NODES = """
import json, socket, sys
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    sys.stdout.write("RESULT " + json.dumps({
        "mode": runner.mode,
        "n_workers": runner.n_workers,
        "role": runner.role,
        "nodes": sorted(set(client.run(socket.gethostname).values())),
        "workers": sorted(
            [str(worker["name"]), worker["nthreads"], worker["memory_limit"]]
            for worker in client.scheduler_info(n_workers=-1)["workers"].values()
        ),
    }) + "\\n")
"""

# Prints "left: " and the steps of the job that are still there: none, as soon as there are none, or some after 15 s.
STEPS_LEFT = """\
for _ in $(seq 75); do
    left=$(squeue --noheader --steps --jobs=$SLURM_JOB_ID --format=%i | grep --invert-match '[a-z]')
    [ -z "$left" ] && break
    sleep 0.2
done
echo "left: $left"\
"""

FATE = """
import os, signal, sys, time
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    busy = client.map(time.sleep, [100] * 4, pure=False)
    while not all(client.processing().values()):
        time.sleep(0.05)
    if sys.argv[1] == "client killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "scheduler killed":
        os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)
        client.gather(busy)
    if sys.argv[1] == "exit":
        sys.exit(3)
    if sys.argv[1] == "error":
        raise ValueError("of the user")
"""


def in_batch(place: Place, *args: str, script: str, timeout: float = 90) -> Result:
    """Run the lines of a batch script with sbatch, and check that nothing is left."""
    before = place.files()
    job = BatchJob(place, *args, script=f"#!/bin/sh\n{script}\n").wait(timeout)
    result = Result(job.rc, job.output, job.output, 0.0)
    place.assert_nothing_left(before, result)
    return result


def in_salloc(place: Place, *args: str, script: str, timeout: float = 90, stdin: str | None = None) -> Result:
    """Run the lines of a shell that salloc has given, and check that nothing is left."""
    return place.run("salloc", *args, "sh", "-c", script, timeout=timeout, stdin=stdin)


HOW = pytest.mark.parametrize("how", [in_batch, in_salloc], ids=["sbatch", "salloc"])


def errors(result: Result) -> list[str]:
    return [line for line in result.errors if line.startswith("batchlet: ")]


def names(place: Place, count: int) -> list[str]:
    """Names of the first nodes of the cluster."""
    shown = place.run_only(
        "sinfo", "--partition=main", "--noheader", "--Node", "--format=%N", timeout=10
    ).stdout.split()
    return sorted(set(shown))[:count]


@pytest.mark.parametrize(("how", "nodes"), [(in_batch, 4), (in_salloc, 2)], ids=["sbatch", "salloc"])
def test_python_alone_computes_on_all_nodes_and_leaves_no_step(place: Place, how, nodes: int) -> None:
    """`python app.py` without srun computes on the workers of all nodes, ends with 0, and leaves no step."""
    script = f"python {place.script(NODES)}; code=$?; {STEPS_LEFT}; exit $code"
    result = how(place, f"-N{nodes}", f"-n{2 * nodes}", "--ntasks-per-node=2", script=script)

    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert (found["mode"], found["role"]) == ("allocation", "client"), str(result)
    assert found["nodes"] == names(place, nodes), str(result)
    assert found["n_workers"] == len(found["workers"]) >= nodes
    assert "left: \n" in result.stdout, str(result)
    assert len(errors(result)) == 2, str(result)
    assert errors(result)[0].startswith("batchlet: allocation job "), str(result)
    assert f"{nodes} ranks on {nodes} nodes" in errors(result)[0], str(result)


LOOKS = """
import json, os, sys
from batchlet import BatchletRunner
from dask.distributed import Client

def seen():
    return {name: value for name, value in os.environ.items() if name.startswith(("BATCHLET_STEP_", "MINE", "SLURM_MEM_PER_"))}

with BatchletRunner() as runner, Client(runner) as client:
    found = {"workers": list(client.run(seen).values()), "scheduler": client.run_on_scheduler(seen)}
    sys.stdout.write("RESULT " + json.dumps(found) + "\\n")
"""


def test_what_tasks_see_of_the_environment(place: Place) -> None:
    """Tasks see the script's environment, also after `--export=NONE`, and nothing of what Batchlet tells its own ranks."""
    script = f"MINE=1 SLURM_EXPORT_ENV=NONE python {place.script(LOOKS)}"
    result = in_salloc(place, "-N2", "-n4", "--mem=1G", script=script)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    for seen in [*found["workers"], found["scheduler"]]:
        assert seen == {"MINE": "1", "SLURM_MEM_PER_NODE": "1024"}, str(result)


def test_the_example_flight_delays_is_right_without_srun(place: Place) -> None:
    """The example runs in a batch script without srun, and is right."""
    script = REPOSITORY / "slurm_examples" / "flight_delays.py"
    result = in_batch(place, "-N2", "-n4", script=f"python {script} --check\n{STEPS_LEFT}", timeout=150)
    assert result.rc == 0, str(result)
    assert "check: equal to pandas alone, for all 336,776 flights" in result.stdout, str(result)
    assert len(errors(result)) == 2, str(result)
    assert "left: \n" in result.stdout, str(result)


@HOW
def test_the_workers_of_one_node_are_there_and_not_with_the_script(place: Place, how) -> None:
    """An allocation of one node works too, with its workers there and not where the script happens to run."""
    result = how(place, "-N1", "-n4", script=f"python {place.script(NODES)}")
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["mode"] == "allocation"
    assert found["nodes"] == names(place, 1), str(result)
    assert sum(memory for *_, memory in found["workers"]) <= 2 << 30, "4 CPUs have 2 GiB"
    assert sum(threads for _, threads, _ in found["workers"]) <= 4


ENDS = {
    "client killed, sbatch": (in_batch, "client killed", 137),
    "client killed, salloc": (in_salloc, "client killed", 137),
    "scheduler killed, sbatch": (in_batch, "scheduler killed", 81),
    "scheduler killed, salloc": (in_salloc, "scheduler killed", 81),
    "exit": (in_salloc, "exit", 3),
    "error": (in_salloc, "error", 1),
}


@pytest.mark.parametrize("end", ENDS)
def test_however_the_script_ends_its_exit_code_is_the_truth_and_no_step_is_left(place: Place, end: str) -> None:
    """However the script ends, busy workers or not: its exit code is the truth, and within 15 s no step is left."""
    how, fate, rc = ENDS[end]
    script = f'python {place.script(FATE)} "{fate}"; code=$?; {STEPS_LEFT}; exit $code'
    if fate == "scheduler killed":
        # It was the only task on its node: with it Slurm kills all that would have removed its scratch directory.
        script = f"mkdir $TMPDIR/scratch; export TMPDIR=$TMPDIR/scratch; {script}"
    result = how(place, "-N2", "-n4", "--ntasks-per-node=2", script=script)
    assert result.rc == rc, str(result)
    assert "left: \n" in result.stdout, str(result)
    output = result.stderr
    assert output.count("Traceback") == (fate == "error"), str(result)
    assert ("ValueError: of the user" in output) == (fate == "error"), str(result)
    assert "/batchlet/" not in output, str(result)
    if fate == "scheduler killed":
        assert output.count("batchlet: error: ") == 1, str(result)


def test_what_tasks_print_reaches_the_output_once_and_whole(place: Place) -> None:
    """What tasks print reaches the output of the script, each line once and whole, also without flushing."""
    script = """
        from batchlet import BatchletRunner
        from dask.distributed import Client

        def speak(number):
            print("task", number, "speaks")
            return number

        with BatchletRunner() as runner, Client(runner) as client:
            client.gather(client.map(speak, range(20)))
        """
    script = place.script(textwrap.dedent(script))
    result = in_salloc(place, "-N2", "-n4", script=f"unset PYTHONUNBUFFERED; python {script}")
    assert result.rc == 0, str(result)
    assert sorted(result.stdout.splitlines()) == sorted(f"task {number} speaks" for number in range(20)), str(result)


def test_async_with_works_in_an_allocation(place: Place) -> None:
    """`async with` works in an allocation."""
    workload = REPOSITORY / "tests" / "slurm" / "workloads" / "asynchronous.py"
    result = in_salloc(place, "-N2", "-n4", script=f"python {workload}")
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["functions"] == [1, 2, 3, 4, 5]
    assert found["runner"][:2] == ["allocation", "client"]
    assert len(errors(result)) == 2, str(result)


TYPED = """\
from batchlet import BatchletRunner
from dask.distributed import Client
import socket
runner = BatchletRunner()
runner.__enter__()
client = Client(runner)
print("nodes", len(set(client.run(socket.gethostname).values())))
print("sum", client.submit(lambda number: number + 1, 41).result())
"""
LEFT = 'runner.__exit__(None, None, None)\nprint("status", runner.status.name)\n'


@pytest.mark.parametrize(
    ("interactive", "leaves"), [(True, False), (False, True)], ids=["typed, left open", "piped, left"]
)
def test_the_cluster_of_a_session_is_gone_with_the_session(place: Place, interactive: bool, leaves: bool) -> None:
    """In a session the cluster is there from statement to statement, and gone with the session even if not left."""
    command = "python -i -q" if interactive else "python"
    script = f"{command}; code=$?; {STEPS_LEFT}; exit $code"
    result = in_salloc(place, "-N2", "-n4", script=script, stdin=TYPED + (LEFT if leaves else ""))
    assert result.rc == 0, str(result)
    assert "nodes 2\n" in result.stdout, str(result)
    assert "sum 42\n" in result.stdout, str(result)
    assert ("status closed\n" in result.stdout) is leaves, str(result)
    assert "left: \n" in result.stdout, str(result)
    assert "Traceback" not in result.stderr, str(result)


def assert_said_once(result: Result, *fragments: str, rc: int = 2) -> None:
    """One sentence and its exit code."""
    assert result.rc == rc, str(result)
    assert "Traceback" not in result.stderr, str(result)
    found = [line for line in result.errors if line.startswith("batchlet: error: ")]
    assert len(found) == 1, str(result)
    for fragment in fragments:
        assert fragment in found[0], f"{fragment!r} is missing: {found[0]}"


def test_a_missing_srun_is_one_sentence(place: Place) -> None:
    """Where srun is not on the PATH, one sentence says so, and what can be done."""
    path = Path(sys.executable).parent
    assert shutil.which("srun", path=str(path)) is None
    script = f"PATH={path} {sys.executable} {place.script(NODES)}"
    result = in_salloc(place, "-N2", "-n4", script=script)
    assert_said_once(result, "srun is not on the PATH", 'mode="local"')
    assert "RESULT" not in result.stdout


def test_an_allocation_that_is_over_is_said(place: Place) -> None:
    """In a shell whose allocation has ended, srun's own message and one sentence say that no step can be started."""
    variables = place.run("salloc", "-N2", "-n4", "env", timeout=20).stdout.splitlines()
    stale = dict(line.split("=", 1) for line in variables if line.startswith("SLURM_"))
    result = place.run("python", place.script(NODES), env=stale)
    assert_said_once(result, "srun could not start the cluster's step")
    assert "srun: error: " in result.stderr, str(result)


def test_mistakes_are_said_once(place: Place) -> None:
    """What is refused is said, once, also here: a use without `with`, a script that is not there, too many workers."""
    used = place.script("from batchlet import BatchletRunner\nBatchletRunner().n_workers\n")
    result = in_salloc(place, "-N2", "-n4", script=f"python {used}")
    assert_said_once(result, "has not been started")
    result = in_salloc(place, "-N2", "-n4", script="python -m batchlet no_such_script.py")
    assert_said_once(result, "There is no script 'no_such_script.py'")


def test_more_workers_than_cpus_are_refused_in_one_sentence(place: Place) -> None:
    """More workers than CPUs are refused in the same one sentence as under srun, without any insides."""
    env = "BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE=50"
    result = in_salloc(place, "-N2", "-n4", script=f"{env} python {place.script(NODES)}")
    assert_said_once(result, "50 workers need 50 threads")
    others = [line for line in result.errors if not line.startswith("batchlet: ")]
    assert others == [], str(result)


def test_an_unmodified_script_finds_the_cluster_on_all_nodes(place: Place) -> None:
    """`python -m batchlet` works here too: `Client()` finds the cluster on all nodes."""
    script = """
        import socket
        from dask.distributed import Client
        client = Client()
        print("nodes", len(set(client.run(socket.gethostname).values())))
        """
    result = in_salloc(place, "-N2", "-n4", script=f"python -m batchlet {place.script(textwrap.dedent(script))}")
    assert result.rc == 0, str(result)
    assert result.stdout == "nodes 2\n", str(result)
