"""Stand-ins for what a machine with NVIDIA's GPUs has, where there is none: dask-cuda, NVML's package, the driver's library."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

# What counts of dask_cuda.CUDAWorker, as of 26.10: a Nanny for each device that its process sees, resources as one text, and
# names with a number behind them where there are several.
DASK_CUDA = """
import asyncio, os
from distributed import Nanny, Worker
from distributed.core import Server

class OfDaskCuda(Worker):
    of_dask_cuda = True

class CUDAWorker(Server):
    def __init__(
        self, scheduler=None, host=None, nthreads=1, name=None, memory_limit="auto", rmm_pool_size=None, resources=None,
        enable_cudf_spill=False,
        dashboard=True, dashboard_address=":0", local_directory=None, preload=[], security=None, worker_class=None, **kwargs
    ):
        devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        preload_argv = kwargs.pop("preload_argv", [])
        assert rmm_pool_size == "1GB"
        super().__init__({})
        self.nannies = [
            Nanny(
                scheduler, host=host, nthreads=nthreads, memory_limit=memory_limit, dashboard=dashboard,
                dashboard_address=dashboard_address, local_directory=local_directory, security=security,
                resources={key: float(value) for key, value in (pair.split("=") for pair in resources.split(","))},
                name=name if len(devices) == 1 else f"{name}-{number}",
                env={"CUDA_VISIBLE_DEVICES": ",".join(devices[number:] + devices[:number])},
                worker_class=OfDaskCuda,
                **kwargs,
            )
            for number in range(len(devices))
        ]

    def __await__(self):
        return asyncio.gather(*self.nannies).__await__()

    async def close(self, timeout=5):
        await asyncio.gather(*(nanny.close(timeout=timeout) for nanny in self.nannies))
"""

# What dask-cuda asks NVML for, as of 26.10; the rest the driver does not know.
NVML = """
class NVMLError(Exception):
    pass

NVMLError_NotSupported = NVMLError_FunctionNotFound = NVMLError_DriverNotLoaded = NVMLError
NVMLError_LibraryNotFound = NVMLError_Unknown = NVMLError_NoPermission = NVMLError

class Use:
    total, used, gpu, memory = 80 << 30, 0, 0, 0

def nvmlInit(): {init}
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetHandleByUUID(uuid): return uuid
def nvmlDeviceIsMigDeviceHandle(handle): return False
def nvmlDeviceGetCpuAffinity(handle, words): return [(1 << 64) - 1] * words
def nvmlDeviceGetMemoryInfo(handle): return Use
def nvmlDeviceGetUtilizationRates(handle): return Use
def nvmlDeviceGetName(handle): return "stand-in"
def nvmlDeviceGetUUID(handle): return f"GPU-{{handle}}"

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def unknown(*_):
        raise NVMLError(name)
    return unknown
"""


CUDF = """
options = {}
set_option = options.__setitem__
"""


def stand_in(base: Path, *, driver: bool = True, dask_cuda: bool = True) -> dict[str, str]:
    """Make them in a directory, and give the variables by which a program finds them.

    Without `driver` NVML's package is there and finds none.
    """
    packages, libraries = base / "packages", base / "libraries"
    packages.mkdir(parents=True)
    libraries.mkdir()
    if dask_cuda:
        (packages / "dask_cuda").mkdir()
        (packages / "dask_cuda" / "__init__.py").write_text(DASK_CUDA)
    if dask_cuda:
        (packages / "cudf.py").write_text(CUDF)
    init = "pass" if driver else "raise NVMLError('no driver')"
    (packages / "pynvml.py").write_text(NVML.format(init=init))
    # Any library does: nothing of it is called.
    assert math.sqrt(4) == 2
    (mathematics, *_) = re.findall(r"/\S*/libm[.-]\S*", Path("/proc/self/maps").read_text())
    if driver:
        shutil.copy(mathematics, libraries / "libcuda.so.1")
    return {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(libraries)}
