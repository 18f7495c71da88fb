"""The main job: one script under srun becomes one Dask cluster, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from run_helpers import REPOSITORY, WORKLOADS, BatchJob, Place, Result, Run, json_line

pytestmark = pytest.mark.slurm

EXAMPLES = REPOSITORY / "slurm_examples"
# The tables of flight_delays.py (five numbers at the end of a line), their headings, and its last two lines.
FLIGHT_LINE = re.compile(r"|(airline|month|origin) .*|.*(\s+-?[\d.]+){5}|336,776 flights in .*|check: .*")
GUARD = 'if __name__ == "__main__":\n'

START = re.compile(
    r"batchlet: slurm job \d+\.\d+: (\d+) ranks on (\d+) nodes?, (\d+) workers? x (\S+) threads? x .*, "
    r"dashboard: cat \.batchlet/slurm-\S+\.dashboard"
)
END = re.compile(r"batchlet: done after [\d.]+ s, (\d+) workers?(?:; CPUs .*)?(?:; \d+ ranks ran .*)?")


def everything(workers: int) -> dict[str, object]:
    """What the workload finds, under srun."""
    return {
        "runner": ["slurm", "client", workers],
        "workers": list(range(2, workers + 2)),
        "functions": [1, 2, 3, 4, 5],
        "class": 42,
        "method": 42,
        "as_completed": [1, 2, 3, 4, 5],
        "worker by name": 2,
        "pool, fork": 3,
        "pool, spawn": 4,
        "svd": True,
        "group-by": True,
        "actor": [1, 2, 3],
        "plugin": 42,
        "after restart": [2, workers],
    }


def assert_two_lines(result: Result, ranks: int, nodes: int) -> None:
    """A clean run says one line at the start and one at the end, and nothing else."""
    assert len(result.errors) == 2, str(result)
    start, end = START.fullmatch(result.errors[0]), END.fullmatch(result.errors[1])
    assert start, str(result)
    assert start.groups()[:3] == (str(ranks), str(nodes), str(ranks - 2))
    assert end, str(result)
    assert end[1] == str(ranks - 2)


def test_the_example_flight_delays_equals_pandas(srun: Run) -> None:
    """The example equals pandas, and at most three lines of output are not its own."""
    result = srun("-N2", "-n12", script=EXAMPLES / "flight_delays.py", argv=["--check"], timeout=90)

    assert result.rc == 0, str(result)
    assert "check: equal to pandas alone, for all 336,776 flights" in result.stdout
    others = [line for line in result.stdout.splitlines() if not FLIGHT_LINE.fullmatch(line)]
    assert len(others) + len(result.errors) <= 3, str(result)


@pytest.mark.parametrize("guard", [False, True], ids=["without a guard", "with a guard"])
def test_all_of_dask_that_the_workload_uses_works(srun: Run, guard: bool) -> None:
    """All of Dask that the workload uses works, with and without a main guard, and the script's top runs once a rank."""
    ranks = 5 if guard else 12
    script = WORKLOADS / "everything.py"
    if guard:
        top, block = script.read_text().split("\nwith BatchletRunner", 1)
        script = f"{top}\n{GUARD}{textwrap.indent(f'with BatchletRunner{block}', '    ')}"
    result = srun("-N2", f"-n{ranks}", script=script, argv=["2"], timeout=90)

    assert result.rc == 0, str(result)
    assert json.loads(json_line(result.stdout)) == everything(ranks - 2)
    tops = sorted(int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("top "))
    assert tops == list(range(ranks)), str(result)
    assert_two_lines(result, ranks, 2)


def test_async_with_does_the_same_and_leaves_nothing(srun: Run, place: Place) -> None:
    """`async with` does the same in the user's event loop; and not even an empty directory is left in TMPDIR."""
    result = srun("-N2", "-n4", script=WORKLOADS / "asynchronous.py")

    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found == {"runner": ["slurm", "client", 2], "functions": [1, 2, 3, 4, 5]}
    assert_two_lines(result, 4, 2)
    assert list(place.tmp.iterdir()) == []


def test_the_exit_code_is_what_the_users_code_ended_with(srun: Run) -> None:
    """The exit code is what the user's code ended with: 1 and only its own traceback for an exception, 3 for exit(3)."""
    raising = "from batchlet import BatchletRunner\nwith BatchletRunner():\n    {}\n"
    result = srun("-n3", script=raising.format("raise ValueError('of the user')"))
    assert result.rc == 1, str(result)
    assert result.stderr.count("Traceback") == 1, str(result)
    assert result.stderr.count("ValueError: of the user") == 1
    assert "/batchlet/" not in result.stderr, str(result)

    result = srun("-n3", script=raising.format("raise SystemExit(3)"))
    assert result.rc == 3, str(result)
    assert "Traceback" not in result.stderr


def test_a_long_temporary_directory_is_no_obstacle(srun: Run, place: Place) -> None:
    """A TMPDIR with a long name, as sites have, is no obstacle (sockets in it have at most 107 characters)."""
    long = place.tmp / ("x" * 80)
    long.mkdir()
    script = """
        from batchlet import BatchletRunner
        from dask.distributed import Client
        with BatchletRunner() as runner, Client(runner) as client:
            print(client.submit(sum, [1, 2, 3]).result())
        """
    result = srun("-n3", script=textwrap.dedent(script), env={"TMPDIR": str(long)})
    assert result.rc == 0, str(result)
    assert result.stdout == "6\n"
    assert_two_lines(result, 3, 1)
    assert list(long.glob("batchlet-*")) == []


def test_the_sbatch_examples_run_side_by_side(place: Place) -> None:
    """The examples run as they are with sbatch, two jobs from the same directory at the same time."""
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, place.cwd)
    before = place.files()
    jobs = [BatchJob(place, "flight_delays.sbatch", "--check"), BatchJob(place, "pi.sbatch", "--samples=1e7")]
    flights, pi = (job.wait(90) for job in jobs)

    assert flights.rc == 0, str(flights)
    assert "check: equal to pandas alone" in flights.output
    assert pi.rc == 0, str(pi)
    assert re.search(r"^pi +3\.14", pi.output, re.M), str(pi)
    assert flights.start < pi.end, "the jobs did not run at the same time"
    assert pi.start < flights.end, "the jobs did not run at the same time"
    place.assert_nothing_left(before)


def test_two_steps_at_the_same_time_are_two_clusters(place: Place) -> None:
    """Two steps of one job, at the same time and in one directory, are two clusters that do not meet."""
    script = place.script(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from batchlet import BatchletRunner
            from dask.distributed import Client

            with BatchletRunner() as runner, Client(runner) as client:
                # Each step waits for the other one, so that they do run at the same time.
                mine, other = (Path(f"../step-{name}") for name in sys.argv[1:3])
                mine.touch()
                deadline = time.monotonic() + 30
                while not other.exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                names = sorted(worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
                sys.stdout.write(f"step {sys.argv[1]}: {other.exists()} {runner.n_workers} {names}\\n")
            """
        )
    )
    step = f"srun --exact -N2 -n4 python {script}"
    command = f"{step} a b & first=$!; {step} b a & second=$!; wait $first && wait $second"
    result = place.run("salloc", "-N2", "-n8", "--ntasks-per-node=4", "sh", "-c", command)

    assert result.rc == 0, str(result)
    assert sorted(result.stdout.splitlines()) == ["step a: True 2 [2, 3]", "step b: True 2 [2, 3]"]
    runs = {re.match(r"batchlet: slurm job (\d+\.\d+):", line)[1] for line in result.errors if "ranks on" in line}
    assert len(runs) == 2, str(result)


def test_two_jobs_of_one_user_do_not_wait_for_each_other(place: Place) -> None:
    """Two jobs in one directory, started together, both end well; the first to end leaves the other's record alone."""
    script = place.script(
        "import sys, time\n"
        "from batchlet import BatchletRunner\n"
        "with BatchletRunner():\n"
        "    time.sleep(float(sys.argv[1]))\n"
    )
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(lambda seconds: place.run_only("srun", "-N2", "-n3", "python", script, seconds), ["0", "1"])
        )
    assert [result.rc for result in results] == [0, 0], results
    place.assert_nothing_left()
