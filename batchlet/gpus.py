"""GPUs: which ones a process was granted, by the variables that launchers, batch systems and users set.

A GPU has a name in a variable: an index (``0``), the identity of a device (``GPU-8932f937-...``) or of a part of one
(``MIG-...``). An index means what the reader of the variable counts: where the batch system hides the other devices (Slurm's
``ConstrainDevices``), index 0 of two tasks are two devices. So names are compared within one process only.

The variables: CUDA's Programming Guide ("CUDA Environment Variables"), ROCm's "GPU isolation techniques", Level Zero's
"Affinity Mask"; who sets them, gres.conf(5), ``Flags``.

Nothing here reads the environment or the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

__all__ = ["CUDA_VARIABLE", "GPU_VARIABLES", "NO_GPUS", "Gpus", "granted", "numbered"]

#: Names NVIDIA's devices; where there are AMD's alone, also theirs.
CUDA_VARIABLE = "CUDA_VISIBLE_DEVICES"
_ROCR = "ROCR_VISIBLE_DEVICES"
_HIP = "HIP_VISIBLE_DEVICES"
_ORDINAL = "GPU_DEVICE_ORDINAL"
_ZE = "ZE_AFFINITY_MASK"
#: Variables that name devices, in the order in which they are believed: Slurm sets all of them, unless told what it has.
GPU_VARIABLES = (CUDA_VARIABLE, _ROCR, _HIP, _ORDINAL, _ZE)
# A device as a variable names it; Level Zero's has parts, "0.1". Whatever else stands there ends the list, as for CUDA itself:
# "", "-1", "NoDevFiles".
_DEVICE = re.compile(r"\d+(\.\d+)?|(GPU|MIG)-[0-9A-Za-z/-]+")


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a process was granted.

    Parameters
    ----------
    named : mapping of str to tuple of str
        The names of the devices in each variable, all in one order. Empty where there are none.
    source : str
        The variable or file that said so.
    counting : tuple of str
        Variables that count what another one leaves to be seen: HIP's, where ROCR's is set too.
    bound : bool, optional
        Whether they are this rank's alone, rather than those of all the ranks of the node. `None` where one rank cannot tell.
    on_node : int, optional
        How many all the ranks of the node have together, where that is known.
    """

    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    counting: tuple[str, ...] = ()
    bound: bool | None = None
    on_node: int | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """Their names in the first variable."""
        return next(iter(self.named.values()), ())

    def visible(self, own: Sequence[int], *, peers: bool) -> dict[str, str]:
        """Give the variables of a worker.

        Parameters
        ----------
        own : sequence of int
            The devices of the worker, by their positions.
        peers : bool
            Whether it sees the others too, behind its own and in turn, so that devices can reach each other.
        """
        after = own[-1] + 1
        count = len(self.devices)
        others = [number % count for number in range(after, after + count) if number % count not in own]
        order = [*own, *(others if peers else ())]
        found = {name: ",".join(devices[number] for number in order) for name, devices in self.named.items()}
        return found | {name: ",".join(map(str, range(len(order)))) for name in self.counting}

    def part(self, positions: Sequence[int]) -> Gpus:
        """Give some of them."""
        named = {name: tuple(devices[number] for number in positions) for name, devices in self.named.items()}
        return replace(self, named=named if positions else {})


#: What a process has that was granted none.
NO_GPUS = Gpus()


def granted(environ: Mapping[str, str], *, amd: bool = False) -> Gpus | None:
    """Read which GPUs the variables name; `None` if none of the variables is set.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    amd : bool
        Whether the host has AMD's GPUs and none of NVIDIA's. There CUDA's variable is another name for HIP's.
    """
    lists = {name: _devices(environ[name]) for name in GPU_VARIABLES if name in environ}
    if not lists:
        return None
    counting: list[str] = []
    if _ROCR in lists:
        # What is above ROCR counts what ROCR leaves: "0" is its first device.
        above = [name for name in (_HIP, *([CUDA_VARIABLE] if amd else ())) if environ.get(name, "").strip()]
        for name in above:
            lists[_ROCR] = _chosen(lists[_ROCR], lists[name])
        counting = [name for name in (*above, _ORDINAL) if name in lists]
    named = {name: devices for name, devices in lists.items() if devices and name not in counting}
    count = len(next(iter(named.values()), ()))
    # A variable that names another number of devices is somebody else's business.
    named = {name: devices for name, devices in named.items() if len(devices) == count}
    if not named:
        return NO_GPUS
    return Gpus(named, next(iter(named)), tuple(counting) if _ROCR in named else ())


def numbered(names: Sequence[str], source: str) -> Gpus:
    """Give GPUs that something else than a variable names, all of them for whoever is on the node."""
    return Gpus({CUDA_VARIABLE: tuple(names)}, source, bound=False) if names else NO_GPUS


def _devices(text: str) -> tuple[str, ...]:
    """Read a list of devices up to the first entry that is none; a device that stands there twice counts once."""
    found: dict[str, None] = {}
    for part in text.split(","):
        if not _DEVICE.fullmatch(part.strip()):
            break
        found[part.strip()] = None
    return tuple(found)


def _chosen(devices: tuple[str, ...], indices: tuple[str, ...]) -> tuple[str, ...]:
    """Leave those that a variable above chooses by their numbers.

    Slurm sets both to the same numbers; where these begin above 0, and so count nothing, only the lower one is meant.
    """
    if not all(index.isdecimal() and int(index) < len(devices) for index in indices):
        return devices
    return tuple(devices[int(index)] for index in indices)
