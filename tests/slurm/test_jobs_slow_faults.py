"""What takes its time: a client that is stopped for half a minute, a time limit, a node that fails. All three side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
from run_helpers import Place, Result, json_line

pytestmark = pytest.mark.slurm

# A task that lasts, unless somebody has begun it before.
HEAD = """
from pathlib import Path

def lasts(path, seconds):
    if not Path(path).exists():
        Path(path).touch()
        time.sleep(seconds)
    return os.uname().nodename

cluster = made(jobs=1, workers_per_node=1, job_extra_directives=["--" + sys.argv[1]])
client = cluster.get_client()
client.wait_for_workers(1)
until(lambda: states() == ["joined"])
(first,) = cluster.jobs
mark = os.path.abspath("began")
"""
END = """
client.close()
cluster.close()
"""

STOPPED = """
before = client.run(os.getpid)
late = client.map(lambda i: (time.sleep(0.1), i)[1], range(100), pure=False)
began = time.monotonic()
stops = subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 30; kill -CONT {os.getpid()}"])
total = sum(client.gather(late))
stops.wait()
print("RESULT", json.dumps([total, client.run(os.getpid) == before, states(), time.monotonic() - began]))
"""
LIMIT = """
import datetime

task = client.submit(lasts, mark, 60)
until(lambda: Path(mark).exists())
end = (datetime.datetime.now() + datetime.timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%S")
subprocess.run(["scontrol", "update", "jobid=" + first.job_id, "endtime=" + end], check=True)
# Where Slurm was asked before, it is the limit of then that counts; otherwise the job retires, two seconds sooner or later.
until(lambda: first.is_over and "joined" in states(), 90)
print("RESULT", json.dumps([task.result(timeout=30), first.job_id]))
Path(mark).unlink()
"""
FAILED = """
(node,) = first.hosts
task = client.submit(lasts, mark, 60)
until(lambda: Path(mark).exists())
subprocess.run(["scontrol", "update", "nodename=" + node, "state=down", "reason=test"], check=True)
until(lambda: not first.hosts)
until(lambda: states() == ["joined"], 60)
print("RESULT", json.dumps([len(cluster.jobs), *first.hosts, task.result(timeout=30)]))
Path(mark).unlink()
"""


@pytest.fixture(scope="module")
def results(cluster: SlurmCluster) -> Iterator[dict[str, Future[Result]]]:
    """All three, each with nodes of its own."""
    one, other = cluster.node_names[:2]
    scripts = {
        "stopped": (STOPPED, f"nodelist={one}"),
        "limit": (LIMIT, f"nodelist={other}"),
        "failed": (FAILED, f"exclude={one},{other}"),
    }
    places = {name: Place(cluster.env(), on_timeout=cluster.end_jobs) for name in scripts}

    def run(name: str) -> Result:
        login = Login(cluster, places[name])
        script, nodes = scripts[name]
        return places[name].run_only(*login.command(HEAD + script + END, nodes), env=login.environ, timeout=150)

    with ThreadPoolExecutor(len(scripts)) as pool:
        found = {name: pool.submit(run, name) for name in scripts}
        try:
            yield found
        finally:
            for each in found.values():
                each.exception(160)
            nodes = ",".join(cluster.node_names)
            places["failed"].run_only("scontrol", "update", f"nodename={nodes}", "state=resume")
    for name, place in places.items():
        Login(cluster, place).assert_nothing_left(found[name].result())
        place.close()


def lines(result: Result) -> list[str]:
    assert result.rc == 0, result
    assert "Traceback" not in result.stderr, result
    return [line.removeprefix("batchlet: ") for line in result.errors[1:]]


def test_a_client_that_was_stopped_for_half_a_minute_goes_on_with_all_its_workers(results):
    result = results["stopped"].result(160)
    assert lines(result) == [], result
    total, same, states, seconds = json.loads(json_line(result.stdout))
    assert (total, same, states) == (sum(range(100)), True, ["joined"])
    assert seconds > 25, "it was not stopped"


def test_a_job_whose_time_is_over_in_the_middle_of_a_task_is_named_and_the_task_computed_again(results):
    result = results["limit"].result(160)
    _, job = json.loads(json_line(result.stdout))
    (said,) = lines(result)
    assert re.match(
        rf"job {job} (is lost: TIMEOUT.*DUE TO TIME LIMIT|comes to its end while it computes 1 task)", said
    ), result


def test_a_job_whose_node_fails_is_named_and_goes_on_where_the_batch_system_requeues_it(results):
    result = results["failed"].result(160)
    jobs, node, where = json.loads(json_line(result.stdout))
    assert (jobs, node) == (1, where)
    (said,) = lines(result)
    assert re.match(r"job \S+ waits again, as the batch system has requeued it", said), result
