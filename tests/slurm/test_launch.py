"""`python -m batchlet` under srun, and launches with few ranks or with one rank on each node."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
from run_helpers import Place, Result, Run, json_line

pytestmark = pytest.mark.slurm

# Notes on import which rank imports it.
NOTING = """
import os
from pathlib import Path
Path(__file__).with_name(f"imported-{os.environ.get('SLURM_PROCID')}").touch()
"""

WITH_CLIENT = """
import sys
import noting
from dask.distributed import Client
import dask.dataframe
import pandas

print("top of the module")
client = Client()
frame = dask.dataframe.from_pandas(pandas.DataFrame({"number": range(1000)}), npartitions=12)
found = frame.number.sum().compute()
hosts = sorted(set(client.run(lambda: __import__("socket").gethostname()).values()))
sys.stdout.write(f"sum {found} on {len(hosts)} nodes, {len(client.nthreads())} workers\\n")
"""

ONLY_COMPUTE = """
import os
import sys
import noting
import dask.bag

print("top of the module")
ranks = dask.bag.from_sequence(range(60), npartitions=60).map(lambda _: os.environ["SLURM_PROCID"]).compute()
sys.stdout.write(f"sum {sum(range(1000))} on 2 nodes, {len(set(ranks) - {'0', '1'})} workers\\n")
"""


def under_srun(place: Place, *args: str, srun: str = "-n3", timeout: float = 90) -> Result:
    """Run `python -m batchlet` under srun; nothing may be left of it."""
    return place.run("srun", *srun.split(), "python", "-m", "batchlet", *args, timeout=timeout)


def messages(result: Result) -> list[str]:
    return [line for line in result.errors if line.startswith("batchlet: ")]


@pytest.mark.parametrize("script", [WITH_CLIENT, ONLY_COMPUTE], ids=["Client()", "only .compute()"])
def test_an_unmodified_script_runs_once_and_only_the_client_imports_its_modules(place: Place, script: str) -> None:
    """An unmodified script uses the cluster; it runs once, and at the start only the client imports its modules."""
    (place.base / "noting.py").write_text(NOTING)
    result = under_srun(place, place.script(script), srun="-N2 -n8")

    assert result.rc == 0, str(result)
    assert result.stdout == "top of the module\nsum 499500 on 2 nodes, 6 workers\n", str(result)
    assert len(result.errors) == len(messages(result)) == 2, str(result)
    assert [path.name for path in place.base.glob("imported-*")] == ["imported-1"]


USES_MODULE = """
import beside
from dask.distributed import Client
print("double", Client().submit(beside.double, 21).result(timeout=30))
"""


@pytest.mark.parametrize("launcher", ["srun -N2 -n4", "salloc -N2 -n4"])
def test_tasks_can_use_a_module_beside_the_script(place: Place, launcher: str) -> None:
    """Tasks can use a module that lies beside the script, wherever the run was started, as with `srun python script.py`."""
    (place.base / "beside.py").write_text("def double(number):\n    return 2 * number\n")
    result = place.run(*launcher.split(), "python", "-m", "batchlet", place.script(USES_MODULE), timeout=90)
    assert result.stdout == "double 42\n", str(result)
    assert result.rc == 0, str(result)


ENDS = """
import sys
print("arguments", sys.argv[1:], __name__)
how = sys.argv[1]
if how == "error":
    raise ValueError("of the user")
if how == "interrupt":
    raise KeyboardInterrupt
sys.exit(int(how) if how.isdigit() else how)
"""


@pytest.mark.parametrize(("how", "rc"), [("3", 3), ("a last word", 1), ("error", 1), ("interrupt", 130)])
def test_the_exit_code_is_the_scripts_and_its_last_words_are_said_once(place: Place, how: str, rc: int) -> None:
    """The exit code is the script's, and what it says at the end is said once, without any frame of ours."""
    script = place.script(ENDS)
    result = under_srun(place, script, how, "--mine=1")
    assert result.rc == rc, str(result)
    assert result.stdout == f"arguments {[how, '--mine=1']} __main__\n", str(result)
    assert "/batchlet/" not in result.stderr, str(result)
    others = [line for line in result.errors if not line.startswith("batchlet: ")]
    last = {"a last word": "a last word", "error": "ValueError: of the user", "interrupt": "KeyboardInterrupt"}
    if how in last:
        assert others[-1] == last[how], str(result)
    assert result.stderr.count("Traceback") == (how in ("error", "interrupt")), str(result)
    if "Traceback" in result.stderr:
        assert [line for line in others if line.startswith("  File ")] == [
            f'  File "{script}", line {6 if how == "error" else 8}, in <module>'
        ], str(result)


def test_module_and_code_run_on_the_client_alone(place: Place) -> None:
    """`-m module` and `-c code` run as with python, with their arguments, on the client alone."""
    (place.cwd / "mine.py").write_text(
        "import sys\nfrom dask.distributed import Client\n"
        "print(__name__, sys.argv[1:], Client().submit(sum, [1, 2]).result())\n"
    )
    result = under_srun(place, "-m", "mine", "-c", "x")
    assert (result.rc, result.stdout) == (0, "__main__ ['-c', 'x'] 3\n"), str(result)
    code = "import sys; from dask.distributed import Client; print(sys.argv, len(Client().nthreads()))"
    result = under_srun(place, "-c", code, "-m", "y")
    assert (result.rc, result.stdout) == (0, "['-c', '-m', 'y'] 1\n"), str(result)


JOINS = """
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    print(runner.mode, runner.role, runner.n_workers, client.submit(sum, [1, 2]).result())
with BatchletRunner() as again, Client(again) as client:
    print(again.run_id == runner.run_id, client.submit(sum, [1, 2]).result())
print(Client().submit(sum, [1, 2]).result())
"""


def test_a_runner_inside_is_the_same_run(place: Place) -> None:
    """A `BatchletRunner()` inside the script is the same run, which lasts as long as the script; so flags have effect."""
    result = under_srun(place, "--workers-per-node=2", "--threads-per-worker", "1", place.script(JOINS), srun="-n4 -c2")
    assert result.rc == 0, str(result)
    assert result.stdout == "slurm client 2 3\nTrue 3\n3\n", str(result)
    assert len(messages(result)) == 2, str(result)
    assert "2 workers x 1 thread x " in messages(result)[0], str(result)


def test_a_flag_gives_two_workers_on_each_node(place: Place) -> None:
    """`--workers-per-node=2` gives two workers on each node, of which one rank alone would host one."""
    code = "from dask.distributed import Client; print(len(Client().nthreads()))"
    result = under_srun(place, "--workers-per-node=2", "-c", code, srun="-n3 -c2")
    assert (result.rc, result.stdout) == (0, "2\n"), str(result)


REFUSED = {
    "missing script": (["no_such_script.py"], "There is no script 'no_such_script.py'"),
    "unknown flag": (["--no-such-option=1", "app.py"], "--no-such-option"),
    "nothing to run": ([], "name a script, give -m module"),
    "value": (["--workers-per-node=0", "-c", "pass"], "workers_per_node='0'"),
    "value with --plan": (["--plan", "--workers-per-node=0"], "workers_per_node='0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_on_the_command_line_is_said_once_for_all_ranks(place: Place, case: str) -> None:
    """A mistake on the command line is said once for all ranks, with exit code 2, at once."""
    args, fragment = REFUSED[case]
    result = under_srun(place, *args)
    assert result.rc == 2, str(result)
    assert result.stdout == "", str(result)
    assert len([line for line in result.errors if " error: " in line]) == 1, str(result)
    assert result.stderr.count(fragment) == 1, str(result)
    assert result.seconds < 15, str(result)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_information_is_given_once(place: Place, flag: str) -> None:
    """`--help` and `--version` under srun answer once, not once for each rank."""
    result = under_srun(place, flag)
    assert (result.rc, result.errors) == (0, []), str(result)
    assert result.stdout.count("batchlet 0." if flag == "--version" else "usage: ") == 1, str(result)


# Few ranks, or one on each node.

LIMITS = """
import json, os, socket, sys
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner(**json.loads(sys.argv[1])) as runner, Client(runner) as client:
    nodes = client.run(socket.gethostname)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    found = [[nodes[a], w["name"], w["nthreads"], w["memory_limit"]] for a, w in workers.items()]
    # The scheduler shares its process with no worker.
    alone = client.run_on_scheduler(os.getpid) not in client.run(os.getppid).values()
    total = sum(client.gather(client.map(lambda number: number + 1, range(50))))
    sys.stdout.write("RESULT " + json.dumps({"role": runner.role, "workers": found, "sum": total, "alone": alone}) + "\\n")
"""

# srun's options, options of Batchlet; then CPUs and MiB of each node, the names of the workers, their threads at least.
SHAPES = {
    "one rank": ("-n1", {}, 1, 512, [0], 1),
    "one rank with CPUs": ("-n1 -c4", {}, 4, 2048, [0, 1, 2, 3], 4),
    "two ranks": ("-n2", {}, 2, 1024, [0, 1], 2),
    "two ranks on two nodes": ("-N2 -n2 -c4", {}, 4, 2048, [0, 1], 6),
    "a node for each rank": ("-N4 --ntasks-per-node=1 -c8", {}, 8, 4096, [0, 1, 2, 3], 30),
    "exclusive nodes": ("-N4 --ntasks-per-node=1 -c8", {"colocate": False}, 8, 4096, [2, 3], 16),
    "heads work": ("-N2 -n6 --ntasks-per-node=3", {"colocate": True}, 3, 1536, [0, 1, 2, 3, 4, 5], 6),
    "heads do not work": ("-N2 -n6 --ntasks-per-node=3", {"colocate": False}, 3, 1536, [2, 3, 4, 5], 4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_launch_works_within_what_each_node_has(srun: Run, shape: str) -> None:
    """Every shape of launch works, uses the CPUs it may use, and keeps each node's workers within what the node has."""
    args, options, cpus, mib, names, least = SHAPES[shape]
    result = srun(*args.split(), script=LIMITS, argv=[json.dumps(options)], timeout=90)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["sum"] == 1275
    assert sorted(name for _, name, _, _ in found["workers"]) == names, str(result)
    by_node: dict[str, list[tuple[int, int]]] = {}
    for node, _, threads, memory in found["workers"]:
        by_node.setdefault(node, []).append((threads, memory))
    for node, workers in by_node.items():
        assert sum(threads for threads, _ in workers) <= cpus, f"{node}: {result}"
        assert sum(memory for _, memory in workers) <= mib << 20, f"{node}: {result}"
    # Where a head lives, it has a share of the memory.
    heads_node = next(node for node, name, _, _ in found["workers"] if name == min(names))
    if "exclusive" not in shape:
        assert sum(memory for _, memory in by_node[heads_node]) < mib << 20, str(result)
    assert sum(threads for _, _, threads, _ in found["workers"]) >= least, str(result)
    if found["role"] != "local":
        assert found["alone"], "a worker lives in the scheduler's process"
    assert len(messages(result)) == 2, str(result)
    nodes = 4 if "-N4" in args else 2 if "-N2" in args else 1
    if found["role"] != "local":
        assert f" on {nodes} node{'s' if nodes > 1 else ''}, {len(names)} workers" in messages(result)[0], str(result)


def test_a_launch_in_which_nobody_may_work_is_refused(srun: Run) -> None:
    """Two ranks of which none may host workers are refused as what has to be changed: exit code 2, and what to type."""
    result = srun("-n2", script=LIMITS, argv=['{"colocate": false}'])
    assert result.rc == 2, str(result)
    assert len([line for line in messages(result) if "error: " in line]) == 1, str(result)
    assert "colocate" in messages(result)[0], str(result)


def test_workers_find_a_module_beside_a_script_of_another_directory(place: Place) -> None:
    """The workers of co-located head ranks and of a local cluster find a module beside the script, too."""
    folder = Path(place.base / "elsewhere")
    folder.mkdir()
    (folder / "beside.py").write_text("def double(number):\n    return 2 * number\n")
    script = """
        import beside
        from batchlet import BatchletRunner
        from dask.distributed import Client
        with BatchletRunner() as runner, Client(runner) as client:
            print("double", client.run(lambda: __import__("beside").double(21)).values())
        """
    (folder / "app.py").write_text(textwrap.dedent(script))
    for ranks in ("-n1", "-n2"):
        result = place.run("srun", ranks, "python", str(folder / "app.py"), timeout=90)
        assert result.rc == 0, str(result)
        assert f"[{', '.join(['42'] * int(ranks[2]))}]" in result.stdout, str(result)


SIGN_OF_LIFE = """
import asyncio
import time
from batchlet import BatchletRunner

with BatchletRunner() as runner:
    from dask.distributed import Client

    with Client(runner) as client:
        client.submit(abs, -1).result()

        async def ask():
            began = time.monotonic()
            client._heartbeat()
            return time.monotonic() - began

        print("seconds", asyncio.run_coroutine_threadsafe(ask(), client.loop.asyncio_loop).result(20))
"""


def test_a_sign_of_life_of_the_client_does_not_hold_up_its_results(place: Place) -> None:
    """Each five seconds Dask's client asks for the cluster's status, in the event loop that brings all results."""
    result = place.run("srun", "-n4", sys.executable, place.script(SIGN_OF_LIFE))
    assert result.rc == 0, str(result)
    # It took a second, which is what a lost connection is given to be told of.
    assert float(result.stdout.split("seconds")[1]) < 0.5
