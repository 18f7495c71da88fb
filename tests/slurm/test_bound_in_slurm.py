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


@needs_two_cpus
def test_workers_of_a_node_with_two_domains_are_bound_unless_slurm_has_bound_their_ranks(tmp_path: Path) -> None:
    """Each node by itself. What srun has bound stays there, whatever is asked for, and the plan says so."""
    within = described_as_two_domains(tmp_path)
    both = {"BATCHLET_DASK_CLUSTER__WORKERS_PER_NODE": "2"}
    with bound_cluster() as cluster:
        place = Place(cluster.env(), on_timeout=cluster.end_jobs)
        try:
            script = place.script(WHERE)
            left_open = ("srun", "-N2", "-n2", "-c2", "--cpu-bind=none", *within, sys.executable)
            bound = ("srun", "-N2", "-n4", "-c1", "--ntasks-per-node=2", "--cpu-bind=cores", *within, sys.executable)
            result = place.run(*left_open, script, env=both, timeout=90)
            assert result.rc == 0, str(result)
            assert_apart(json.loads(json_line(result.stdout)), nodes=2)
            plan = place.run(*left_open, "-m", "batchlet", "--plan", env=both)
            assert plan.stdout.count("2  each to whole cores of one of 2 NUMA domains") == 2, str(plan)
            kept = place.run(*bound, "-m", "batchlet", "--bind", "--colocate", "--plan")
            assert kept.stdout.count("0  the launcher's binding is kept: CPU affinity (") == 2, str(kept)
            place.assert_nothing_left(result=kept)
        finally:
            place.close()
