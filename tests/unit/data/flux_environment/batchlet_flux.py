"""Flux for Batchlet: the tasks that `flux run` started, each of which knows exactly who shares its node.

BATCHLET_DASK_CLUSTER__MODE=flux flux run -N2 -n8 python script.py
"""

import re
import socket
import subprocess

from batchlet.environments import Environment, Grant, ProcessInfo
from batchlet.environments.base import read_int
from batchlet.errors import LauncherError

_TIMEOUT = 10.0  # seconds for Flux's broker on this node to answer


class Flux(Environment):
    """A task of a Flux job; the variables are those of flux-environment(7)."""

    name = "flux"  # what `mode` calls it, and the name of the entry point
    title = "Flux"

    def detect(self, environ):
        """Say which variable proves it; `None` if this is no task of a Flux job."""
        return f"FLUX_TASK_RANK={environ['FLUX_TASK_RANK']}" if "FLUX_TASK_RANK" in environ else None

    def process(self, environ):
        """Say who this process is, where, and beside whom."""
        rank = read_int(environ, "FLUX_TASK_RANK")
        nodes = self._node_of_each_rank(environ)
        job = environ["FLUX_JOB_ID"]
        if rank >= len(nodes):
            raise LauncherError(f"FLUX_TASK_RANK={rank} cannot be: Flux job {job} has {len(nodes)} tasks.")
        return ProcessInfo(
            mode=self.name,
            rank=rank,
            world_size=len(nodes),
            node=socket.gethostname().split(".")[0],
            nodes=len(set(nodes)),
            local_ranks=tuple(other for other, node in enumerate(nodes) if node == nodes[rank]),
            run_id="flux-" + re.sub(r"[^A-Za-z0-9]", "_", job),  # ƒ2oA8...: safe as the name of a file
            job=f"job {job}",
        )

    def grant(self, environ):
        """Say nothing: Flux binds all tasks of a node to what the job has there, and Batchlet sees the CPU mask."""
        return Grant()

    def is_first(self, environ):
        """Say what all ranks would say once."""
        return environ.get("FLUX_TASK_RANK") == "0"

    def scratch_directories(self, environ):
        """Use the directory that Flux makes and removes with the job, if there is one."""
        own = environ.get("FLUX_JOB_TMPDIR")
        return (*([own] if own else []), *super().scratch_directories(environ))

    def _node_of_each_rank(self, environ):
        """Ask Flux, as flux-job(1) describes it: the number of each task's node, one a line."""
        command = ["flux", "job", "taskmap", "--to=multiline", environ.get("FLUX_JOB_ID", "")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
            nodes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.strip()]
        except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
            raise LauncherError(
                f"Flux does not say which task is where: `{' '.join(command)}` failed: {error}."
            ) from None
        if not nodes:
            raise LauncherError(f"Flux does not say which task is where: `{' '.join(command)}` is silent.")
        return nodes
