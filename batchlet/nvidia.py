"""What NVIDIA's driver says of a host's GPUs, by files that it has in ``/proc``, and the CPUs near each of them.

Nothing is imported for it, and a host without the driver costs one look at a directory. Only where NVML's Python package
(``nvidia-ml-py``) is installed, as it is with dask-cuda, can GPUs be seen that are divided (MIG), and those left out that a
container or a control group forbids.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gpus import Gpus, numbered

__all__ = ["HostGpu", "driver_problem", "host_gpus", "near_cpus", "read_gpus"]

_DIRECTORY = "driver/nvidia/gpus"


@dataclass(frozen=True)
class HostGpu:
    """A GPU of this host.

    Parameters
    ----------
    uuid : str
        ``GPU-8932f937-d72c-4106-c12f-20bd9faed9f6``.
    minor : int
        Number of its device file, ``/dev/nvidia0``.
    bus : str
        Its place on the PCI bus, ``0000:3b:00.0``.
    """

    uuid: str
    minor: int
    bus: str


def read_gpus(proc: Path = Path("/proc")) -> Gpus | None:
    """Find the GPUs of this host that this process may use; `None` where NVIDIA's driver is not there."""
    if not (proc / _DIRECTORY).is_dir():
        return None
    names = _by_nvml()
    if names is not None:
        return numbered(names, "NVML")
    return numbered([gpu.uuid for gpu in host_gpus(proc)], f"/proc/{_DIRECTORY}")


def host_gpus(proc: Path = Path("/proc")) -> list[HostGpu]:
    """List the host's GPUs in the order of the bus, which is CUDA's where they are all of one kind."""
    found = []
    with contextlib.suppress(OSError):
        for place in sorted((proc / _DIRECTORY).iterdir()):
            lines = (place / "information").read_text(errors="replace").splitlines()
            facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if facts.get("GPU UUID", "").startswith("GPU-") and facts.get("Device Minor", "").isdecimal():
                found.append(HostGpu(facts["GPU UUID"], int(facts["Device Minor"]), place.name))
    return found


@functools.cache
def driver_problem() -> str | None:
    """Say why this process cannot use NVIDIA's driver, as it is installed here and as this container has it; `None` if it can.

    The driver's library for CUDA is loaded, and not yet begun to be used: processes may still be forked.
    """
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "libcuda.so.1, which comes with NVIDIA's driver, cannot be loaded"
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - no package, or no library, or no device
        return f"NVML does not work ({type(error).__name__}: {error})"
    with contextlib.suppress(Exception):
        pynvml.nvmlShutdown()
    return None


def near_cpus(name: str, root: Path = Path("/")) -> frozenset[int]:
    """Give the CPUs of the host that are near a GPU; none if that is not known.

    Parameters
    ----------
    name : str
        As ``CUDA_VISIBLE_DEVICES`` names it. An index counts the devices that this process may open: a control group, or a
        container, may forbid some.
    root : Path
        Where the kernel tells of itself.
    """
    gpus = host_gpus(root / "proc")
    if not gpus:
        return frozenset()
    if name.isdecimal():
        usable = sorted((gpu for gpu in gpus if _opens(root / f"dev/nvidia{gpu.minor}")), key=lambda gpu: gpu.minor)
        matching = usable[int(name) : int(name) + 1]
    else:
        # Both may be cut short; "MIG-GPU-8932f937.../1/0" is a part of that GPU.
        whole = name.removeprefix("MIG-").partition("/")[0]
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(whole) and whole.startswith("GPU-")]
    if len(matching) != 1:
        return frozenset()
    try:
        text = (root / "sys/bus/pci/devices" / matching[0].bus / "local_cpulist").read_text()
        return frozenset(_cpus(text))
    except (OSError, ValueError):
        return frozenset()


def _opens(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _cpus(text: str) -> list[int]:
    """Read the kernel's list of CPUs: "0-3,8" is 0, 1, 2, 3, 8."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _by_nvml() -> list[str] | None:
    """Ask NVML, where there is a Python package for it; `None` if it cannot be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no package, or no library, or no device
        return None
    try:
        return [name for number in range(pynvml.nvmlDeviceGetCount()) for name in _parts(pynvml, number)]
    except Exception:  # noqa: BLE001 - whatever the driver does not know
        return None
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _parts(pynvml: Any, number: int) -> list[str]:
    """Name a GPU, or the parts into which it is divided."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    handles = [handle]
    with contextlib.suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:
            handles = []
            for part in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(pynvml.NVMLError):
                    handles.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, part))
    names = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
