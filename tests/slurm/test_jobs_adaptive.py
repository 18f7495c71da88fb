"""Clusters of jobs that follow the work: whole jobs, none taken back that were just asked for."""

from __future__ import annotations

import json

import pytest
from cluster_slurm import SlurmCluster
from jobs_helpers import Login
from run_helpers import Place, json_line

pytestmark = pytest.mark.slurm


@pytest.fixture
def login(cluster: SlurmCluster, place: Place) -> Login:
    return Login(cluster, place)


ADAPTIVE = """
with made(workers_per_node=2) as cluster:
    adaptive = cluster.adapt(minimum_jobs=0, maximum_jobs=2, interval="200ms", wait_count=5, target_duration="2s")
    client = cluster.get_client()
    found = []
    for turn in range(3):
        futures = client.map(lambda i: (time.sleep(0.1), i)[1], range(120), pure=False)
        found.append(sum(client.gather(futures)))
        found.append(len(cluster.worker_spec))
        del futures
        until(lambda: not cluster.worker_spec and not cluster.scheduler.workers)
    found.append(len(cluster.jobs))
    found.append([entry["status"] for _, entry in adaptive.log])
    until(lambda: set(states()) == {"ended"})
    client.close()
print("RESULT", json.dumps(found))
"""


def test_jobs_come_with_the_work_and_go_with_it_without_flapping(login):
    result = login.run(ADAPTIVE)
    assert result.rc == 0, result
    *turns, submitted, log = json.loads(json_line(result.stdout))
    assert turns == [sum(range(120)), 2] * 3
    # Three times up, by one step or two, and down.
    assert submitted == 6
    assert log.count("down") <= 6
    assert len(result.errors) == 1, result
