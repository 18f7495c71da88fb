"""Runs that stand still to be attacked: their processes, what they listen on, their end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from listening import Listening, sockets_of
from run_helpers import Place, Result, environ_of, poll

HERE = Path(__file__).parent
HELD = HERE / "workloads" / "held.py"
PREFIX = "BATCHLET_DASK_CLUSTER__"
# The launchers' own processes: what they listen on is not ours to guard, and they are guarded by their own means.
LAUNCHERS = (
    "srun", "salloc", "slurmstepd", "mpirun", "prterun", "prted", "orted", "mpiexec", "hydra", "hydra_pmi_proxy",
)  # fmt: skip


class Held:
    """A run of workloads/held.py (or another script with these arguments) under way."""

    def __init__(
        self,
        place: Place,
        *launcher: str,
        env: Mapping[str, str] | None = None,
        script: Path = HELD,
        argv: Sequence[str] = (),
    ) -> None:
        self.place = place
        self.base = Path(place.base)
        self.began = time.time()
        self._before = place.files()
        self._told: dict[str, Any] | None = None
        self._jobs: set[str] = set()
        for name in ("told.json", "go-on", "out", "err"):
            (self.base / name).unlink(missing_ok=True)
        with (self.base / "out").open("wb") as out, (self.base / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*launcher, sys.executable, str(script), str(self.base), *argv],
                cwd=place.cwd,
                env={**place.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        return (self.base / "err").read_text()

    @property
    def stdout(self) -> str:
        return (self.base / "out").read_text()

    def told(self, seconds: float = 60) -> dict[str, Any]:
        """What the script says about its run; its file is removed, so that no search finds it."""
        if self._told is None:
            path = self.base / "told.json"
            self.wait(path.exists, seconds, "the run did not come up")
            self._told = json.loads(path.read_text())
            path.unlink()
        return self._told

    def wait(self, condition: Any, seconds: float, what: str) -> None:
        """Wait while the run goes on."""
        poll(lambda: condition() or self.process.poll() is not None, seconds)
        if not condition():
            self.end()
            raise AssertionError(f"{what}: {self.result()}")

    def beside(self, *command: str) -> None:
        """Start something else with the same files and variables, which ends with the run."""
        subprocess.Popen(
            command, cwd=self.place.cwd, env=self.place.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def result(self) -> Result:
        return Result(self.process.poll() or 0, self.stdout, self.stderr, time.time() - self.began)

    def finish(self, seconds: float = 30) -> Result:
        """Let the script go on, and see it end well."""
        (self.base / "go-on").touch()
        return self.ended(seconds)

    def ended(self, seconds: float = 30) -> Result:
        """Wait for the end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {seconds} s: {self.result()}") from None
        return self.result()

    def end(self) -> None:
        """End it, whatever it does, and its job: that of a salloc which was killed would go on."""
        self.processes()
        self.place.kill_processes()
        if self._jobs:
            cancel = ["scancel", "--quiet", *self._jobs]
            subprocess.run(cancel, env=self.place.environ, check=False, timeout=30, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        if self.process.poll() is None:
            if self.place._on_timeout is not None:
                self.place._on_timeout()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def processes(self, *, launchers: bool = False) -> list[psutil.Process]:
        """The processes of the run, and those of its launcher if wanted."""
        found = []
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                # Read once: while a process becomes a shell, it has no environment for a moment.
                self._jobs |= {job for job in [environ_of(process).get("SLURM_JOB_ID")] if job}
                if launchers or not process.name().startswith(LAUNCHERS):
                    found.append(process)
        return found

    def sockets(self) -> list[Listening]:
        """All sockets on which the run's processes listen."""
        found: dict[Any, Listening] = {}
        ours = {process.pid for process in self.processes()}
        inherited = set()
        for process in self.processes(launchers=True):
            with contextlib.suppress(OSError, psutil.Error):
                for one in sockets_of(process):
                    if process.pid in ours:
                        found[one.key] = one
                    else:
                        # salloc leaves what it listens on open in the command that it starts.
                        inherited.add(one.key)
        return [one for key, one in found.items() if key not in inherited]


@dataclass(frozen=True)
class Batch:
    """A batch job that has run."""

    lives: list[dict[str, Any]]
    output: str
    readable: bool
    notes: dict[str, tuple[int, str]]  # the file for the owner alone, during the last life: mode and text
    left: list[str]


def batch(cluster: Any, *, launcher: str, requeue: bool) -> Batch:
    """Run a batch job to its end, and once more."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    script = place.base / "job.sh"
    script.write_text(f'#!/bin/sh\n{launcher} "$@"\n')
    script.chmod(0o755)
    run = Held(place, "sbatch", "--wait", "--requeue", "--output=../job.out", "-N2", "-n4", str(script))
    output = place.base / "job.out"
    try:
        lives = [run.told()]
        if requeue:
            job = lives[0]["run_id"].rsplit("-", 1)[1].partition(".")[0]
            subprocess.run(["scontrol", "requeue", job], env=place.environ, check=True, timeout=20)
            run._told = None
            lives.append(run.told(90))
        notes = {path: (path.stat().st_mode & 0o777, path.read_text()) for path in place.cwd.glob(".batchlet/*")}
        (run.base / "go-on").touch()
        # `sbatch --wait` itself looks only now and then.
        run.wait(lambda: "batchlet: done" in output.read_text(), 30, "the job did not end well")
        shown = {str(path.relative_to(place.cwd)): note for path, note in notes.items()}
        # The client's last line comes before rank 0 has ended.
        poll(lambda: not list(place.cwd.rglob("*")), 10)
        left = [path.name for path in place.cwd.rglob("*")]
        return Batch(lives, output.read_text(), bool(output.stat().st_mode & 0o044), shown, left)
    finally:
        run.end()
        place.close()
