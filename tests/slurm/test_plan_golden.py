"""`--plan` in every situation, as golden files; and what it promises is what is then started.

To write the files anew: ``BATCHLET_WRITE_GOLDEN=1 python -m pytest tests/slurm/test_plan_golden.py``, then read the changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cluster_slurm import SlurmCluster
from run_helpers import REPOSITORY, BatchJob, Place, Result, json_line

pytestmark = pytest.mark.slurm

GOLDEN = Path(__file__).parent / "golden"
PLAN = "python -m batchlet --plan"
# Under mpirun as root, which containers need; with more ranks than CPUs.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
# What a plan asks for so that little of it depends on the machine.
MODEST = "--workers-per-node=1 --threads-per-worker=1 --memory-per-worker=256MiB"
# The figures that depend on the machine all the same.
OF_THE_HOST = ("cpus", "cpus_per_rank", "memory", "usable_memory", "head_cpus", "head_memory")


@pytest.fixture(autouse=True)
def _limits_hold(cluster: SlurmCluster) -> None:
    if not cluster.memory_enforced:
        pytest.skip("without memory cgroups this Slurm's figures have other sources")


def normalised(text: str, cluster: SlurmCluster, *, host: bool = False) -> str:
    """Replace what differs from machine to machine and from run to run."""
    text = re.sub(rf"\b{cluster.node_prefix}(?=\d\b)", "n", text)
    text = re.sub(rf"slurm_{cluster.node_prefix}(?=\d)", "slurm_n", text)
    text = re.sub(r"/sys/fs/cgroup\S*/job_\d+\S*", "CGROUP", text)
    text = re.sub(r"\bjob (\d+)", "job JOB", text)
    text = re.sub(r"SLURM_JOB_ID=\d+", "SLURM_JOB_ID=JOB", text)
    if host:
        text = re.sub(r"^node \S+$", "node HOST", text, flags=re.M)
        text = re.sub(rf"^  ({'|'.join(OF_THE_HOST)}) +.*$", r"  \1 HOST", text, flags=re.M)
    return in_order(text)


def in_order(text: str) -> str:
    """Each node of a step speaks for itself: bring the nodes into order."""
    parts = re.split(r"^(?=node |asked for$|mode )", text, flags=re.M)
    kinds = {"mode": 0, "node": 1, "asked": 2}
    return "".join(
        sorted(parts, key=lambda part: (kinds.get(part.split(" ")[0], -1), part if part[:4] == "node" else ""))
    )


def assert_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("BATCHLET_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def in_batch(place: Place, *args: str, script: str) -> Result:
    job = BatchJob(place, *args, script=f"#!/bin/sh\n{script}\n").wait(90)
    place.assert_nothing_left()
    return Result(job.rc, job.output, "", 0.0)


# Where --plan is asked for, by the name of the golden file: the command, and whether figures of this machine are in it.
SITUATIONS = {
    "srun": (f"srun -N 2 -n 6 --mem=2G {PLAN} --memory-headroom-frac 0.25", False),
    "srun_a_node_each": (f"srun -N2 --ntasks-per-node=1 -c8 {PLAN}", False),
    "srun_one_rank": (f"srun -n1 -c4 --mem=2G {PLAN}", False),
    "srun_two_ranks": (f"srun -n2 {PLAN}", False),
    "salloc": (f"salloc -N2 -n6 --ntasks-per-node=3 --mem=2G {PLAN}", False),
    "mpirun": (f"mpirun -n 4 {PLAN} {MODEST}", True),
    "local": (f"{PLAN} {MODEST}", True),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_plan_prints_the_source_of_every_figure(place: Place, cluster: SlurmCluster, situation: str) -> None:
    """`--plan` prints this, with the source of every figure, and leaves nothing behind."""
    command, host = SITUATIONS[situation]
    if situation == "mpirun" and shutil.which("mpirun", path=place.environ["PATH"]) is None:
        pytest.skip("there is no mpirun")
    result = place.run(*command.split(), env=OPEN_MPI if situation == "mpirun" else None)
    assert result.rc == 0, str(result)
    assert result.errors == [], str(result)
    assert_golden(situation, normalised(result.stdout, cluster, host=host))


def test_plan_in_a_batch_script_prints_this(place: Place, cluster: SlurmCluster) -> None:
    """`--plan` in a batch script prints this."""
    result = in_batch(place, "-N2", "-n6", "--ntasks-per-node=3", "--mem-per-cpu=512M", script=PLAN)
    assert result.rc == 0, str(result)
    assert_golden("sbatch", normalised(result.stdout, cluster))


INSIDE = """
import sys
from batchlet import BatchletRunner
sys.stdout.write(str(BatchletRunner().plan) + "\\n")
"""


def test_a_script_inside_a_run_can_print_the_plan_of_its_rank(place: Place, cluster: SlurmCluster) -> None:
    """A script that `python -m batchlet` runs can print the plan of its own rank: this."""
    command = ["srun", "-N2", "-n6", "--mem=2G", "python", "-m", "batchlet", place.script(INSIDE)]
    result = place.run(*command, timeout=90)
    assert result.rc == 0, str(result)
    assert_golden("inside", normalised(result.stdout, cluster))


def test_plan_inside_a_run_says_that_it_is_inside(place: Place, cluster: SlurmCluster) -> None:
    """`--plan` asked for inside a run says that this is inside a run, and what runs."""
    script = 'import sys\nfrom batchlet.cli import main\nsys.exit(main(["--plan"]))\n'
    result = place.run("srun", "-N2", "-n6", "--mem=2G", "python", "-m", "batchlet", place.script(script), timeout=90)
    assert result.rc == 0, str(result)
    assert "already inside a Batchlet run" in result.stdout, str(result)
    assert "worker 2 " in result.stdout, str(result)


def test_the_readme_shows_what_its_command_prints(place: Place, cluster: SlurmCluster) -> None:
    """The README shows what its command prints (up to the second node, which it leaves out)."""
    readme = (REPOSITORY / "README.md").read_text()
    section = readme.split("## What would be started?")[1].split("```console\n")[1].split("```")[0]
    command, shown = section.split("\n", 1)
    assert command == f"$ {SITUATIONS['srun'][0]}"
    expected = (GOLDEN / "srun.txt").read_text()
    shown = normalised(shown, cluster)
    skipped = "node n2\n  ...\n"
    assert skipped in shown
    before, after = shown.split(skipped)
    assert expected.startswith(before)
    assert expected.endswith(after)


# What the run has, in the form of --plan --json.
REPORT = """
import json, sys
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner() as runner, Client(runner) as client:
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    found = sorted([str(worker["name"]), worker["nthreads"], worker["memory_limit"]] for worker in known)
    sys.stdout.write("RESULT " + json.dumps({"mode": runner.mode, "workers": found}) + "\\n")
"""


def planned(found: Mapping[str, Any]) -> list[list[object]]:
    workers = [worker for node in found["nodes"] for worker in node["workers"]]
    return sorted([str(worker["name"]), worker["threads"], worker["memory"]] for worker in workers)


PROMISES = {
    "srun": ("srun", "-N2 -n5"),
    "srun on one node": ("srun", "-n3 -c2"),
    "srun with one rank": ("srun", "-n1 -c4"),
    "salloc": ("salloc", "-N2 -n6 --ntasks-per-node=3"),
    "salloc, uneven": ("salloc", "-N2 -n4"),
    "salloc with memory": ("salloc", "-N2 -n6 --ntasks-per-node=3 --mem=2G"),
    "sbatch": ("sbatch", "-N2 -n6 --ntasks-per-node=3"),
    "sbatch, uneven": ("sbatch", "-N2 -n4"),
    "sbatch on one node": ("sbatch", "-N1 -n4"),
    "alone": ("", ""),
}


# Under srun each rank knows its own node only, and the JSON document is rank 0's.
@pytest.mark.parametrize("launch", PROMISES)
def test_the_plan_is_what_is_started(place: Place, launch: str) -> None:
    """The workers that `--plan --json` names are those that run in the same place: names, threads, memory, on all nodes."""
    launcher, args = PROMISES[launch]
    app = place.script(REPORT)
    both = f"{PLAN} --json > {place.base}/plan.json && python {app}"
    if launcher == "srun":
        plan = place.run("srun", *args.split(), *PLAN.split(), "--json")
        (place.base / "plan.json").write_text(plan.stdout)
        result = place.run("srun", *args.split(), "python", app)
    elif launcher == "sbatch":
        result = in_batch(place, *args.split(), script=both)
    else:
        result = place.run(*([launcher] if launcher else []), *args.split(), "sh", "-c", both)
    assert result.rc == 0, str(result)
    ran = json.loads(json_line(result.stdout))
    plan = json.loads((place.base / "plan.json").read_text())
    assert plan["mode"] == ran["mode"]
    assert planned(plan) == ran["workers"]


@pytest.mark.parametrize("prefix", ["srun -n6 --mem=2G", "salloc -N2 -n6 --ntasks-per-node=3 --mem=2G", ""])
def test_plan_as_json_says_the_same(place: Place, cluster: SlurmCluster, prefix: str) -> None:
    """`--plan --json` is one document with the figures, the sources and the workers that `--plan` prints."""
    # Slurm may choose others the second time, where the first job is still being tidied up.
    nodes = [f"--nodelist={','.join(cluster.node_names[: 2 if '-N2' in prefix else 1])}"] if prefix else []
    command = [*prefix.split(), *nodes, *PLAN.split(), "--memory-headroom-frac=0.25"]
    text, found = place.run(*command), json.loads(place.run(*command, "--json").stdout)
    assert f"mode {found['mode']}: " in text.stdout
    assert found["settings"]["memory_headroom_frac"] == {"value": 0.25, "source": "memory_headroom_frac="}
    shown = re.findall(r"^  (\w+) +(\S+(?: [KMGT]?i?B)?)  (\S.*)$", text.stdout.split("\nasked for\n")[0], re.M)
    said = []
    for node in found["nodes"]:
        assert f"node {node['node']}\n" in text.stdout
        said += [(name, figure["value"], figure["source"]) for name, figure in node["figures"].items()]
        for worker in node["workers"]:
            assert re.search(
                rf"^  worker {worker['name']} +{worker['threads']} thread.* rank {worker['rank']}$", text.stdout, re.M
            )
    job = re.compile(r"job_\d+")
    assert [(name, job.sub("", source)) for name, _, source in shown] == [
        (name, job.sub("", source)) for name, _, source in said
    ]
    for (_, printed, _), (_, value, _) in zip(shown, said, strict=True):
        assert bytes_of(printed) == pytest.approx(value, rel=0.01)


def bytes_of(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]


def test_plan_makes_no_step_and_no_file(place: Place) -> None:
    """`--plan` makes no step and no file: the next step of the job is its first, and the directories are empty."""
    script = f"{PLAN} >/dev/null && ls -A . $TMPDIR && srun -n1 sh -c 'echo step $SLURM_STEP_ID'"
    result = place.run("salloc", "-N2", "-n4", "sh", "-c", script)
    assert result.rc == 0, str(result)
    assert [line for line in result.stdout.splitlines() if line] == [".:", f"{place.tmp}:", "step 0"], str(result)


@pytest.mark.parametrize("launcher", ["srun -N2 -n4", "salloc -N2 -n4"])
def test_a_plan_that_does_not_fit_is_refused(place: Place, launcher: str) -> None:
    """What would be refused, `--plan` refuses: exit code 2 and one sentence, and no plan."""
    result = place.run(*launcher.split(), *PLAN.split(), "--workers-per-node=99")
    assert (result.rc, result.stdout) == (2, ""), str(result)
    assert len(result.errors) == 1, str(result)
    assert result.errors[0].startswith("batchlet: error: 99 workers need 99 threads on node "), str(result)


def test_plan_refuses_a_launch_without_workers_as_the_run_does(place: Place) -> None:
    """A launch in which nobody may host workers is refused by `--plan` as by the run."""
    result = place.run("srun", "-n2", *PLAN.split(), "--colocate=false")
    assert result.rc == 2, str(result)
    assert len([line for line in result.errors if line.startswith("batchlet: error: ")]) == 1, str(result)


def test_golden_files_are_all_used() -> None:
    """No golden file is left over from a situation that is gone."""
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {*SITUATIONS, "sbatch", "inside"}
