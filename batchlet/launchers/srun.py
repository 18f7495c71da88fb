"""The step that Batchlet starts itself where a script runs in a Slurm allocation without srun."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

from ..errors import LauncherError, StartTimeoutError
from ..node.bootstrap import StepOrders, command, send
from ..node.rank import Rank
from ..rendezvous.base import CoordinatorRecord
from ..rendezvous.pipe import MARK

__all__ = ["start_step"]

_PAUSE = 0.01
# What the job asked of its own tasks; srun would take these as options for our step.
_TASK_OPTIONS = (
    "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS_PER_CORE", "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_GPU", "SLURM_TASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_DISTRIBUTION", "SLURM_CPU_BIND",
    "SLURM_EXCLUSIVE", "SLURM_EXACT", "SLURM_OVERCOMMIT", "SLURM_MPI_TYPE",
    # The record comes through the step's output, and the orders through its input: neither may go anywhere else.
    "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SRUN_INPUT", "SRUN_OUTPUT", "SLURM_LABELIO",
)  # fmt: skip


def srun(nodes: int) -> list[str]:
    """Command line of the step: one task a node, with all that the job has there, beside whatever else runs in the job."""
    return [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap", "--mem=0", "--cpu-bind=none",
        "--kill-on-bad-exit=0", "--wait=0", "--quiet", "--mpi=none", *command(),
    ]  # fmt: skip


@contextlib.contextmanager
def start_step(rank: Rank) -> Iterator[CoordinatorRecord]:
    """Start the scheduler and the workers on the nodes of the allocation, and see them end.

    The step reads from a pipe that this process holds open, so that it ends with this process, whatever ends that.

    Raises
    ------
    LauncherError
        If there is no ``srun``, or it cannot start the step.
    StartTimeoutError
        If the scheduler does not come in time.
    """
    if shutil.which("srun") is None:
        raise LauncherError(
            f"This is Slurm {rank.info.job}, but srun is not on the PATH, so the other nodes cannot be used. "
            'Make it available, or use this node alone with mode="local" (BATCHLET_DASK_CLUSTER__MODE=local).'
        )
    environ = {name: value for name, value in rank.environ.items() if name not in _TASK_OPTIONS}
    # A session of its own: Ctrl-C is for the client, who then ends the step in good order.
    process = subprocess.Popen(
        srun(rank.info.world_size), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output = _Output(process.stdout)
    orders = StepOrders(
        rank.settings,
        {name: value for name, value in rank.environ.items() if name.startswith("SLURM_")},
        tuple(sys.path),
        rank.deadline - time.monotonic(),
        client_node=rank.info.node if rank.info.extra_clients else None,
    )
    try:
        with contextlib.suppress(BrokenPipeError):
            send(process.stdin, orders)
        record = _await_record(process, output, rank)
        with contextlib.suppress(BrokenPipeError):
            send(process.stdin, record)
        yield record
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        _end(process, rank.settings.stop_timeout)
        output.join()


def _await_record(process: subprocess.Popen[bytes], output: _Output, rank: Rank) -> CoordinatorRecord:
    while output.record is None:
        if process.poll() is not None:
            raise LauncherError(
                f"srun could not start the cluster's step in Slurm {rank.info.job} (exit code {process.returncode}); its own "
                'message is above. To use this node alone: mode="local" (BATCHLET_DASK_CLUSTER__MODE=local).'
            )
        if time.monotonic() > rank.deadline:
            raise StartTimeoutError(
                f"The cluster's step in Slurm {rank.info.job} did not start within {rank.settings.start_timeout:g} s "
                "(start_timeout). Are the job's CPUs or memory taken by another step?"
            )
        time.sleep(_PAUSE)
    return output.record


def _end(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait for srun, and end it if it does not end by itself; srun passes the signal on to its tasks."""
    for end in (None, process.terminate, process.kill):
        if end is not None:
            end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
            return


class _Output:
    """What the step prints: the record, and then whatever the user's tasks print."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.record: CoordinatorRecord | None = None
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="batchlet-step-output", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(1.0)

    def _read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            # Wherever it stands in its line, it holds the run's secret, which is never to be printed.
            _, mark, record = line.partition(MARK.encode())
            if mark:
                self.record = self.record or CoordinatorRecord.from_json(record.decode())
            else:
                with contextlib.suppress(OSError):
                    os.write(sys.stdout.fileno(), line)
