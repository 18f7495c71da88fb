"""Another user opens thousands of connections to the coordinator and the scheduler of a run: it is hardly later, and right."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from held_runs import Held
from listening import Listening
from run_helpers import Place, eventually
from strangers import LOOPBACK, Standpoint, flooding, standpoints

pytestmark = pytest.mark.slurm

CONNECTIONS = 2000
# So many seconds may a flood cost at the start, and at the end; and so many more on a machine that does other things, the
# flood itself among them.
COST, SLACK = 2.0, 4.0
# Of two nodes the first has rank 0 and the client, and no worker: what listens there are coordinator and scheduler.
PORTS = 2


@dataclass(frozen=True)
class Seconds:
    """How long a run took from the moment when the last rank came, and from the end of its work's wait."""

    ready: float
    end: float


def ports_of_rank_0(run: Held, head: Standpoint) -> list[Listening]:
    """What the coordinator and the scheduler listen on; nothing as long as one of them does not listen yet."""
    found = [
        one
        for one in run.sockets()
        if one.family == "tcp" and one.address != LOOPBACK and one.namespace == head.namespace
    ]
    return found if len(found) == PORTS else []


@contextlib.contextmanager
def flooded(ports: Sequence[Listening], point: Standpoint, address: str, kind: str) -> Iterator[None]:
    """Flood all these ports for as long as the block lasts; of no kind there is no flood."""
    with contextlib.ExitStack() as floods:
        for one in ports if kind else ():
            floods.enter_context(flooding(point, address, one.port, CONNECTIONS, kind))
        yield


def run_under(place: Place, cluster: Any, kind: str) -> Seconds:
    """Run; there is a flood from before the last rank comes until all is ready, and another one while the run works."""
    node, login = cluster.node_names[0], standpoints(cluster)[0]
    head = next(point for point in standpoints(cluster) if point.name == node)
    nodes = f"--nodelist={','.join(cluster.node_names[:2])}"
    run = Held(place, "srun", "-N2", "-n4", "--ntasks-per-node=2", nodes, env={"LATE_RANK": "2"})
    (place.base / "come").unlink(missing_ok=True)
    try:
        ports = eventually(lambda: ports_of_rank_0(run, head), 40, lambda: f"{run.sockets()} {run.stderr}")
        with flooded(ports, login, head.address, kind):
            began = time.monotonic()
            (place.base / "come").touch()
            told = run.told(60)
            ready = time.monotonic() - began
        with flooded(ports, login, head.address, kind):
            began = time.monotonic()
            result = run.finish()
            end = time.monotonic() - began
    finally:
        run.end()
    assert result.rc == 0, str(result)
    said = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert said == [f"RESULT {json.dumps([328350, 2])}"], str(result)
    assert len(told["workers"]) == 2, told["workers"]
    assert "Traceback" not in result.stderr, str(result)
    assert not any("died" in line or "lost" in line for line in result.stderr.splitlines()), str(result)
    place.assert_nothing_left(result=result)
    return Seconds(ready, end)


@pytest.mark.parametrize("kind", ["idle", "half a hello", "garbage"])
def test_two_thousand_connections_to_each_port_cost_two_seconds_and_nothing_else(
    slurm_place: Place, cluster: Any, kind: str
) -> None:
    """Before the run is ready and while it works, by another user: ready and over at most 2 s later, no worker is lost."""
    undisturbed = run_under(slurm_place, cluster, "")
    disturbed = run_under(slurm_place, cluster, kind)
    assert disturbed.ready < undisturbed.ready + COST + SLACK, (disturbed, undisturbed)
    assert disturbed.end < undisturbed.end + COST + SLACK, (disturbed, undisturbed)
