"""Workers that share a node of a Slurm job: bound by Batchlet where Slurm has left that open, and as Slurm has it elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from affinity_cluster import bound_cluster
from numa_helpers import WHERE, assert_apart, described_as_two_domains, needs_two_cpus
from run_helpers import Place, json_line

pytestmark = pytest.mark.slurm


JOBS = """
import json, os

def where(dask_worker):
    import os
    return os.environ["SLURMD_NODENAME"], sorted(os.sched_getaffinity(0))

if __name__ == "__main__":
    from batchlet import BatchletCluster
    scheduler = {"interface": os.environ["LOGIN_INTERFACE"]}
    asked = {"jobs": 2, "cores": 2, "workers_per_node": 2, "memory": "512MiB"}
    with BatchletCluster("slurm", bind=True, scheduler_options=scheduler, **asked) as cluster:
        client = cluster.get_client()
        client.wait_for_workers(4, timeout=150)
        print("RESULT " + json.dumps(sorted(client.run(where).values())))
"""


@needs_two_cpus
def test_workers_of_a_node_with_two_domains_are_bound_unless_slurm_has_bound_their_ranks(tmp_path: Path) -> None:
    """Each node by itself, those of submitted jobs too. What srun has bound stays there, and the plan says so."""
    within = described_as_two_domains(tmp_path)
    both = {"BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "2"}
    with bound_cluster() as cluster:
        place = Place(cluster.env(), on_timeout=cluster.end_jobs)
        try:
            script = place.script(WHERE)
            left_open = ("srun", "-N2", "-n2", "-c2", "--cpu-bind=none", *within, sys.executable)
            bound = ("srun", "-N2", "-n4", "-c1", "--ntasks-per-node=2", "--cpu-bind=cores", *within, sys.executable)
            result = place.run(*left_open, script, env=both, timeout=150)
            assert result.rc == 0, str(result)
            assert_apart(json.loads(json_line(result.stdout)), nodes=2)
            plan = place.run(*left_open, "-m", "batchlet", "--plan", env=both, timeout=120)
            assert plan.stdout.count("2  each to whole cores of one of 2 NUMA domains") == 2, str(plan)
            kept = place.run(*bound, "-m", "batchlet", "--bind", "--colocate", "--plan", timeout=120)
            assert kept.stdout.count("0  the launcher's binding is kept: CPU affinity (") == 2, str(kept)
            jobs = place.run(
                sys.executable, place.script(JOBS), env={"LOGIN_INTERFACE": f"slurm{cluster.instance}"}, timeout=120
            )
            assert jobs.rc == 0, str(jobs)
            workers = json.loads(json_line(jobs.stdout))
            assert len(workers) == len({(node, *cpus) for node, cpus in workers}) == 4, str(jobs)
            assert all(len(cpus) == 1 for _, cpus in workers), str(jobs)
            place.assert_nothing_left(result=jobs)
        finally:
            place.close()
