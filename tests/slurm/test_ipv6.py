"""Nodes that reach each other by IPv6 alone, on a network of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import in_node, slurmd_of
from run_helpers import Place, Run, json_line

pytestmark = pytest.mark.slurm

INTERFACE = "ib0"
PREFIX = "fd00:9c"
SCRIPT = """
import json, socket, sys, urllib.request
from batchlet import BatchletRunner
from dask.distributed import Client

with BatchletRunner(%s) as runner, Client(runner) as client:
    parts = client.map(lambda number: bytes(100_000 + number), range(40), pure=False)
    # What one worker has made is fetched by another one.
    total = client.submit(lambda *parts: sum(map(len, parts)), *parts).result()
    sys.stdout.write("RESULT " + json.dumps({
        "total": total,
        "addresses": [runner.scheduler_address, *client.run(lambda dask_worker: dask_worker.address).values()],
        "nodes": len(set(client.run(socket.gethostname).values())),
        "dashboard": urllib.request.urlopen(runner.dashboard_link, timeout=10).status if %s else None,
        "link": runner.dashboard_link,
    }) + "\\n")
"""


@pytest.fixture(scope="module")
def nodes(cluster: SlurmCluster) -> Iterator[list[str]]:
    """Two nodes with a cable between them, on which there is no IPv4."""
    pair = sorted(cluster.node_addresses)[:2]
    first, second = (slurmd_of(node).pid for node in pair)
    cable = f"ip link add name {INTERFACE} netns {first} type veth peer name {INTERFACE} netns {second}"
    subprocess.run(cable.split(), check=True, capture_output=True, timeout=20)
    try:
        for number, node in enumerate(pair, start=1):
            in_node(node, *f"ip address add {PREFIX}::{number}/64 dev {INTERFACE} nodad".split())
            in_node(node, *f"ip link set {INTERFACE} up".split())
        yield pair
    finally:
        in_node(pair[0], "ip", "link", "delete", INTERFACE)


@pytest.mark.parametrize("security", [True, False], ids=["tls", "tcp"])
def test_a_run_by_ipv6_alone(place: Place, srun: Run, nodes: list[str], security: bool) -> None:
    """With interface= naming it all of Dask's connections and ours use that network, and tasks work."""
    script = SCRIPT % (f"interface={INTERFACE!r}, security={security}", not security)
    result = srun(f"--nodelist={','.join(nodes)}", "-N2", "-n6", "--ntasks-per-node=3", script=script)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["total"] == sum(100_000 + number for number in range(40))
    assert found["nodes"] == 2, str(result)
    scheme = "tls" if security else "tcp"
    assert len(found["addresses"]) >= 5
    assert all(address.startswith(f"{scheme}://[{PREFIX}::") for address in found["addresses"]), str(result)
    if security:
        assert found["link"].startswith("http://localhost:"), str(result)
    else:
        assert found["link"].startswith(f"http://[{PREFIX}::"), str(result)
        assert found["dashboard"] == 200
    assert len(result.errors) == 2, str(result)


def test_an_allocation_by_ipv6_alone(place: Place, nodes: list[str]) -> None:
    """A batch script without srun works there too: the client on the first node, the step on both."""
    script = place.script(SCRIPT % (f"interface={INTERFACE!r}", False))
    command = [
        "srun",
        "--overlap",
        "-N1",
        "-n1",
        f"--nodelist={nodes[0]}",
        "env",
        "--unset=SLURM_STEP_ID",
        "python",
        str(script),
    ]
    result = place.run("salloc", f"--nodelist={','.join(nodes)}", "-N2", "-n4", *command, timeout=90)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found["nodes"] == 2, str(result)
    assert all(address.startswith(f"tls://[{PREFIX}::") for address in found["addresses"]), str(result)
