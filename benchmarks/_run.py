"""One measured run, from its start to the end of all that it has started."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import _processes
from _report import say
from _tools import HERE, Shape, Tool, search_path

if TYPE_CHECKING:
    from cluster_slurm import SlurmCluster

# A launcher, or a Dask, that surrounds the benchmark must not reach what it measures.
FOREIGN = ("SLURM_", "SRUN_", "SALLOC_", "PMI_", "PMIX_", "OMPI_", "PRTE_", "DASK_", "BATCHLET_", "BENCHMARK_")
MAX_RANKS_PER_NODE = 16
MIB_PER_NODE = 16 * 1024


class RunError(Exception):
    """A run that gave no figures; the message is a line that says why."""


def unavailable_slurm(instance: int) -> str | None:
    """Say why this machine cannot have a test Slurm, or return None."""
    return _cluster(instance).unavailable_reason()


@contextlib.contextmanager
def test_slurm(instance: int, cpus: int = MAX_RANKS_PER_NODE) -> Iterator[dict[str, str]]:  # noqa: PT028 - it is no test
    """Have a throwaway Slurm of four nodes; one that is up already is used as it is, and stays.

    Parameters
    ----------
    instance
        Its number on this machine.
    cpus
        CPUs of each node, as Slurm believes.

    Yields
    ------
    dict of str to str
        The environment that speaks to it.
    """
    cluster = _cluster(instance, cpus)
    built = False
    try:
        if not cluster.is_up:
            built = cluster.up()
        yield cluster.env()
    finally:
        if built:
            cluster.down()


def _cluster(instance: int, cpus: int = MAX_RANKS_PER_NODE) -> SlurmCluster:
    tests = str(HERE.parent / "tests" / "slurm")
    if tests not in sys.path:
        sys.path.append(tests)
    from cluster_slurm import SlurmCluster

    return SlurmCluster(instance, 4, cpus, MIB_PER_NODE)


def run(
    tool: Tool,
    shape: Shape,
    works: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    *,
    timeout: float = 120.0,
    quick: bool = False,
    workers: int | None = None,
) -> dict[str, float]:
    """Start a run, and end it.

    Parameters
    ----------
    tool, shape
        What to run.
    works
        The names of what its client does, of `work.WORKS`.
    environ
        The environment that speaks to the Slurm.
    timeout
        Seconds that it may take.
    quick
        Whether the works are tiny ones.
    workers
        How many there will be, if not as `tool.workers` says.

    Returns
    -------
    dict of str to float
        "ready" and "end" in seconds, and the figures of the works; memory in bytes.

    Raises
    ------
    RunError
        If it fails, takes too long, or is not as secure as it should be.
    """
    mark = f"bench-{secrets.token_hex(6)}"
    # Short names: sockets live in there.
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    (folder / "tmp").mkdir()
    workers = tool.workers(shape) if workers is None else workers
    variables = {
        **{name: value for name, value in environ.items() if not name.startswith(FOREIGN) or name == "SLURM_CONF"},
        "PATH": search_path(),
        "TMPDIR": str(folder / "tmp"),
        _processes.MARK: mark,
        "BENCHMARK_FOLDER": str(folder),
        "BENCHMARK_SCOPE": "quick" if quick else "full",
        "BENCHMARK_WORKERS": str(workers),
        "BENCHMARK_WORKS": " ".join(works),
        "BENCHMARK_THREADS": str(shape.cpus),
        "BENCHMARK_CPUS": str(shape.all_cpus),
        **tool.environ(shape),
    }
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                tool.command(shape, mark, folder / "times.json"),
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            read = _watch(process, folder, mark, timeout)
        finally:
            _end(process, mark, variables)
        return _figures(folder, read, secure=tool.secure, code=process.returncode)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], folder: Path, mark: str, timeout: float) -> dict[str, float]:
    """Wait for the end; read the memory when the client asks for it."""
    read: dict[str, float] = {}
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            return read
        if time.monotonic() > deadline:
            stage = "before" if not (folder / "figures.json").exists() else "after"
            raise RunError(f"not over after {timeout:g} s ({stage} the end of the client's work){_last(folder)}")
        for asked in folder.glob("read-*"):
            name = asked.name.removeprefix("read-")
            if f"memory-{name}" not in read:
                read[f"memory-{name}"], read["processes"] = _processes.memory(mark)
                (folder / f"was-read-{name}").touch()


def _end(process: subprocess.Popen[bytes], job: str, environ: Mapping[str, str]) -> None:
    """End all that was started: the job by way of Slurm, the rest by process id."""
    running = process.poll() is None
    jobs = _jobs(job, environ) if running else []
    if jobs:
        _slurm(environ, "scancel", "--full", "--signal=KILL", *jobs)
        _slurm(environ, "scancel", *jobs)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    # A launcher's helpers may outlive it by a moment.
    left = _processes.end(job, grace=0.0 if running else 2.0)
    process.wait(10)
    deadline = time.monotonic() + 15
    while jobs and time.monotonic() < deadline:
        # Its nodes are still being cleaned up.
        time.sleep(0.1)
        jobs = _jobs(job, environ)
    if left and not running:
        say(f"{left} processes were left, and have been killed")


def _jobs(name: str, environ: Mapping[str, str]) -> list[str]:
    """List the numbers of the jobs of this name; none where there is no Slurm."""
    if "SLURM_CONF" not in environ:
        return []
    return _slurm(environ, "squeue", "--noheader", "--format=%A", f"--name={name}").split()


def _slurm(environ: Mapping[str, str], *command: str) -> str:
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _figures(folder: Path, read: dict[str, float], *, secure: bool, code: int) -> dict[str, float]:
    """Put together what the client, the launcher and we have noted."""
    try:
        client = json.loads((folder / "figures.json").read_text())
        times = json.loads((folder / "times.json").read_text())
    except FileNotFoundError:
        raise RunError(f"exit code {code}, and no figures{_last(folder)}") from None
    if code:
        raise RunError(f"exit code {code}{_last(folder)}")
    if client["tls"] != secure:
        raise RunError("it was encrypted" if client["tls"] else "it was not encrypted")
    found = {name: value for name, value in client.items() if name not in ("finished", "tls")}
    return {
        **found,
        **read,
        "ready": client["ready"] - times["began"],
        "end": times["ended"] - client["finished"],
    }


def _last(folder: Path) -> str:
    """Quote the last line of the log that may be the cause."""
    lines = [line.strip() for line in (folder / "log").read_text(errors="replace").splitlines() if line.strip()]
    causes = [line for line in lines if "rror" in line and not line.startswith(("salloc:", "slurmstepd:"))]
    line = (causes or lines or [""])[-1]
    return f": {line[:160]}" if line else ""
