"""What batch systems say of jobs, read from their own words.

Recorded from real systems are slurm_squeue.txt (Slurm 22.05), sge_qstat.txt and sge_qacct.txt (gridengine 8.1.9). All other
samples, those of sacct, PBS, Torque, LSF, HTCondor, OAR and Moab, were written after the forms that the systems document.
"""

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

    def test_a_job_whose_output_file_cannot_be_opened_is_told_so(self):
        seen = self.system.parse("7 |FAILED |JobLaunchFailure |53 |2026-11-28T21:00:00 |n1 |")
        assert seen["7"].reason.startswith("its output file cannot be opened")

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
        # Each has a log of its own, by its id.
        assert self.system.array_logs("/logs", "mine") == ("-e /logs/mine-%A_%a.err", "-o /logs/mine-%A_%a.out")

    def test_a_thousand_jobs_of_an_array_are_asked_about_and_cancelled_in_few_words(self):
        ids = [f"42_{number}" for number in range(1000) if number != 7]
        assert self.system.query(["9", *ids])[-1] == "--jobs=42,9"
        assert self.system.cancel(["9", *ids, "43_5"]) == ["scancel", "--quiet", "9", "42_[0-6,8-999]", "43_5"]

    def test_an_array_that_was_cancelled_as_a_whole_is_told_as_one_job(self):
        seen = self.system.parse("15|CANCELLED|Resources|0|2026-11-25T22:53:51|n/a|\n")
        assert self.system.find(seen, "15_2").word == "CANCELLED"
        assert self.system.find(seen, "16_2") is None


class TestGridEngine:
    system = batch_system("sge")

    def test_qstat_tells_each_job_of_an_array_and_why_it_pends(self):
        seen = self.system.parse(recorded("sge_qstat.txt"))
        assert (seen["21"].state, seen["21"].node) == ("running", "g0n1")
        assert seen["21"].end is not None
        assert (seen["22.1"].state, seen["22.2"].state, seen["23.8"].state) == ("running", "pending", "running")
        assert seen["22.2"].reason == "All queues dropped because of overload or full"
        assert (seen["15"].state, seen["17"].reason) == (
            "pending",
            "All queues dropped because of overload or full; Job is in hold state",
        )
        assert (seen["17"].state, seen["17"].word) == ("pending", "hqw")

    def test_a_job_that_could_not_start_is_stuck_and_says_why(self):
        seen = self.system.parse(recorded("sge_qstat.txt"))
        reason = 'can\'t open output file "/nonexistent/dir/": No such file or directory'
        assert seen["18"] == Seen("failed", "Eqw", reason, stuck=True)
        assert (seen["23.1"].stuck, seen["23.15"].state) == (True, "pending")

    def test_qacct_tells_what_became_of_jobs(self):
        seen = self.system.parse_finished(recorded("sge_qacct.txt"))
        assert (seen["1"].state, seen["1"].exit_code, seen["1"].node) == ("failed", 3, "g0n2")
        assert (seen["3.2"].state, seen["3.2"].exit_code) == ("ended", 0)
        assert (seen["5"].exit_code, seen["5"].reason) == (-9, "qmaster enforced h_rt, h_cpu, or h_vmem limit")
        assert (seen["16.2"].exit_code, seen["16.2"].reason) == (-9, "killed by qdel or for a limit")

    def test_another_gridengine_has_another_column(self):
        text = "    7 0.55500 dask-worke me           r     11/25/2026 23:01:48.123 long@n1.site   jclass   4 2\n"
        assert self.system.parse(text)["7.2"].node == "n1.site"

    def test_a_letter_that_a_later_gridengine_has_is_unknown(self):
        text = "     14 0.25510 sleep      root         X     11/25/2026 23:01:48 all.q@g0n1                       2        \n"
        assert self.system.parse(text)["14"].state == "unknown"

    def test_cores_and_memory_are_asked_for(self):
        asked = self.system.directives
        gib = 2**30
        assert asked(4, 8 * gib) == ("-pe smp 4",)
        assert asked(4, 8 * gib, pe="mpi", h_vmem=True) == ("-pe mpi 4", "-l h_vmem=2048M")
        assert asked(4, 8 * gib, pe="", mem_free="8G") == ("-l mem_free=8G",)
        assert asked(4, 8 * gib, own=["-pe threads 4", "-l h_vmem=1G"], h_vmem=True) == ()

    def test_variables_of_the_surrounding_job_stay_there(self):
        inside = {"SGE_TASK_ID": "undefined", "NSLOTS": "2", "QUEUE": "all.q", "PE": "smp", "JOB_ID": "1"}
        kept = {"SGE_ROOT": "/x", "SGE_CELL": "default", "SGE_QMASTER_PORT": "6444", "PERL5LIB": "/y", "SGE_ARCH": "lx"}
        assert set(self.system.private({**inside, **kept})) == set(inside)
        assert self.system.private({"NSLOTS": "2", **kept}) == ()

    def test_an_array_is_one_submission_with_an_id_for_each_job(self):
        assert self.system.array(3).directives == ("-t 1-3",)
        assert self.system.array_ids("42", 3) == ["42.1", "42.2", "42.3"]


class TestPbs:
    system = batch_system("pbs")

    def test_qstat_tells_what_jobs_do(self):
        seen = self.system.parse(recorded("pbs_qstat.txt"))
        assert states(seen) == {"101": "pending", "102": "running", "103[2]": "running", "104": "pending"}
        assert seen["101"].reason == "Not Running: Insufficient amount of resource: ncpus (R: 4 A: 0 T: 64)"
        assert (seen["102"].node, seen["103[2]"].node) == ("node07", "node08")
        assert seen["102"].end is not None

    def test_the_history_tells_what_became_of_jobs(self):
        seen = self.system.parse_finished(recorded("pbs_history.txt"))
        assert states(seen) == {"105": "ended", "106": "failed", "107": "failed", "108": "failed", "109": "failed"}
        assert (seen["106"].exit_code, seen["107"].exit_code) == (3, -15)
        assert "exceeded limit" in seen["107"].reason
        assert (seen["109"].exit_code, seen["109"].reason) == (None, "over its time limit")

    def test_torque_has_ended_jobs_in_its_queue(self):
        seen = self.system.parse(recorded("torque_qstat.txt"))
        assert (seen["201"].state, seen["201"].exit_code, seen["201"].node) == ("failed", -15, "node1")
        assert (seen["202"].state, seen["202"].node) == ("running", "node2")

    def test_qstat_that_misses_ended_jobs_only_has_answered(self):
        assert self.system.none_left(153, "qstat: Unknown Job Id 99.pbs01\n")
        assert self.system.none_left(
            35, "qstat: 105.pbs01 Job has finished, use -x or -H to obtain historical job information\n"
        )
        assert not self.system.none_left(255, "Connection refused\nqstat: cannot connect to server pbs01 (errno=111)\n")


def test_bjobs_tells_what_jobs_do_and_have_ended_with():
    seen = batch_system("lsf").parse(recorded("lsf_bjobs.txt"))
    assert (seen["301"].state, seen["301"].reason) == ("pending", "New job is waiting for scheduling;")
    assert (seen["302"].state, seen["302"].node, seen["303[2]"].node) == ("running", "hostA", "hostB")
    assert (seen["304"].state, seen["304"].exit_code, seen["305"].exit_code) == ("ended", 0, 3)
    assert (seen["306"].exit_code, seen["306"].reason.partition(":")[0]) == (-9, "TERM_MEMLIMIT")
    assert seen["308"].reason.endswith("pending|it said")
    assert batch_system("lsf").none_left(255, "Job <99> is not found\n")


def test_condor_q_and_condor_history_tell_of_jobs():
    system = batch_system("htcondor")
    seen = system.parse(recorded("condor_q.json"))
    assert states(seen) == {"401.0": "pending", "402.0": "running", "403.1": "failed"}
    assert (seen["402.0"].node, seen["403.1"].stuck) == ("exec7.site", True)
    assert "memory limit" in seen["403.1"].reason
    seen = system.parse_finished(recorded("condor_history.json"))
    assert states(seen) == {"404.0": "ended", "405.0": "failed", "406.0": "failed"}
    assert (seen["405.0"].exit_code, seen["406.0"].reason) == (-9, "via condor_rm (by user me)")


def test_oarstat_tells_of_jobs():
    seen = batch_system("oar").parse(recorded("oarstat.json"))
    assert states(seen) == {"501": "pending", "502": "running", "503": "failed", "504": "failed", "505": "ended"}
    assert (seen["502"].node, seen["502"].end, seen["503"].exit_code) == ("node-3.site", 1795603600.0, 3)
    assert "enough resources" in seen["504"].reason


def test_showq_tells_of_jobs():
    seen = batch_system("moab").parse(recorded("moab_showq.txt"))
    assert states(seen) == {
        "601": "running", "602[3]": "running", "603": "pending", "604": "pending", "605": "ended", "606": "failed",
        "607": "failed",
    }  # fmt: skip
    assert (seen["604"].reason, seen["606"].exit_code, seen["607"].reason) == ("BatchHold", 3, "CNCLD(0)")


def test_ps_tells_of_processes_that_run():
    assert states(batch_system("local").parse("  12 Sl\n  13 Z\n")) == {"12": "running"}
