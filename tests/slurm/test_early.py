"""`batchlet.early`: the client alone goes further than its import, whatever the script then does."""

from __future__ import annotations

import sys

import pytest
from fault_helpers import options
from run_helpers import Place, Run

pytestmark = pytest.mark.slurm

EARLY = """
import os
with open(f"above-{os.environ.get('SLURM_PROCID')}", "w") as file:
    file.write(str(os.getpid()))
from batchlet.early import BatchletRunner
import sys
from dask.distributed import Client

open(f"below-{os.environ.get('SLURM_PROCID')}", "w").close()
"""
USES = """
with BatchletRunner({given}) as runner, Client(runner) as client:
    print(client.submit(sum, [1, 2, 3]).result(), len(client.nthreads()))
"""


def ran(place: Place, where: str) -> list[str]:
    """The ranks that have come as far as that; forgotten afterwards."""
    found = sorted(path.name for path in place.cwd.glob(f"{where}-*"))
    for name in found:
        (place.cwd / name).unlink()
    return [name.removeprefix(f"{where}-") for name in found]


def run_early(
    srun: Run, place: Place, script: str, *, size: tuple[str, ...] = ("-N2", "-n6", "--ntasks-per-node=3"), env=None
):
    """Run, and give the result with the ranks that came above and below the import."""
    (place.cwd / "scratch").mkdir(exist_ok=True)
    before = place.files()
    result = place.run_only("srun", *size, sys.executable, place.script(script), env=env, timeout=60)
    above, below = ran(place, "above"), ran(place, "below")
    place.assert_nothing_left(before, result)
    return result, above, below


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ("", 4),
        ("workers_per_node=3, rendezvous_dir='elsewhere', memory_headroom_frac=0.5", 6),
        ("local_directory='scratch', security=False, worker_options={'resources': {'key': 1}}", 4),
        ("security=__import__('distributed').security.Security.temporary()", 4),
    ],
)
def test_the_client_alone_runs_what_stands_below_the_import_and_all_get_its_options(
    srun: Run, place: Place, given: str, workers: int
) -> None:
    result, above, below = run_early(srun, place, EARLY + USES.format(given=given))
    assert (result.rc, result.stdout) == (0, f"6 {workers}\n"), str(result)
    assert (above, below) == (["0", "1", "2", "3", "4", "5"], ["1"])
    assert len(result.errors) == 2, str(result)


# Rank 0, 1 and 2: whoever has a node for itself has workers; where the heads share one, nobody else is there to fork from.
ALONE, TOGETHER = ("-N3", "-n3"), ("-N2", "-n3", "--ntasks-per-node=2")


@pytest.mark.parametrize(
    ("size", "given", "workers"), [(ALONE, "", 3), (TOGETHER, "", 1), (TOGETHER, "colocate=True", 3)]
)
def test_head_ranks_have_the_workers_that_they_have_in_the_ordinary_way(
    srun: Run, place: Place, size: tuple[str, ...], given: str, workers: int
) -> None:
    quick = "os.environ['BATCHLET_DASK_CLUSTER__STOP_TIMEOUT'] = '3'\n"
    result, _, below = run_early(srun, place, EARLY + quick + USES.format(given=given), size=size)
    assert (result.rc, result.stdout, below) == (0, f"6 {workers}\n", ["1"]), str(result)
    assert len(result.errors) == 2, str(result)


NO_CLUSTER = "batchlet: the script has made no cluster: 6 ranks were there, and end with it"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("", 0, [NO_CLUSTER]),
        ("sys.exit(3)", 3, [NO_CLUSTER]),
        ("raise ValueError('mine')", 1, ["ValueError: mine", NO_CLUSTER]),
        ("os.kill(os.getpid(), 9)", 137, [NO_CLUSTER]),
        ("BatchletRunner(workers=3)", 2, ["batchlet: error: Unknown keyword workers", NO_CLUSTER]),
    ],
)
def test_where_the_script_makes_no_cluster_the_waiting_ranks_end_with_it(
    srun: Run, place: Place, end: str, code: int, said: list[str]
) -> None:
    result, _, below = run_early(srun, place, EARLY + f"import time\ntime.sleep({int(code == 137)})\n{end}")
    assert (result.rc, below) == (code, ["1"]), str(result)
    lines = [line for line in result.errors if line.startswith(("batchlet", "ValueError"))]
    assert len(lines) == len(said), str(result)
    assert all(sum(line.startswith(text) for line in lines) == 1 for text in said), str(result)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (9, 137, "was lost before the script had started its cluster."),
        (15, 143, "SIGTERM ended the run; it was sent to rank 0 on node"),
    ],
)
def test_a_rank_0_that_ends_before_there_is_a_cluster_ends_the_run(
    srun: Run, place: Place, number: int, code: int, said: str
) -> None:
    kills = f"""
import time
time.sleep(1.5)
os.kill(int(open("above-0").read()), {number})
time.sleep(0.5)
"""
    result, _, _ = run_early(srun, place, EARLY + kills + USES.format(given=""))
    assert (result.rc, result.stdout) == (code, ""), str(result)
    assert sum(said in line for line in result.errors) == 1, str(result)


def test_a_local_cluster_leaves_the_waiting_ranks_alone(srun: Run, place: Place) -> None:
    result, _, _ = run_early(srun, place, EARLY + USES.format(given="mode='local'"))
    assert (result.rc, result.stdout) == (0, "6 1\n"), str(result)
    assert any("has made no cluster" in line for line in result.errors), str(result)


@pytest.mark.parametrize("variable", ["share_node=false", "rendezvous=file", "start_timeout=100", "mode=slurm"])
def test_what_has_to_be_known_early_is_done_the_ordinary_way(srun: Run, place: Place, variable: str) -> None:
    name, _, value = variable.partition("=")
    result, _, below = run_early(srun, place, EARLY + USES.format(given=""), env=options(**{name: value}))
    assert (result.rc, result.stdout) == (0, "6 4\n"), str(result)
    assert below == ["0", "1", "2", "3", "4", "5"]


def test_mpi_that_needs_all_ranks_is_refused(srun: Run, place: Place) -> None:
    result, _, _ = run_early(srun, place, EARLY + USES.format(given="rendezvous='mpi'"))
    assert result.rc == 2, str(result)
    assert sum("the others wait at `import batchlet.early`" in line for line in result.errors) == 1, str(result)


def test_an_import_below_dask_is_said_to_be_for_nothing(srun: Run, place: Place) -> None:
    result, _, below = run_early(srun, place, "import distributed\n" + EARLY + USES.format(given=""))
    assert (result.rc, result.stdout, below) == (0, "6 4\n", ["1"]), str(result)
    assert sum("is imported below Dask" in line for line in result.errors) == 1, str(result)


def test_an_import_by_another_module_has_no_effect(srun: Run, place: Place) -> None:
    (place.base / "other_module.py").write_text("from batchlet.early import BatchletRunner\n")
    result, _, below = run_early(srun, place, EARLY.replace("batchlet.early", "other_module") + USES.format(given=""))
    assert (result.rc, result.stdout) == (0, "6 4\n"), str(result)
    assert below == ["0", "1", "2", "3", "4", "5"]
    assert sum("has no effect here: other_module imports it" in line for line in result.errors) == 1, str(result)


def test_under_the_command_line_it_is_the_runner_alone(place: Place) -> None:
    script = place.script(EARLY + USES.format(given=""))
    result = place.run_only("srun", "-n4", sys.executable, "-m", "batchlet", script, timeout=60)
    assert (result.rc, result.stdout) == (0, "6 2\n"), str(result)
    assert (ran(place, "above"), ran(place, "below")) == (["1"], ["1"])


def test_without_a_launcher_it_is_the_runner_alone(place: Place) -> None:
    result = place.run_only(sys.executable, place.script(EARLY + USES.format(given="workers_per_node=1")), timeout=60)
    assert (result.rc, result.stdout) == (0, "6 1\n"), str(result)
    ran(place, "above"), ran(place, "below")


HELP = """
import argparse, sys, time
from batchlet.early import BatchletRunner
time.sleep(1)
print([name for name in ("asyncio", "dask", "multiprocessing") if name in sys.modules])
argparse.ArgumentParser(description="of the script").parse_args()
"""


def test_help_is_printed_once_and_nothing_large_is_imported_for_the_client(place: Place) -> None:
    result = place.run_only("srun", "-n8", sys.executable, place.script(HELP), "--help", timeout=60)
    assert result.rc == 0, str(result)
    assert result.stdout.startswith("[]\n"), str(result)
    assert result.stdout.count("of the script") == 1


SLOW = """
import time
from batchlet{early} import BatchletRunner
import distributed
time.sleep(2.5)
with BatchletRunner() as runner:
    pass
"""


@pytest.mark.parametrize(("early", "said"), [("", 1), (".early", 0)])
def test_the_line_at_the_end_says_what_would_have_saved_time(place: Place, early: str, said: int) -> None:
    result = place.run("srun", "-n4", sys.executable, place.script(SLOW.format(early=early)), timeout=60)
    assert result.rc == 0, str(result)
    lines = [line for line in result.errors if line.startswith("batchlet: done after")]
    assert len(lines) == 1
    assert ("2 ranks ran the first" in lines[0] and "`from batchlet.early import" in lines[0]) == bool(said), str(
        result
    )


CONFIGURED = """
import sys
if sys.argv[1] == "early":
    from batchlet.early import BatchletRunner
else:
    from batchlet import BatchletRunner
import dask
from dask.distributed import Client

dask.config.set({"array.chunk-size": "3 MiB"})


def seen():
    import sys
    import dask
    # Forked from a process that has imported the agent's modules, or started afresh without them.
    return dask.config.get("distributed.worker"), dask.config.get("array"), "batchlet.dask_backend.fork_server" in sys.modules


for _ in range(2):
    with BatchletRunner() as runner, Client(runner) as client:
        print(sorted(map(repr, client.run(seen).values())), flush=True)
"""


def test_workers_are_started_and_configured_alike_whenever_the_agent_has_learned_of_the_script(
    srun: Run, place: Place
) -> None:
    """With the early import, the ordinary one, and in a second block: forked, with the same configuration of Dask."""
    outputs = []
    for how in ("early", "ordinary"):
        result = srun("-N2", "-n5", script=CONFIGURED, argv=[how], timeout=60)
        assert result.rc == 0, str(result)
        outputs += result.stdout.splitlines()
    assert len(outputs) == 4, outputs
    assert len(set(outputs)) == 1, outputs
    assert outputs[0].count("True)") == 3, outputs
    assert outputs[0].count("3 MiB") == 3, outputs
