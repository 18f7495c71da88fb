"""Another user of the nodes has taken the names of the sockets on which the ranks of a node meet: the run goes on without them.

Names in the abstract namespace are for whoever comes first, and those of the next jobs can be guessed.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from held_runs import Held
from mpi_launchers import open_mpi
from run_helpers import Place
from strangers import NOBODY, Standpoint, standpoints, stranger

from batchlet.node.agent_socket import socket_name

pytestmark = pytest.mark.slurm

SQUATTER = (Path(__file__).parent / "squatter.py").read_text()
MANNERS = ("never listens", "full backlog", "accepts and says nothing")
MPIRUN = pytest.param("mpirun", marks=pytest.mark.mpirun)
# So many seconds may a squatter cost, and so many more on a machine that does other things at the same time.
COST, SLACK = 3.0, 4.0
# The names of so many jobs from the next one on, and of so many steps of each, are taken.
JOBS, STEPS = 6, 2
SAID = re.compile(r"batchlet: .*another user.*")


def launcher(mode: str, cluster: Any) -> tuple[list[str], dict[str, str]]:
    """The command that starts a script on the first two nodes, and the variables that it needs.

    Three ranks on each, so that there are workers on both.
    """
    size = ["-N2", "-n6", "--ntasks-per-node=3", f"--nodelist={','.join(cluster.node_names[:2])}"]
    if mode == "srun":
        return ["srun", *size], {}
    allocation = ["salloc", "--quiet", *size]
    if mode == "allocation":
        return allocation, {}
    mpi = open_mpi()
    mapped = ["--map-by", "ppr:3:node:oversubscribe", "--bind-to", "none"]
    return [*allocation, mpi.mpirun, "-n", "6", *mapped], dict(mpi.variables)


def names_of_next_jobs(cluster: Any, node: str) -> list[str]:
    """The names that this user's next runs will use on a node."""
    shown = subprocess.run(
        ["scontrol", "show", "config"], env=cluster.env(), capture_output=True, text=True, check=True, timeout=20
    )
    next_job = int(re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", shown.stdout)[1])  # type: ignore[index]
    name_of_cluster = re.search(r"ClusterName\s*=\s*(\S+)", shown.stdout)[1]  # type: ignore[index]
    names = []
    for job in range(next_job, next_job + JOBS):
        for step in range(STEPS):
            environ = {
                "SLURM_CLUSTER_NAME": name_of_cluster,
                "SLURM_JOB_ID": str(job),
                "SLURM_STEP_ID": str(step),
                "SLURMD_NODENAME": node,
            }
            name = socket_name(f"slurm-{name_of_cluster}-{job}.{step}", node, environ)
            assert name is not None
            names.append(name.decode().removeprefix("\0"))
    return names


def run_among(
    place: Place, cluster: Any, mode: str, manner: str, points: Sequence[Standpoint]
) -> tuple[float, list[str]]:
    """Run while another user squats at these places: the seconds until all is ready, and the lines that speak of it."""
    with contextlib.ExitStack() as stack:
        for point in points:
            names = json.dumps(names_of_next_jobs(cluster, point.name))
            stack.enter_context(stranger(point, manner, code=SQUATTER, stdin=names))
        command, env = launcher(mode, cluster)
        began = time.monotonic()
        run = Held(place, *command, env=env)
        try:
            told = run.told(40)
            seconds = time.monotonic() - began
            result = run.finish()
        finally:
            run.end()
    assert result.rc == 0, str(result)
    said = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert said == [f"RESULT {json.dumps([328350, len(told['workers'])])}"], str(result)
    assert "Traceback" not in result.stderr, str(result)
    place.assert_nothing_left(result=result)
    return seconds, [line for line in result.stderr.splitlines() if SAID.search(line)]


def nodes_of(cluster: Any) -> list[Standpoint]:
    return [point for point in standpoints(cluster) if point.name in cluster.node_names]


# Each manner, and the worst of them, a `connect` that would wait for ever, wherever ranks come from.
@pytest.mark.parametrize(
    ("mode", "manner"),
    [*(("srun", manner) for manner in MANNERS), ("allocation", "full backlog"), (MPIRUN, "full backlog")],
)
def test_squatters_on_all_nodes_cost_three_seconds_and_one_line(
    slurm_place: Place, cluster: Any, mode: str, manner: str
) -> None:
    """Whatever another user does with the names on all nodes, the run is ready at most 3 s later, and right."""
    undisturbed, nothing = run_among(slurm_place, cluster, mode, manner, [])
    assert nothing == []
    seconds, said = run_among(slurm_place, cluster, mode, manner, nodes_of(cluster))
    assert seconds < undisturbed + COST + SLACK, f"ready after {seconds:.1f} s, undisturbed after {undisturbed:.1f} s"
    assert len(said) == 1, f"one line names the fact, the first node that has noticed: {said}"


@pytest.mark.parametrize(
    ("place_in_run", "manner"), [(0, "accepts and says nothing"), (1, "accepts and says nothing"), (1, "never listens")]
)
def test_a_squatter_on_one_node_is_named_in_one_line(
    slurm_place: Place, cluster: Any, place_in_run: int, manner: str
) -> None:
    """One line says which node it is, and who: be it the node of the scheduler or another one."""
    node = nodes_of(cluster)[place_in_run]
    _, said = run_among(slurm_place, cluster, "srun", manner, [node])
    assert len(said) == 1, said
    assert re.search(rf"\b{node.name}\b", said[0]), said
    if manner == "accepts and says nothing":
        # Who answers tells the kernel who they are.
        assert str(NOBODY) in said[0], said
