"""Programs that submit jobs to the test Slurm, and what they leave."""

from __future__ import annotations

import shutil
import sys

from cluster_slurm import SlurmCluster
from run_helpers import Place, Result, eventually

# What the scripts begin with. The login node has its own name for the network that all nodes share.
HEAD = """
import json, os, signal, subprocess, sys, threading, time
from batchlet import BatchletCluster

def made(jobs=0, **options):
    return BatchletCluster("slurm", jobs=jobs, scheduler_options={"interface": os.environ["LOGIN_INTERFACE"]},
                           **{"cores": 2, "memory": "600MiB", "workers_per_node": 2, **options})

def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, [str(job) for job in cluster.jobs]
        time.sleep(0.05)

def states():
    return sorted(job.state for job in cluster.jobs)
"""


class Login:
    """The login node of the test Slurm."""

    def __init__(self, cluster: SlurmCluster, place: Place) -> None:
        self.place = place
        self.environ = {"LOGIN_INTERFACE": f"slurm{cluster.instance}"}

    def jobs(self) -> str:
        """The jobs that there are."""
        return self.place.run_only("squeue", "--noheader", "--format=%i %T %r").stdout.strip()

    def assert_nothing_left(self, result: Result, seconds: float = 30) -> None:
        """Fail if in so many seconds a job, a file or a process is still there."""
        eventually(lambda: not self.jobs(), seconds, lambda: f"jobs are left: {self.jobs()}\n{result}", pause=0.2)
        eventually(
            lambda: not self.place.processes(), seconds, lambda: f"{self.place.processes()}\n{result}", pause=0.2
        )
        self.place.assert_nothing_left(set(), result)

    def run(self, script: str, *argv: str, timeout: float = 60, swept: bool = False) -> Result:
        """Run a script to its end; after it nothing may be left, but for scratch that the next job sweeps away."""
        result = self.place.run_only(
            sys.executable,
            self.place.script(HEAD + script),
            *argv,
            env=self.environ,
            timeout=timeout,
        )
        if swept:
            for scratch in self.place.tmp.glob("batchlet-*"):
                shutil.rmtree(scratch)
        self.assert_nothing_left(result)
        return result
