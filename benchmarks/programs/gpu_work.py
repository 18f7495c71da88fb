"""What workers with GPUs do, with CuPy and cuDF; on CPUs the same with NumPy and pandas. `BENCHMARK_ARRAY` says which.

Light to import, as work.py is.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from typing import Any

Figures = dict[str, float]

#: Arrays that travel and their size in MB; rows of each part, parts of each worker, and different keys.
FULL = {"transfers": 7, "megabytes": 256, "rows": 20_000_000, "parts": 4, "keys": 10_000, "turns": 5}
QUICK = {"transfers": 1, "megabytes": 4, "rows": 10_000, "parts": 2, "keys": 10, "turns": 1}
FRAMES = {"cupy": "cudf", "numpy": "pandas"}


def sizes() -> dict[str, int]:
    return QUICK if os.environ["BENCHMARK_SCOPE"] == "quick" else FULL


def array() -> str:
    return os.environ["BENCHMARK_ARRAY"]


def done(result: Any, name: str) -> Any:
    """Wait for the device: CuPy returns before it has computed."""
    if name == "cupy":
        import cupy

        cupy.cuda.get_current_stream().synchronize()
    return result


def make(size: int, salt: int, name: str) -> Any:
    module = importlib.import_module(name)
    return done(module.full(size, salt % 251, dtype=module.uint8), name)


def arrived(data: Any, name: str) -> int:
    """Read all of it where it has come to, so that it is there."""
    return int(done(data.max(), name)) * len(data)


def device_transfer(client: Any, _: object) -> Figures:
    """MB/s from one worker's device to another's; the median of several arrays."""
    from distributed import wait

    wanted, name = sizes(), array()
    size = wanted["megabytes"] * 1_000_000
    source, target, *_ = sorted(client.scheduler_info(n_workers=-1)["workers"])
    speeds = []
    # The first one connects the two.
    for turn in range(1, wanted["transfers"] + 2):
        data = client.submit(make, size, turn, name, workers=[source], pure=False)
        wait(data)
        began = time.perf_counter()
        if client.submit(arrived, data, name, workers=[target], pure=False).result() != size * turn:
            raise AssertionError("something else has arrived")
        speeds.append(wanted["megabytes"] / (time.perf_counter() - began))
        del data
    return {"device_transfer": statistics.median(speeds[1:])}


def rows_of(part: int, rows: int, keys: int, name: str) -> Any:
    module = importlib.import_module(name)
    numbers = module.random.RandomState(part)
    return done((numbers.randint(0, keys, rows), numbers.random_sample(rows)), name)


def sums(part: Any, keys: int, name: str) -> Any:
    module = importlib.import_module(name)
    return done(module.bincount(part[0], weights=part[1], minlength=keys), name)


def added(parts: list[Any], name: str) -> Any:
    return done(sum(parts[1:], parts[0]), name)


def total(sums: Any) -> float:
    return float(sums.sum())


def frame_of(part: Any, name: str) -> Any:
    return importlib.import_module(FRAMES[name]).DataFrame({"key": part[0], "value": part[1]})


def grouped(frame: Any, name: str) -> Any:
    return done(frame.groupby("key").sum(), name)


def joined(frames: list[Any], name: str) -> Any:
    return done(importlib.import_module(FRAMES[name]).concat(frames).groupby(level=0).sum(), name)


def total_of_frame(frame: Any) -> float:
    return float(frame["value"].sum())


def group_by(client: Any, _: object) -> Figures:
    """Seconds for sums by key: of each part where it lies, and those of all parts added up on one worker.

    Of arrays, and of frames where that library is installed.
    """
    from distributed import wait

    wanted, name = sizes(), array()
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    parts = [
        client.submit(
            rows_of, number, wanted["rows"], wanted["keys"], name, workers=[workers[number % len(workers)]], pure=False
        )
        for number in range(wanted["parts"] * len(workers))
    ]
    wait(parts)

    def of_arrays() -> float:
        by_part = client.map(sums, parts, keys=wanted["keys"], name=name, pure=False)
        return float(client.submit(total, client.submit(added, by_part, name, pure=False), pure=False).result())

    expected, found = of_arrays(), {"group_by": _median(of_arrays, wanted["turns"])}
    if client.submit(_has, FRAMES[name], pure=False).result():
        frames = client.map(frame_of, parts, name=name, pure=False)
        wait(frames)

        def of_frames() -> float:
            by_part = client.map(grouped, frames, name=name, pure=False)
            return float(
                client.submit(total_of_frame, client.submit(joined, by_part, name, pure=False), pure=False).result()
            )

        if abs(of_frames() - expected) > 1e-6 * expected:
            raise AssertionError("frames and arrays have other sums")
        found["group_by_frame"] = _median(of_frames, wanted["turns"])
    return found


def _has(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _median(once: Any, turns: int) -> float:
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


WORKS = {"device_transfer": device_transfer, "group_by": group_by}
