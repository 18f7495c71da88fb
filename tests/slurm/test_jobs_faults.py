"""Jobs that are refused, wait, die; and clients that die: each has its one line, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login, on_node
from run_helpers import Place, json_line

pytestmark = pytest.mark.slurm


@pytest.fixture
def login(cluster: SlurmCluster, place: Place) -> Login:
    return Login(cluster, place)


REFUSED = """
found = {}
for name, options in {
    "directive": {"job_extra_directives": ["--nonsense=1"]},
    "partition": {"queue": "nowhere"},
    "keyword": {"nonsense": 1},
    "size": {"memory_per_worker": "1GiB"},
    "missing": {},
}.items():
    if name == "missing":
        os.environ["PATH"] = "/nowhere"
    began = time.monotonic()
    try:
        made(jobs=1, **options)
    except SystemExit as error:
        found[name] = [str(error), error.code, time.monotonic() - began]
print("RESULT", json.dumps(found))
"""


def test_what_can_never_start_is_refused_at_once_with_the_systems_own_words(login):
    result = login.run(REFUSED)
    assert result.rc == 0, result
    found = json.loads(json_line(result.stdout))
    words = {
        "directive": "Slurm would never start such a job: sbatch: unrecognized option '--nonsense=1'",
        "partition": "Slurm would never start such a job: .*invalid partition specified: nowhere",
        "keyword": "Unknown keyword nonsense: neither Batchlet nor dask-jobqueue",
        "size": "Not even one worker fits|2 workers x 1.00 GiB",
        "missing": "Slurm cannot be asked: sbatch: there is no such command on this machine",
    }
    assert list(found) == list(words)
    for name, (message, code, seconds) in found.items():
        assert re.search(words[name], message), (name, message)
        assert code == 2
        assert seconds < 5
        assert f"batchlet: error: {message}" in result.errors
    assert "Traceback" not in result.stderr


LOST = """
with made(jobs=2, workers_per_node=1) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(2)
    until(lambda: states() == ["joined", "joined"])
    done = client.map(lambda i: i, range(30))
    client.gather(done)
    subprocess.run(["scancel", cluster.jobs[0].job_id], check=True)
    until(lambda: states() == ["joined", "joined", "lost"])
    kept = sum(client.gather(done))
    os.kill(agent(cluster.jobs[1]), signal.SIGKILL)
    until(lambda: states() == ["joined", "joined", "lost", "lost"])
    again = client.submit(sum, [1, 2]).result()
    client.close()
with made(workers_per_node=1, setup_script_commands=["echo no licence; exit 7"]) as cluster:
    cluster.scale(jobs=3)
    try:
        cluster.wait_for_workers(1, timeout=30)
    except RuntimeError as error:
        # Two were submitted in the place of others before the third was lost.
        until(lambda: states() == ["lost"] * 5)
        print("RESULT", json.dumps([kept, again, str(error), states()]))
"""


def test_lost_jobs_are_named_and_replaced_and_those_that_fail_again_and_again_are_not(login):
    result = login.run(LOST, swept=True)
    assert result.rc == 0, result
    kept, again, gave_up, states = json.loads(json_line(result.stdout))
    assert (kept, again) == (sum(range(30)), 3)
    assert gave_up == "1 workers will not come: 3 jobs in a row were lost in the same way."
    assert states == ["lost"] * 5
    lines = [line.removeprefix("batchlet: ") for line in result.errors if line.startswith("batchlet: ")]
    for words, number in {
        r"job \S+ is lost: CANCELLED.*; its log ends: .*CANCELLED AT": 1,
        r"job \S+ is lost: FAILED.*signal 9": 1,
        r"job \S+ is lost: FAILED, NonZeroExitCode, exit code 7; its log ends: no licence": 5,
        r"no job is submitted anew: 3 jobs in a row were lost in the same way": 1,
    }.items():
        assert len([line for line in lines if re.match(words, line)]) == number, (words, result)
    assert "Traceback" not in result.stderr


END = """
cluster = made(jobs=5, cores=8, workers_per_node=1, start_timeout=2)
cluster.wait_for_workers(4)
until(lambda: "pending" in states())
if sys.argv[1] == "exit":
    until(lambda: any(job.waited for job in cluster.jobs))
    sys.exit(3)
if sys.argv[1] == "interrupt":
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
    cluster.wait_for_workers(5)
if sys.argv[1] == "alone":
    # As if the client's node were gone.
    cluster.keeper._custodian._process.kill()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("interrupt", -2), ("killed", -9), ("alone", -9)])
def test_a_client_that_ends_in_whatever_way_leaves_nothing(login, how, code):
    result = login.run(END, how)
    assert result.rc == code, result
    assert "Exception in" not in result.stderr
    if how == "exit":
        assert re.search(
            r"(?m)^batchlet: job \S+ has been waiting for \d+ s \(start_timeout\): Resources$", result.stderr
        )


# Fails every second time, as on a system that is too busy, and when it is broken always.
SBATCH = """#!/bin/sh
echo >>{bin}/calls
[ -e {bin}/broken ] || [ $(($(wc -l <{bin}/calls) % 2)) = 1 ] || exec {sbatch} "$@"
echo "sbatch: error: Batch job submission failed: Unexpected message received" >&2
exit 1
"""
FLAKY = """
with made(jobs=1, workers_per_node=1, max_restarts=0) as cluster:
    cluster.wait_for_workers(1)
    open(sys.argv[1], "w").close()
    cluster.scale(jobs=2)
    try:
        cluster.wait_for_workers(2, timeout=30)
    except RuntimeError as error:
        print("RESULT", json.dumps([str(error), states()]))
"""


def test_a_submit_command_that_fails_now_and_then_is_tried_again_and_one_that_always_fails_is_told(login):
    own = login.place.base / "bin"
    own.mkdir()
    sbatch = shutil.which("sbatch", path=login.place.environ["PATH"])
    (own / "sbatch").write_text(SBATCH.format(bin=own, sbatch=sbatch))
    (own / "sbatch").chmod(0o755)
    path = f"{own}{os.pathsep}{login.place.environ['PATH']}"
    result = login.run(FLAKY, str(own / "broken"), env={"PATH": path})
    assert result.rc == 0, result
    message, states = json.loads(json_line(result.stdout))
    assert message.startswith("2 workers will not come: ")
    assert states == ["joined", "lost"]
    refused = (
        "batchlet: a job was not submitted: sbatch: error: Batch job submission failed: Unexpected message received"
    )
    assert result.errors[1:2] == [refused], result
    assert re.match(r"batchlet: no job is submitted anew: .*max_restarts", result.errors[2]), result
    assert len(result.errors) == 3, result


ALL = """
with made(jobs=3, workers_per_node=1) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(3)
    until(lambda: states() == ["joined"] * 3)
    done = client.map(lambda i: i, range(30))
    client.gather(done)
    subprocess.run(["scancel", *(job.job_id for job in cluster.jobs)], check=True)
    until(lambda: states() in (["joined"] * 2 + ["lost"] * 3, ["joined"] * 3 + ["lost"] * 3))
    print("RESULT", sum(client.gather(done)))
    client.close()
"""


def test_when_all_jobs_are_cancelled_each_is_named_and_the_work_goes_on_with_those_that_replace_them(login):
    result = login.run(ALL)
    assert result.rc == 0, result
    assert json_line(result.stdout) == str(sum(range(30)))
    # Dask's own is one about results that are lost with their workers.
    lines = [line.removeprefix("batchlet: ") for line in result.errors[1:] if "caused the cluster to lose" not in line]
    lost = [line for line in lines if re.match(r"job \S+ is lost: CANCELLED", line)]
    assert len(lost) == 3, result
    # Unless others have come up meanwhile: whoever cancels them all does not want them any more.
    gave_up = "no job is submitted anew: 3 jobs in a row were lost in the same way"
    assert all(line.startswith(gave_up) for line in lines if line not in lost), result
    assert len(lines) <= 4, result


DRAINED = """
def nodes(*words):
    subprocess.run(["scontrol", "update", "nodename=" + sys.argv[1], *words], check=True)

with made(jobs=1, workers_per_node=1, start_timeout=1) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(1)
    nodes("state=drain", "reason=test")
    cluster.scale(jobs=2)
    until(lambda: any(job.waited for job in cluster.jobs))
    found = [client.submit(sum, [1, 2]).result(), states()]
    nodes("state=resume")
    until(lambda: states() == ["joined"] * 2)
    print("RESULT", json.dumps(found))
    client.close()
"""


def test_jobs_wait_for_nodes_that_are_drained_with_the_reason_and_start_when_they_are_back(login, cluster):
    nodes = ",".join(cluster.node_names)
    try:
        result = login.run(DRAINED, nodes)
    finally:
        login.place.run_only("scontrol", "update", f"nodename={nodes}", "state=resume")
    assert result.rc == 0, result
    assert json.loads(json_line(result.stdout)) == [3, ["joined", "pending"]]
    assert len(result.errors) == 2, result
    assert re.match(
        r"batchlet: job \S+ has been waiting for \d+ s \(start_timeout\): .*(DRAINED|Resources|Unavailable)",
        result.errors[1],
    )


MEMORY = """
import dask
from distributed import KilledWorker

dask.config.set({"distributed.scheduler.allowed-failures": 0})
with made(jobs=1) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(2)
    until(lambda: states() == ["joined"])
    try:
        client.submit(lambda: len(b"x" * (900 << 20))).result()
    except KilledWorker:
        killed = True
    client.wait_for_workers(2)
    again = client.submit(sum, [1, 2]).result()
    found = [killed, again, states()]
    client.close()
with made(jobs=1, job_mem="30M", max_restarts=0) as cluster:
    try:
        cluster.wait_for_workers(2, timeout=40)
    except RuntimeError:
        print("RESULT", json.dumps([*found, states()]))
"""


def test_a_worker_that_is_out_of_memory_is_named_and_comes_back_and_so_is_a_job(login, cluster):
    if not cluster.memory_enforced:
        pytest.skip("no memory limits here")
    result = login.run(MEMORY, swept=True)
    assert result.rc == 0, result
    assert json.loads(json_line(result.stdout)) == [True, 3, ["joined"], ["lost"]]
    lines = [line.removeprefix("batchlet: ") for line in result.errors]
    # By Slurm, or by Dask if that was quicker.
    killed = r"job \S+ on node \S+: worker .* was killed by (SIGKILL|SIGTERM for more memory than its limit)"
    assert len([line for line in lines if re.match(killed, line)]) == 1, result
    assert len([line for line in lines if re.match(r"job \S+ is lost: OUT_OF_MEMORY", line)]) == 1, result
    assert "Traceback" not in result.stderr


# A file system of 64 KiB, in which there is no room for one more byte; or for one more file.
FULL = 'mount -t tmpfs -o size=64k,mode=1777 full "$0" && { dd if=/dev/zero of="$0/fill" bs=4k 2>/dev/null; :; }'
NO_FILES = 'mount -t tmpfs -o nr_inodes=2,mode=1777 full "$0" && touch "$0/fill"'
LOGS = """
found = []
with made(jobs=1, workers_per_node=1, log_directory="logs", job_extra_directives=["--nodelist=" + sys.argv[1]]) as cluster:
    client = cluster.get_client()
    client.wait_for_workers(1)
    # The death of a worker is logged where there is no room for it.
    client.submit(os.kill, client.submit(os.getpid).result(), signal.SIGKILL)
    client.wait_for_workers(1)
    found.append(client.submit(sum, [1, 2]).result())
    client.close()
with made(jobs=1, workers_per_node=1, max_restarts=0, log_directory="logs",
          job_extra_directives=["--nodelist=" + sys.argv[2]]) as cluster:
    try:
        cluster.wait_for_workers(1, timeout=40)
    except RuntimeError:
        found += states()
print("RESULT", json.dumps(found))
"""


def test_jobs_compute_where_the_disk_of_their_logs_is_full_and_are_named_where_slurm_does_not_start_them(
    login, cluster
):
    logs = login.place.cwd / "logs"
    logs.mkdir()
    full, no_files = cluster.node_names[:2]
    try:
        for node, how in ((full, FULL), (no_files, NO_FILES)):
            subprocess.run([*on_node(node), "sh", "-c", how, str(logs)], check=True)
        result = login.place.run_only(*login.command(LOGS, full, no_files), env=login.environ, timeout=60)
    finally:
        for node in (full, no_files):
            subprocess.run([*on_node(node), "umount", "--lazy", str(logs)], check=False)
    shutil.rmtree(logs)
    login.assert_nothing_left(result)
    assert result.rc == 0, result
    assert json.loads(json_line(result.stdout)) == [3, "lost"]
    lost = [line for line in result.errors if re.match(r"batchlet: job \S+ is lost: FAILED", line)]
    assert len(lost) == 1, result
    assert "output" in lost[0], result
    assert "Traceback" not in result.stderr


def test_a_full_disk_where_the_record_should_be_is_one_sentence(login):
    (login.place.cwd / "shared").mkdir()
    script = "made(jobs=1, rendezvous_dir='shared/.batchlet')"
    inside = ["unshare", "--mount", "sh", "-c", f'{FULL} && exec "$@"', str(login.place.cwd / "shared")]
    result = login.place.run_only(*inside, *login.command(script), env=login.environ)
    (login.place.cwd / "shared").rmdir()
    login.assert_nothing_left(result)
    assert result.rc == 2, result
    assert len(result.errors) == 1, result
    assert "No space left on device" in result.errors[0]
