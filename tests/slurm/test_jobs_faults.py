"""Jobs that are refused, wait, die; and clients that die: each has its one line, and nothing is left."""

from __future__ import annotations

import json
import re

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
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
def agent(job):
    name, found = job.name, {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = open(f"/proc/{entry}/cmdline").read().split("\\0")
        except OSError:
            continue
        if "batchlet.job" in words and name in words:
            found[int(entry)] = int(open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[1])
    return next(pid for pid, parent in found.items() if parent not in found)

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
        print("RESULT", json.dumps([kept, again, str(error), states()]))
"""


def test_lost_jobs_are_named_and_replaced_and_those_that_fail_again_and_again_are_not(login):
    result = login.run(LOST, swept=True)
    assert result.rc == 0, result
    kept, again, gave_up, states = json.loads(json_line(result.stdout))
    assert (kept, again) == (sum(range(30)), 3)
    assert gave_up == "1 workers will not come: 3 jobs in a row were lost in the same way."
    # Two were submitted in the place of others before the third was lost.
    assert states == ["lost"] * 5
    lines = [line.removeprefix("batchlet: ") for line in result.errors if line.startswith("batchlet: ")]
    for words, number in {
        r"job \d+ is lost: CANCELLED.*; its log ends: .*CANCELLED AT": 1,
        r"job \d+ is lost: FAILED.*signal 9": 1,
        r"job \d+ is lost: FAILED, NonZeroExitCode, exit code 7; its log ends: no licence": 5,
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
            r"(?m)^batchlet: job \d+ has been waiting for \d+ s \(start_timeout\): Resources$", result.stderr
        )
