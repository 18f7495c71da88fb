"""What batch systems say of jobs, read from their own words, which were recorded or are those of their documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchlet.errors import SettingsError
from batchlet.jobs.systems import SYSTEMS, Seen, batch_system

DATA = Path(__file__).parent / "data" / "jobs"
NAMES = [system.name for system in SYSTEMS]


def recorded(name: str) -> str:
    return (DATA / name).read_text()


def states(seen: dict[str, Seen]) -> dict[str, str]:
    return {job_id: job.state for job_id, job in seen.items()}


def test_an_unknown_system_is_told_with_those_that_are_known():
    with pytest.raises(SettingsError, match=r"'slurmy' is no batch system.*slurm"):
        batch_system("slurmy")


@pytest.mark.parametrize("name", NAMES)
def test_dask_jobqueue_has_a_class_for_its_jobs(name):
    module, _, cls = batch_system(name).job_class.rpartition(".")
    imported = pytest.importorskip(module)
    assert getattr(imported, cls).config_name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text", ["", "\n\n", "garbage", "1", "1|2|3|4|5|6|7", "{", "[1, 2]", "-" * 200, "job-ID\n---\n1 2 3"]
)
def test_what_makes_no_sense_is_passed_over(name, text):
    system = batch_system(name)
    for job in (*system.parse(text).values(), *system.parse_finished(text).values()):
        assert job.state == "unknown"


@pytest.mark.parametrize("name", NAMES)
def test_one_command_is_for_all_jobs(name):
    system = batch_system(name)
    ids = ["7", "8", "8"]
    for command in (system.query(ids), system.cancel(ids)):
        assert all(isinstance(word, str) for word in command)
    assert " ".join(system.cancel(ids)).count("8") == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_the_client_was_launched_with_is_not_for_its_jobs(name):
    launched = {"PMI_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "BATCHLET_STEP_CLIENT_NODE": "n1"}
    kept = {"PATH": "/bin", "HOME": "/root", "BATCHLET_DASK_CLUSTER__CORES": "2", "CUDA_VISIBLE_DEVICES": "0"}
    system = batch_system(name)
    assert set(system.private({**launched, **kept})) == set(launched)
    assert kept.items() <= system.environ({**launched, **kept}).items()


class TestSlurm:
    system = batch_system("slurm")

    def test_squeue_tells_of_each_job_what_it_does_or_has_ended_with(self):
        seen = self.system.parse(recorded("slurm_squeue.txt"))
        assert seen["1"].state == "failed"
        assert (seen["1"].exit_code, seen["1"].node, seen["1"].reason) == (3, "n1", "NonZeroExitCode")
        assert (seen["13"].state, seen["13"].exit_code) == ("ended", 0)
        assert (seen["12"].state, seen["12"].exit_code) == ("failed", -9)
        assert (seen["11"].state, seen["11"].word, seen["11"].exit_code) == ("failed", "CANCELLED", -15)
        assert seen["14"] == Seen("pending", "PENDING", "Resources", None, "", None)
        assert seen["15_2"].reason == "ReqNodeNotAvail, UnavailableNodes:n1"
        assert seen["10"].state == "running"
        assert seen["10"].end is not None
        assert seen["20"].reason == "BadConstraints"
        assert seen["21"].word == "TIMEOUT"
        assert (seen["22"].word, seen["22"].exit_code) == ("OUT_OF_MEMORY", None)

    def test_sacct_tells_of_jobs_that_squeue_has_forgotten(self):
        # No recording: the test Slurm has no accounting. The form is that of sacct(1), --parsable2.
        text = (
            "7|CANCELLED by 1000|None|0:15|2026-11-25T22:52:46|n1\n7_3|OUT_OF_ME+|OutOfMemory|0:125|Unknown|n2\n"
            "8|NODE_FAIL|None|1:0|2026-11-25T22:52:46|None assigned\n9|COMPLETED|None|0:0|2026-11-25T22:52:46|n[1-2]\n"
        )
        seen = self.system.parse_finished(text)
        assert states(seen) == {"7": "failed", "7_3": "unknown", "8": "failed", "9": "ended"}
        assert seen["7"].exit_code == -15
        assert (seen["8"].exit_code, seen["8"].node) == (1, "")

    def test_a_state_that_a_later_slurm_has_is_unknown(self):
        assert self.system.parse("1|BRAND_NEW|None|0|N/A|n1|")["1"] == Seen(
            "unknown", "BRAND_NEW", "", None, "n1", None
        )

    def test_squeue_that_knows_none_of_the_jobs_has_answered(self):
        assert self.system.none_left(1, "slurm_load_jobs error: Invalid job id specified\n")
        assert not self.system.none_left(
            1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
        )

    def test_a_check_that_fails_for_want_of_nodes_is_no_refusal(self):
        assert self.system.refused(1, "sbatch: error: invalid partition specified: nope")
        assert not self.system.refused(1, "allocation failure: Requested node configuration is not available")
        assert not self.system.refused(
            0, "sbatch: Job 7 to start at 2027-11-25T22:49:19 using 1 processors on nodes n1"
        )

    def test_variables_of_the_surrounding_job_stay_there_and_defaults_of_the_user_hold(self):
        outside = {
            "SLURM_CONF": "/etc/x",
            "SBATCH_ACCOUNT": "me",
            "SLURM_MPI_TYPE": "none",
            "SQUEUE_USERS": "x",
            "A": "b",
        }
        assert self.system.private(outside) == ("SQUEUE_USERS",)
        inside = outside | {
            "SLURM_JOB_ID": "1",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURMD_NODENAME": "n1",
            "CUDA_VISIBLE_DEVICES": "3",
        }
        assert self.system.environ(inside) == {
            "SLURM_CONF": "/etc/x",
            "SBATCH_ACCOUNT": "me",
            "A": "b",
            "SLURM_TIME_FORMAT": "standard",
        }

    def test_an_array_is_one_submission_with_an_id_for_each_job(self):
        array = self.system.array(3)
        assert array.directives == ("--array=0-2",)
        assert self.system.array_ids("42", 3) == ["42_0", "42_1", "42_2"]

    def test_an_array_that_was_cancelled_as_a_whole_is_told_as_one_job(self):
        seen = self.system.parse("15|CANCELLED|Resources|0|2026-11-25T22:53:51|n/a|\n")
        assert self.system.find(seen, "15_2").word == "CANCELLED"
        assert self.system.find(seen, "16_2") is None
