"""The same script without a launcher: a LocalCluster with the same sizing, and the same manners."""

from __future__ import annotations

import json
import re
import sys
import textwrap

import distributed
import psutil
import pytest
from run_helpers import WORKLOADS, Place, Result, Run, json_line, open_files

PREFIX = "BATCHLET_DASK_CLUSTER__"

START = re.compile(r"batchlet: local: (\d+) workers? x \S+ threads? x .*, dashboard http://localhost:\d+/\S+")
END = re.compile(r"batchlet: done after [\d.]+ s, (\d+) workers?(?:; CPUs .*)?")


def assert_two_lines(result: Result, workers: int) -> None:
    """A clean run says one line at the start and one at the end, and nothing else."""
    assert len(result.errors) == 2, str(result)
    start, end = START.fullmatch(result.errors[0]), END.fullmatch(result.errors[1])
    assert start, str(result)
    assert end, str(result)
    assert start[1] == end[1] == str(workers)


def test_the_script_that_uses_all_of_dask_runs_once_without_a_guard(python: Run) -> None:
    """The script that uses all of Dask runs here too, once, without a main guard."""
    result = python(WORKLOADS / "everything.py", "0", timeout=90)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    mode, role, count = found.pop("runner")
    assert (mode, role) == ("local", "local")
    assert found == {
        "workers": list(range(count)),
        "functions": [1, 2, 3, 4, 5],
        "class": 42,
        "method": 42,
        "as_completed": [1, 2, 3, 4, 5],
        "worker by name": 0,
        "pool, fork": 3,
        "pool, spawn": 4,
        "svd": True,
        "group-by": True,
        "actor": [1, 2, 3],
        "plugin": 42,
        "after restart": [2, count],
    }
    assert result.stdout.count("top ") == 1, str(result)
    assert_two_lines(result, count)


SURROUNDINGS = """
import json, os, signal, sys, tempfile
from batchlet import BatchletRunner
from dask.distributed import Client

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


worker_options = {"resources": {"licence": 1}}
scheduler_options = {"allowed_failures": 7}
before = handlers(), repr(worker_options), repr(scheduler_options)
runner = BatchletRunner(
    memory_headroom_frac=0.25, worker_options=worker_options, scheduler_options=scheduler_options
)
early = repr(runner)
with runner as same:
    client = Client(runner)
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    found = {
        "same": same is runner,
        "mode": runner.mode,
        "role": runner.role,
        "run_id": runner.run_id,
        "n_workers": runner.n_workers,
        "address": runner.scheduler_address == client.scheduler.address,
        "dashboard": runner.dashboard_link,
        "planned": [[worker.name, worker.threads, worker.memory] for worker in runner.plan.workers],
        "workers": [[worker["name"], worker["nthreads"], worker["memory_limit"]] for worker in known],
        "figures": {name: [figure.value, figure.source] for name, figure in runner.plan.figures.items()},
        "plan as text": str(runner.plan),
        "resources": [worker["resources"] for worker in known],
        "allowed failures": client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures),
        "scratch": sorted(name for name in os.listdir(tempfile.gettempdir()) if name.startswith("batchlet-")),
    }
    # The user does not close the client: the runner does.
found["closed"] = client.status
after = handlers(), repr(worker_options), repr(scheduler_options)
found["changed"] = [[str(old), str(new)] for old, new in zip(before, after) if old != new]
sys.stdout.write("RESULT " + json.dumps(found) + "\\n")
"""


def test_the_attributes_are_right_and_what_is_the_users_is_as_before(python: Run, place: Place) -> None:
    """The attributes say what runs, the limits fit the machine, and what is the user's is as it was before."""
    result = python(SURROUNDINGS)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["same"]
    assert (found["mode"], found["role"]) == ("local", "local")
    assert found["run_id"].startswith("local-")
    assert found["address"]
    assert found["dashboard"].startswith("http://localhost:")
    assert found["n_workers"] == len(found["workers"])
    assert sorted(found["workers"]) == sorted(found["planned"])
    assert sum(threads for _, threads, _ in found["workers"]) <= psutil.cpu_count()
    assert sum(memory for *_, memory in found["workers"]) <= 0.75 * psutil.virtual_memory().total
    for name, (value, source) in found["figures"].items():
        assert source, name
        assert name in found["plan as text"]
        assert value >= 0
    assert found["figures"]["memory_headroom_frac"] == [0.25, "memory_headroom_frac="]
    assert found["resources"] == [{"licence": 1}] * found["n_workers"]
    assert found["allowed failures"] == 7
    assert len(found["scratch"]) == 1
    assert found["closed"] == "closed"
    assert found["changed"] == [], "signal handlers or the caller's dicts are not as before"
    assert_two_lines(result, found["n_workers"])
    assert list(place.tmp.iterdir()) == []


def test_a_spawned_pool_of_the_user_works_inside_the_block(python: Run) -> None:
    """A multiprocessing pool of the user's own (spawn) works inside the block, with functions from the main module."""
    script = """
        import multiprocessing
        from batchlet import BatchletRunner
        from dask.distributed import Client


        def double(number):
            return 2 * number


        if __name__ == "__main__":
            with BatchletRunner(workers_per_node=1) as runner, Client(runner) as client:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(pool.map(double, [1, 2, 3]), client.submit(double, 4).result())
        """
    result = python(textwrap.dedent(script))
    assert result.rc == 0, str(result)
    assert result.stdout == "[2, 4, 6] 8\n"
    assert_two_lines(result, 1)


def test_async_with_does_the_same(python: Run) -> None:
    """`async with` does the same in the user's event loop."""
    result = python(WORKLOADS / "asynchronous.py")
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["runner"][:2] == ["local", "local"]
    assert found["functions"] == [1, 2, 3, 4, 5]
    assert_two_lines(result, found["runner"][2])


@pytest.mark.parametrize(
    ("statement", "rc"),
    [("raise ValueError('of the user')", 1), ("sys.exit(3)", 3), ("sys.exit('a last word')", 1), ("sys.exit()", 0)],
)
def test_the_exit_code_is_the_users(python: Run, statement: str, rc: int) -> None:
    """The exit code is what the user's code ended with, and a traceback is the user's own."""
    script = textwrap.dedent(
        f"""
        import sys
        from batchlet import BatchletRunner
        with BatchletRunner(workers_per_node=1):
            {statement}
        """
    )
    result = python(script)
    assert result.rc == rc, str(result)
    assert result.stderr.count("Traceback") == ("raise" in statement), str(result)
    assert "/batchlet/" not in result.stderr, str(result)
    if "word" in statement:
        assert result.errors[-1] == "a last word"
    if "raise" in statement:
        assert "batchlet: ended by ValueError after " in result.stderr
        assert result.errors[-1] == "ValueError: of the user"


def test_a_session_of_single_statements_works(place: Place) -> None:
    """A session in which each statement is typed by itself, as in a notebook."""
    typed = """
        from batchlet import BatchletRunner
        from dask.distributed import Client
        runner = BatchletRunner(workers_per_node=1)
        runner.__enter__()
        client = Client(runner)
        print("sum", client.submit(lambda number: number + 1, 41).result())
        client.close()
        runner.__exit__(None, None, None)
        print("status", runner.status.name)
        """
    result = place.run(sys.executable, "-i", "-q", stdin=textwrap.dedent(typed).lstrip())
    assert result.rc == 0, str(result)
    assert "sum 42" in result.stdout, str(result)
    assert "status closed" in result.stdout, str(result)
    assert "Traceback" not in result.stderr, str(result)


BAD_INPUT: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "headroom": ("memory_headroom_frac=1.5", {}, ["memory_headroom_frac=1.5"]),
    "variable": ("", {f"{PREFIX}MEMORY_HEADROOM_FRAC": "abc"}, [f"{PREFIX}MEMORY_HEADROOM_FRAC='abc'"]),
    "no workers": ("workers_per_node=0", {}, ["workers_per_node=0"]),
    "threads": ("workers_per_node=3, threads_per_worker=1000", {}, ["3 workers x 1000 threads = 3000 threads"]),
    "memory": ("workers_per_node=1, memory_per_worker='100TiB'", {}, ["1 workers x 100 TiB"]),
    "mode": ("mode='banana'", {}, ["mode='banana'"]),
    "slurm": ("mode='slurm'", {}, ["SLURM_"]),
    "unknown variable": ("", {f"{PREFIX}WORKER_PER_NODE": "2"}, [f"{PREFIX}WORKERS_PER_NODE"]),
    "interface": ("interface='ib7'", {}, ["ib7", "does not exist", "lo (127.0.0.1)"]),
    "scratch": ("local_directory='/proc/x'", {}, ["/proc/x", "local_directory"]),
    "worker class": ("worker_class='json.JSONDecoder'", {}, ["json.JSONDecoder"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(python: Run, case: str) -> None:
    """Bad input is one sentence on stderr and exit code 2."""
    options, env, fragments = BAD_INPUT[case]
    script = f"from batchlet import BatchletRunner\nwith BatchletRunner({options}):\n    print('the block runs')\n"
    assert_refused(python(script, env=env), *fragments)


@pytest.mark.parametrize("part", ["worker", "scheduler"])
def test_an_option_that_dask_refuses_is_named(python: Run, part: str) -> None:
    """What Dask itself refuses is said in one sentence too: which option, and where it was given."""
    options = f"workers_per_node=1, {part}_options={{'no_such_option': 1}}"
    result = python(
        f"from batchlet import BatchletRunner\nwith BatchletRunner({options}):\n    print('the block runs')\n"
    )
    assert result.rc == 2, str(result)
    assert result.stdout == "", str(result)
    assert result.stderr.count("batchlet: error: ") == 1, str(result)
    message = result.errors[-1]
    assert message.startswith(f"batchlet: error: Dask's {part} did not start"), str(result)
    if part == "worker" and distributed.__version__.startswith("2024.8."):
        # The Nanny of then raises no more than that.
        assert "Nanny failed to start worker process" in message, str(result)
    else:
        assert "no_such_option" in message, str(result)
    assert f"{part}_options" in message, str(result)


@pytest.mark.parametrize("use", ["Client(runner)", "runner.n_workers"])
def test_a_runner_that_was_not_entered_says_so(python: Run, use: str) -> None:
    """A runner that was not entered says so and does not hang."""
    script = f"""
        from batchlet import BatchletRunner
        from dask.distributed import Client
        runner = BatchletRunner()
        {use}
        print("the block runs")
        """
    assert_refused(python(textwrap.dedent(script)), "`with BatchletRunner() as runner")


def test_with_in_place_of_async_with_says_so(python: Run) -> None:
    """`with` where `async with` is needed says so."""
    script = (
        "from batchlet import BatchletRunner\nwith BatchletRunner(asynchronous=True):\n    print('the block runs')\n"
    )
    assert_refused(python(script), "async with")


def assert_refused(result: Result, *fragments: str) -> None:
    """What every refusal has in common; each of the fragments is in its message."""
    assert result.rc == 2, str(result)
    assert "Traceback" not in result.stderr, str(result)
    assert result.stdout == "", str(result)
    assert len(result.errors) == 1, str(result)
    assert result.errors[0].startswith("batchlet: error: "), str(result)
    for fragment in fragments:
        assert fragment in result.errors[0], f"{fragment!r} is missing: {result.errors[0]}"
    assert result.seconds < 15, str(result)


OPEN_FILES = """
import resource
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner(workers_per_node=2) as runner, Client(runner) as client:
    print(client.submit(sum, [1, 2, 3]).result(), resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1024)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_the_limit_of_open_files_is_raised_for_as_long_as_the_cluster_is_there(place: Place) -> None:
    """Cluster and script are one process here; its soft limit is back at the end."""
    script = place.script(OPEN_FILES)
    result = place.run(*open_files("-S", 60), sys.executable, script)
    assert (result.rc, result.stdout) == (0, "6 True\n60\n"), str(result)
    result = place.run(*open_files("", 60), sys.executable, script)
    assert result.rc == 2, str(result)
    [message] = result.errors
    assert "A local cluster of 2 workers needs about 88 open files, and the hard limit is 60 (`ulimit -Hn`)" in message


EXIT_CODES = """
import multiprocessing, os, threading, time
from multiprocessing.popen_forkserver import Popen
from batchlet import BatchletRunner

context = multiprocessing.get_context("forkserver")
original = Popen.poll


def ends():
    time.sleep(0.05)
    os._exit(7)


if __name__ == "__main__":
    with BatchletRunner(workers_per_node=1):
        codes = set()
        for _ in range(20):
            process = context.Process(target=ends)
            process.start()
            waiting = [threading.Thread(target=process._popen.wait) for _ in range(4)]
            for thread in waiting:
                thread.start()
            for thread in waiting:
                thread.join()
            codes.add(process.exitcode)
    print(codes, Popen.poll is original)
"""


def test_the_exit_code_of_a_process_is_true_whoever_asks_first(python: Run) -> None:
    """Four threads wait for a process, as Dask's do for its workers: none is told 255, "unknown signal"."""
    result = python(EXIT_CODES)
    assert (result.rc, result.stdout) == (0, "{7} True\n"), str(result)
