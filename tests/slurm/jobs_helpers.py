"""Programs that submit jobs to the test Slurm, and what they leave."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping

import psutil
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
"""


def on_node(node: str) -> list[str]:
    """Begin a command that runs on a node of the test Slurm, with the files that its jobs see."""
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if process.info["name"] == "slurmd" and re.search(rf"-N {node}\b", command):
            return ["nsenter", f"--target={process.pid}", "--mount", "--net", "--uts"]
    raise LookupError(f"{node} has no slurmd")


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

    def command(self, script: str, *argv: str) -> list[str]:
        """Give the command that runs a script."""
        return [sys.executable, self.place.script(HEAD + script), *argv]

    def run(
        self,
        script: str,
        *argv: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        swept: bool = False,
    ) -> Result:
        """Run a script to its end; after it nothing may be left, but for scratch that the next job sweeps away."""
        result = self.place.run_only(*self.command(script, *argv), env={**self.environ, **(env or {})}, timeout=timeout)
        if swept:
            for scratch in self.place.tmp.glob("batchlet-*"):
                shutil.rmtree(scratch)
        self.assert_nothing_left(result)
        return result
