"""A submitted job's script is dask-jobqueue's own, for the same options, but for the worker's command and what is told here."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import dask
import pytest

pytest.importorskip("dask_jobqueue")

from batchlet.errors import SettingsError
from batchlet.job import named
from batchlet.jobs.job import job_class
from batchlet.jobs.options import resolve
from batchlet.jobs.systems import SYSTEMS, BatchSystem

SIZE = {"cores": 4, "memory": "8GiB"}
OF_ALL = {"job_script_prologue": ["module load python", "export A=b"], "shebang": "#!/bin/sh", "job_name": "mine"}
# Options of the system that change its script; all of dask-jobqueue's, but for those that settle what Batchlet settles.
OPTIONS: dict[str, dict[str, Any]] = {
    "slurm": {"queue": "long", "account": "me", "walltime": "01:00:00", "job_extra_directives": ["--constraint=x"],
              "job_directives_skip": ["--mem="], "job_cpu": 4, "job_mem": "8G"},
    "sge": {"queue": "long", "project": "me", "resource_spec": "m=1", "walltime": "01:00:00",
            "job_extra_directives": ["-R y"]},
    "pbs": {"queue": "long", "account": "me", "walltime": "01:00:00", "job_extra_directives": ["-V"],
            "resource_spec": "select=1:ncpus=4:mem=8GB"},
    "lsf": {"queue": "long", "project": "me", "walltime": "01:00", "lsf_units": "mb", "use_stdin": True,
            "job_extra_directives": ["-u me"]},
    "htcondor": {"disk": "1GB", "job_extra_directives": {"MY.Group": '"x"'}},
    "oar": {"queue": "long", "project": "me", "walltime": "01:00:00", "memory_per_core_property_name": "memcore",
            "job_extra_directives": ["-p x"]},
    "moab": {"queue": "long", "account": "me", "walltime": "01:00:00", "job_extra_directives": ["-V"]},
    "local": {},
}  # fmt: skip
ADDED = {"sge": ["#$ -pe smp 4"]}


def scripts(system: BatchSystem, logs: Path, given: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Give the lines of dask-jobqueue's script and of ours."""
    given = {**SIZE, **given}
    options = resolve({"submit": system.name, "workers_per_node": 2, **given})
    ours = job_class(system, None, 1)("tls://host:1", name="c-0", **options.for_record("/record", str(logs)))
    module, _, name = system.job_class.rpartition(".")
    theirs = getattr(importlib.import_module(module), name)(
        "tls://host:1", name="c-0", processes=2, log_directory=str(logs), **given
    )
    return theirs.job_script().splitlines(), ours.job_script().splitlines()


def differences(theirs: list[str], ours: list[str]) -> tuple[list[str], list[str]]:
    changed = [line for line in difflib.ndiff(theirs, ours) if line[0] in "+-"]
    return [line[2:] for line in changed if line[0] == "-"], [line[2:] for line in changed if line[0] == "+"]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
@pytest.mark.parametrize("as_file", [False, True], ids=["keywords", "configuration file"])
def test_the_script_is_dask_jobqueues_own_but_for_the_workers_command(system, as_file, tmp_path):
    given = {**OPTIONS[system.name], **({} if system.name == "local" else OF_ALL)}
    if system.name == "local":
        # Its class settles the shebang itself.
        given["job_name"] = "mine"
    section = {name.replace("_", "-"): value for name, value in given.items()} if as_file else {}
    if as_file and "job-name" in section:
        section["name"] = section.pop("job-name")
    with dask.config.set({f"jobqueue.{system.name}.{name}": value for name, value in section.items()}):
        theirs, ours = scripts(system, tmp_path / "logs", {} if as_file else given)
    removed, added = differences(theirs, ours)
    assert len(removed) == 1, removed
    assert "-m distributed.cli.dask_worker tls://host:1" in removed[0]
    command = [line for line in added if "-m batchlet.job tls://host:1" in line]
    assert [line for line in added if line not in command] == ADDED.get(system.name, [])
    assert len(command) == 1
    assert f"{shlex.quote(sys.executable)} -m batchlet.job" in command[0]
    assert "--record /record --workers 2" in command[0]
    # Neither a secret nor a key: a job's script is there for everybody to read on many systems.
    assert not [line for line in ours if "tls-" in line or "secret" in line or "BEGIN" in line]


def test_slurm_is_asked_for_the_memory_that_was_asked_for_and_not_for_whole_gibibytes(tmp_path):
    theirs, ours = scripts(SYSTEMS[0], tmp_path / "logs", {"memory": "1200MiB"})
    assert "#SBATCH --mem=2G" in theirs
    assert "#SBATCH --mem=1200M" in ours
    theirs, ours = scripts(SYSTEMS[0], tmp_path / "logs", {"memory": "1200MiB", "job_mem": "3G"})
    assert "#SBATCH --mem=3G" in ours


def test_a_job_of_several_nodes_of_slurm_has_one_process_on_each(tmp_path):
    system = SYSTEMS[0]
    theirs, ours = scripts(system, tmp_path / "logs", {})
    options = resolve({"submit": "slurm", "workers_per_node": 2, "nodes_per_job": 3, **SIZE})
    job = job_class(system, None, 3)(
        "tls://host:1", name="c-0", **options.for_record("/record", str(tmp_path / "logs"))
    )
    removed, added = differences(ours, job.job_script().splitlines())
    assert "#SBATCH -n 1" in removed
    assert {"#SBATCH -N 3", "#SBATCH --ntasks-per-node=1"} <= set(added)
    (command,) = [line for line in added if line.startswith("exec srun --nodes=3 --ntasks=3 --ntasks-per-node=1 ")]
    # A job may be granted fewer CPUs than it was asked for, and a site's directives may say --export=NONE.
    assert "--cpus-per-task" not in command
    assert "--export=ALL" in command
    assert "#SBATCH --mem=8G" in theirs


@pytest.mark.parametrize(
    ("name", "directives", "words"),
    [
        ("slurm", ["#SBATCH --array=0-2", "#SBATCH -e {logs}/mine-%A_%a.err", "#SBATCH -o {logs}/mine-%A_%a.out"],
         "--array SLURM_ARRAY_TASK_ID:0"),
        ("sge", ["#$ -t 1-3"], "--array SGE_TASK_ID:1"),
    ],
)  # fmt: skip
def test_the_script_of_an_array_has_a_directive_more_and_says_how_its_jobs_know_their_names(
    name, directives, words, tmp_path
):
    system, logs = next(each for each in SYSTEMS if each.name == name), str(tmp_path / "logs")
    options = resolve({"submit": name, "workers_per_node": 2, "job_name": "mine", **SIZE})
    submitted: list[str] = []

    class Keeper:
        environ: dict[str, str] = {}

    job = job_class(system, Keeper(), 1)("tls://host:1", name="c-5", **options.for_record("/record", logs))

    async def call(self: Any, command: Any, **_: Any) -> str:
        submitted.append(Path(command[-1]).read_text())  # noqa: ASYNC240
        return "Submitted batch job 42" if name == "slurm" else 'Your job-array 42.1-3:1 ("mine") has been submitted'

    type(job)._call = call
    ids = asyncio.run(job.submit_array(3))
    assert ids == (["42_0", "42_1", "42_2"] if name == "slurm" else ["42.1", "42.2", "42.3"])
    removed, added = differences(job.job_script().splitlines(), submitted[0].splitlines())
    assert len(removed) == 1
    assert added[:-1] == [line.format(logs=logs) for line in directives]
    assert added[-1] == f"{removed[0]} {words}"
    arguments = shlex.split(added[-1])[shlex.split(added[-1]).index("batchlet.job") + 1 :]
    variable, _, first = words.partition(" ")[2].partition(":")
    assert (
        named(arguments, {variable: str(int(first) + 2)})
        == shlex.split(removed[0].replace("--name c-5", "--name c-7"))[-len(arguments) + 2 :]
    )
    with pytest.raises(SystemExit, match=f"{variable}=''"):
        named(arguments, {})


def test_gridengine_is_asked_for_memory_where_the_site_counts_it(tmp_path):
    theirs, ours = scripts(next(each for each in SYSTEMS if each.name == "sge"), tmp_path / "logs", {})
    options = resolve({"submit": "sge", "workers_per_node": 2, "pe": "threads", "h_vmem": True, **SIZE})
    assert differences(theirs, ours)[1][0] == "#$ -pe smp 4"
    assert options.keywords["job_extra_directives"] == ["-pe threads 4", "-l h_vmem=2048M"]


def test_a_sites_file_says_how_gridengine_is_asked(tmp_path):
    site = {"pe": "threads", "mem-free": "2G", "resource-spec": "h_vmem=3G"}
    with dask.config.set({f"jobqueue.sge.{name}": value for name, value in site.items()}):
        options = resolve({"submit": "sge", "workers_per_node": 2, "h_vmem": True, **SIZE})
        assert options.keywords["job_extra_directives"] == ["-pe threads 4", "-l mem_free=2G"]
        options = resolve({"submit": "sge", "workers_per_node": 2, "pe": "", **SIZE})
        assert options.keywords["job_extra_directives"] == ["-l mem_free=2G"]


def test_gpus_are_asked_for_unless_the_users_own_directives_ask_for_them() -> None:
    """`gpus` is a directive where the system has one way to ask for them; elsewhere the user has to say it."""

    def directives(system: str, **given: Any) -> list[str]:
        return list(resolve({"submit": system, **SIZE, "gpus": 2, **given}).keywords["job_extra_directives"])

    assert directives("slurm") == ["--gres=gpu:2"]
    assert directives("lsf") == ['-gpu "num=2"']
    assert directives("slurm", job_extra_directives=["--gres=gpu:a100:2"]) == ["--gres=gpu:a100:2"]
    assert directives("pbs", resource_spec="select=1:ncpus=4:ngpus=2") == []
    with pytest.raises(SettingsError, match="each site has its own way to ask"):
        directives("pbs")
