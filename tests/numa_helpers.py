"""What the tests of bound workers share: a script that tells where its workers run, and a machine with two NUMA domains.

This machine may have one domain only. To the processes of a test it is described as one with two, by files that are mounted
over those of the kernel, in a mount namespace of their own.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_helpers import unavailable

from batchlet.topology import describe_cpus

WHERE = """
import json, os, subprocess, sys

def where(dask_worker):
    import os, subprocess, sys
    threads = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
    child = [sys.executable, "-c", "import os; print(*sorted(os.sched_getaffinity(0)))"]
    return {
        "name": dask_worker.name,
        "node": os.environ.get("SLURMD_NODENAME"),
        "cpus": sorted(os.sched_getaffinity(0)),
        "all_threads_there": all(cpus == threads[0] for cpus in threads),
        "child": [int(word) for word in subprocess.check_output(child, text=True).split()],
    }

if __name__ == "__main__":
    from batchlet import BatchletRunner
    from dask.distributed import Client
    with BatchletRunner() as runner, Client(runner) as client:
        first = list(client.run(where).values())
        client.restart()
        print("RESULT " + json.dumps({
            "workers": first,
            "again": list(client.run(where).values()),
            "planned": [list(worker.cpus) for worker in runner.plan.workers],
            "client": sorted(os.sched_getaffinity(0)),
        }))
"""

_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two_cpus = pytest.mark.skipif(len(_CPUS) < 2, reason="one CPU cannot be shared out")


def assert_apart(found: dict[str, Any], nodes: int = 1) -> None:
    """No two workers of a node share a CPU, whatever they start runs there too, and the plan has said so."""
    for workers in (found["workers"], found["again"]):
        assert len(workers) == 2 * nodes
        for node in {worker["node"] for worker in workers}:
            one, other = (worker for worker in workers if worker["node"] == node)
            assert one["cpus"], found
            assert set(one["cpus"]).isdisjoint(other["cpus"]), found
            assert {*one["cpus"], *other["cpus"]} <= set(found["client"]), found
        assert all(worker["all_threads_there"] for worker in workers), found
        assert all(worker["child"] == worker["cpus"] for worker in workers), found
    assert sorted(worker["cpus"] for worker in found["again"]) == sorted(found["planned"] * nodes), found


def described_as_two_domains(place: Path) -> list[str]:
    """Give the beginning of a command that sees this machine as one with two NUMA domains, half of its CPUs in each."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        unavailable("to describe this machine otherwise needs root and unshare")
    half = len(_CPUS) // 2
    for number, cpus in enumerate((_CPUS[:half], _CPUS[half:])):
        node = place / "described" / f"node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(describe_cpus(cpus) + "\n")
    mount = f'mount --bind {shlex.quote(str(place / "described"))} /sys/devices/system/node && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, "sh"]
