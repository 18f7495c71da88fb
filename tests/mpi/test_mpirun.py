"""Batchlet under a real mpirun, of Open MPI and of MPICH: exit codes, what is printed, what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from mpi_launchers import mpich, open_mpi
from run_helpers import REPOSITORY, Result, json_line, report_of

pytestmark = [pytest.mark.mpirun, pytest.mark.timeout(240)]

HERE = Path(__file__).parent
MEET = HERE / "programs" / "meet.py"

CLIENT = """
import sys
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner({options}) as runner, Client(runner) as client:
    print("RESULT", client.submit(sum, [1, 2, 3]).result(), len(client.scheduler_info(n_workers=-1)["workers"]), flush=True)
    {last}
"""


STOPPED = """
import json, logging, time
from batchlet.early import BatchletRunner
from dask.distributed import Client, get_worker

def speak():
    logging.getLogger("mine").warning("of a worker")
    return get_worker().name

with BatchletRunner() as runner, Client(runner) as client:
    rank = int(client.submit(speak).result())
    while "Warnings" not in (logs := runner.get_logs()):
        time.sleep(0.1)
    print("RESULT", json.dumps([rank, logs["Warnings"].strip()]), flush=True)
    # As soon as the run is under way, however long that has taken.
    runner.before_end(runner.time_left - 1, lambda: print("saved", client.submit(sum, [1, 2]).result(), flush=True))
    try:
        client.submit(time.sleep, 100).result()
    finally:
        print("finally", client.submit(sum, [1, 2, 3]).result(), flush=True)
"""


def client(last: str = "pass", options: str = "") -> str:
    return CLIENT.format(last=last, options=options)


def own_lines(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("batchlet: ")]


@pytest.fixture
def without_mpi4py(tmp_path):
    """Variables with which mpi4py is there but cannot be imported."""
    package = tmp_path / "shim" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no mpi4py for this test')\n")
    return {"PYTHONPATH": os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])}


def test_the_tests_of_the_meeting_pass_under_mpirun(mpirun):
    command = ["-m", "pytest", "--with-mpi", "-q", "-p", "no:cacheprovider", "--rootdir", REPOSITORY, HERE]
    result = mpirun(4, *command, "-m", "mpi", "-c", REPOSITORY / "pyproject.toml", timeout=120)
    assert result.rc == 0, result
    assert result.stdout.count(" passed") == 4, result
    assert "failed" not in result.stdout


class TestMeeting:
    """Without a cluster: what MPI does."""

    @pytest.mark.parametrize("ranks", [2, 5])
    def test_mpi_is_over_when_the_ranks_have_met(self, mpirun, ranks):
        result = mpirun(ranks, MEET, "codes")
        assert result.rc == 3, result
        facts = sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda one: one["rank"])
        assert [one["rank"] for one in facts] == list(range(ranks))
        assert all(one["layout"] == [list(range(ranks)), 1] for one in facts)
        assert all(one["guess"] == list(range(ranks)) for one in facts)
        assert len({one["run_id"] for one in facts}) == 1
        assert all(one["finalised"] and one["threads"] == 1 for one in facts)

    def test_a_clean_end_is_silent(self, mpirun):
        result = mpirun(4, MEET, "plain")
        assert (result.rc, result.stderr) == (0, ""), result
        assert len(result.stdout.splitlines()) == 4

    def test_two_runs_have_different_names(self, mpirun):
        names = {json.loads(mpirun(2, MEET, "plain").stdout.splitlines()[0])["run_id"] for _ in range(2)}
        assert len(names) == 2

    def test_a_script_that_uses_mpi_keeps_it(self, mpirun):
        result = mpirun(4, MEET, "script")
        assert (result.rc, result.stderr) == (0, ""), result
        assert {json.loads(line)["sum"] for line in result.stdout.splitlines()} == {6}

    def test_a_rank_that_fails_ends_all(self, mpirun):
        result = mpirun(4, MEET, "fails", timeout=30)
        assert result.rc == 1, result
        assert "ERROR 0 BatchletError: rank 0 cannot go on" in result.stderr
        assert result.stdout == ""

    def test_a_rank_that_never_comes_is_no_wait_without_end(self, mpirun):
        result = mpirun(3, MEET, "absent", timeout=30)
        # MPICH's mpiexec reports its own kill instead of rank 0's exit code.
        assert result.rc in ((80,) if mpirun.launcher.name == "Open MPI" else (80, 9)), result
        assert "ERROR 0 StartTimeoutError" in result.stderr
        assert "3 ranks" in result.stderr
        assert result.seconds < 20


class TestRunner:
    """With a cluster."""

    def test_the_example_pi_is_right(self, mpirun):
        result = mpirun(4, REPOSITORY / "slurm_examples" / "pi.py", "--samples=1e7", timeout=150)
        assert result.rc == 0, result
        assert re.search(r"^pi +3\.14", result.stdout, re.M), result
        assert len(result.stderr.splitlines()) <= 3, result
        assert "batchlet: mpi" in result.stderr
        assert "2 workers" in result.stderr

    def test_the_client_is_one_and_all_others_work(self, mpirun, place):
        result = mpirun(4, place.script(client()))
        assert (result.rc, result.stdout) == (0, "RESULT 6 2\n"), result
        assert len(result.stderr.splitlines()) <= 3, result

    @pytest.mark.parametrize(("last", "code"), [("sys.exit(3)", 3), ("raise ValueError('mine')", 1)])
    def test_the_exit_code_is_the_clients(self, mpirun, place, last, code):
        result = mpirun(4, place.script(client(last)))
        assert result.rc == code, result
        assert ("ValueError: mine" in result.stderr) is (code == 1)

    @pytest.mark.parametrize("rendezvous", ["mpi", "file"])
    def test_after_a_signal_to_mpirun_its_exit_code_says_so(self, mpirun, place, rendezvous):
        script = place.script(client("import time; time.sleep(60)", options=f"rendezvous={rendezvous!r}"))
        result = mpirun.signalled(signal.SIGTERM, 4, script, when="RESULT")
        # Open MPI's prterun has an exit code of its own for that.
        assert result.rc == (1 if mpirun.launcher.name == "Open MPI" else 143), result
        assert result.seconds < 50

    def test_the_file_serves_if_it_is_asked_for(self, mpirun, place):
        result = mpirun(4, place.script(client(options='rendezvous="file"')))
        assert (result.rc, result.stdout) == (0, "RESULT 6 2\n"), result

    def test_the_file_serves_without_mpi4py(self, mpirun, place, without_mpi4py):
        result = mpirun(4, place.script(client()), env=without_mpi4py)
        assert (result.rc, result.stdout) == (0, "RESULT 6 2\n"), result
        assert len(result.stderr.splitlines()) <= 3, result

    def test_without_mpi4py_mpi_cannot_be_asked_for(self, mpirun, place, without_mpi4py):
        result = mpirun(4, place.script(client(options='rendezvous="mpi"')), env=without_mpi4py)
        assert result.rc == 2, result
        assert len(own_lines(result)) == 1, result
        assert "no mpi4py for this test" in own_lines(result)[0]

    def test_an_error_of_all_ranks_is_said_once(self, mpirun, place):
        result = mpirun(4, place.script(client(options="no_such_option=1")))
        assert result.rc == 2, result
        assert len(own_lines(result)) == 1, result

    def test_mpi4py_for_another_mpi_is_a_clear_error(self, mpirun, place, tmp_path):
        other = mpich(tmp_path) if mpirun.launcher.name == "Open MPI" else open_mpi()
        result = mpirun(4, place.script(client()), library=other.library)
        assert result.rc == 2, result
        (line,) = own_lines(result)
        for words in ("rank 0 of 4", "rank 0 of 1", other.name, "mpirun", 'rendezvous="file"'):
            assert words in line
        assert "RESULT" not in result.stdout

    def test_a_run_that_is_stopped_before_its_end_has_its_report_and_what_its_workers_said(self, mpirun, place):
        """With `batchlet.early`, as the page is there too: Open MPI kills all other ranks when the client ends with 84."""
        reports = place.base / "reports"
        options = {"REPORT": str(reports), "TIME_LIMIT": "10min", "STOP_BEFORE": "10s"}
        env = {f"BATCHLET_DASK_CLUSTER__{name}": value for name, value in options.items()}
        result = mpirun(4, place.script(STOPPED), env=env, timeout=150)
        assert result.rc == 84, result
        rank, said = json.loads(json_line(result.stdout))
        assert f"worker {rank}, node " in said, result
        assert said.endswith(" - mine - WARNING - of a worker"), result
        assert result.stdout.splitlines()[1:] == ["saved 3", "finally 6"], result
        assert "SIGTERM" not in result.stderr, result
        found = report_of(reports)
        outcome = (found["outcome"]["state"], found["outcome"]["error"]["kind"], found["outcome"]["exit_code"])
        assert outcome == ("ended", "TimeIsUpError", 84), found
        assert (found["run"]["mode"], set(found["workers"])) == ("mpi", {"2", "3"}), found
        [line] = found["logs"]
        assert (line["who"], line["rank"], line["text"]) == (f"worker {rank}", rank, "of a worker"), found
        assert "time is up" in (reports / "report.html").read_text()
