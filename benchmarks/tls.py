"""What TLS costs: small tasks a second, transfer between two workers, seconds until the cluster is ready.

    python benchmarks/tls.py            # this machine, and srun -n 4 where there is a Slurm
    python benchmarks/tls.py --repeats 9 --modes local

Each repeat starts one run with security and one without, in turns, so that what else the machine does hits both alike. The
table gives medians, the spread (the quartiles), and the ratio of each pair's figures (its median, and its quartiles).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TASKS = 3000
MEGABYTES = 100
TRANSFERS = 5
LAUNCHERS = {"local": (), "srun": ("srun", "-n", "4")}
FIGURES = {
    "ready": ("seconds to ready", "lower"),
    "tasks": ("small tasks/s", "higher"),
    "transfer": ("transfer MB/s", "higher"),
}
PREFIX = "BATCHLET_DASK_CLUSTER__"


# The measured program ---------------------------------------------------------------------------------------------


def inc(x: int) -> int:
    return x + 1


def make(megabytes: int, salt: int) -> object:
    import numpy as np

    # Its pages exist before it travels.
    return np.full(megabytes * 1_000_000, salt % 251, dtype=np.uint8)


def size(data: object) -> int:
    return len(data)  # type: ignore[arg-type]


def probe() -> None:
    """Measure one run, from inside."""
    from dask.distributed import Client, wait

    from batchlet import BatchletRunner

    with BatchletRunner() as runner, Client(runner) as client:
        ready = time.time()
        client.gather(client.map(inc, range(500), pure=False))
        began = time.perf_counter()
        client.gather(client.map(inc, range(TASKS), pure=False))
        tasks = TASKS / (time.perf_counter() - began)
        source, target = list(client.scheduler_info(n_workers=-1)["workers"])[:2]
        speeds = []
        for turn in range(TRANSFERS + 1):
            data = client.submit(make, MEGABYTES, turn, workers=[source], pure=False)
            wait(data)
            began = time.perf_counter()
            assert client.submit(size, data, workers=[target], pure=False).result() == MEGABYTES * 1_000_000
            speeds.append(MEGABYTES / (time.perf_counter() - began))
            del data
        # The first one connects the two workers.
        figures = {"ready": ready, "tasks": tasks, "transfer": statistics.median(speeds[1:])}
        tls = runner.scheduler_address.startswith("tls://")
    sys.stdout.write(f"FIGURES {json.dumps({**figures, 'tls': tls})}\n")


# The measurement --------------------------------------------------------------------------------------------------


def measure(mode: str, secure: bool) -> dict[str, float]:
    """Start one run and give its figures."""
    command = [*LAUNCHERS[mode], sys.executable, str(Path(__file__).resolve()), "--probe"]
    environ = {**os.environ, f"{PREFIX}SECURITY": str(secure).lower(), "OMP_NUM_THREADS": "1"}
    if mode == "local":
        environ |= {
            f"{PREFIX}WORKERS_PER_NODE": "2",
            f"{PREFIX}THREADS_PER_WORKER": "1",
            f"{PREFIX}MEMORY_PER_WORKER": "1GiB",
        }
    with tempfile.TemporaryDirectory(prefix="tls-", dir=Path.cwd()) as folder:
        began = time.time()
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False
        )
    lines = [line.removeprefix("FIGURES ") for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or len(lines) != 1:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    figures: dict[str, float] = json.loads(lines[0])
    assert figures.pop("tls") == secure, "it was not as secure as it was to be"
    return {**figures, "ready": figures["ready"] - began}


def table(found: dict[str, list[tuple[dict[str, float], dict[str, float]]]]) -> str:
    """Write the figures of all modes; each pair is a run with security and one without."""
    lines = [f"{'':24}{'security on':>22}{'security off':>22}{'on / off':>24}"]
    for mode, pairs in found.items():
        lines.append(f"{mode}: {' '.join(LAUNCHERS[mode]) or 'two workers in one process tree'}")
        for name, (title, better) in FIGURES.items():
            on, off = ([pair[side][name] for pair in pairs] for side in (0, 1))
            ratio = [one[name] / other[name] for one, other in pairs]
            worse = statistics.median(ratio) > 1.1 if better == "lower" else statistics.median(ratio) < 1 / 1.1
            digits = 2 if name == "ready" else 0
            cells = f"{spread(on, digits):>22}{spread(off, digits):>22}{spread(ratio, 2):>24}"
            lines.append(f"  {title:22}{cells}{'  costs more than 10 %' if worse else ''}")
    return "\n".join(lines)


def spread(numbers: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="What TLS costs.")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each kind, at least 5")
    parser.add_argument("--modes", nargs="+", choices=list(LAUNCHERS), help="default: all that are possible here")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        probe()
        return
    modes = options.modes or [mode for mode in LAUNCHERS if mode == "local" or slurm_is_up()]
    found: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {mode: [] for mode in modes}
    for repeat in range(max(5, options.repeats)):
        for mode in modes:
            # The one that goes first may meet a cold machine: take turns.
            order = (True, False) if repeat % 2 else (False, True)
            pair = {secure: measure(mode, secure) for secure in order}
            found[mode].append((pair[True], pair[False]))
            sys.stderr.write(".")
            sys.stderr.flush()
    sys.stderr.write("\n")
    load = os.getloadavg()[1]
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f}, Python {platform.python_version()}; "
        f"{TASKS} tasks, {TRANSFERS} x {MEGABYTES} MB; medians of {max(5, options.repeats)} (quartiles)\n{table(found)}"
    )


def slurm_is_up() -> bool:
    if shutil.which("sinfo") is None:
        return False
    shown = subprocess.run(["sinfo", "--noheader"], capture_output=True, check=False, timeout=30)
    return shown.returncode == 0 and (b"idle" in shown.stdout or b"mix" in shown.stdout)


if __name__ == "__main__":
    main()
