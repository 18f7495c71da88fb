"""Control groups, version 1 or 2, as far as the test cluster and its clean-up need them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


class Cgroups:
    """The machine's control groups, version 1 or 2, as far as Slurm and the clean-up need them."""

    def __init__(self) -> None:
        self.v1: dict[str, Path] = {}
        self.v2: Path | None = None
        mounts = Path("/proc/self/mountinfo")
        for line in mounts.read_text().splitlines() if mounts.exists() else []:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(maxsplit=2)
            mount_point = Path(left.split()[4])
            if kind == "cgroup":
                self.v1.update((option, mount_point) for option in options.split(","))
            elif kind == "cgroup2" and self.v2 is None:
                self.v2 = mount_point
        # A machine may have both; the one that holds the memory controller counts.
        self.is_v1 = "memory" in self.v1

    @property
    def has_memory(self) -> bool:
        return self.is_v1 or (self.v2 is not None and "memory" in self._v2_controllers())

    @property
    def has_swap(self) -> bool:
        """Whether swap can be limited too."""
        if self.is_v1:
            return (self.v1["memory"] / "memory.memsw.limit_in_bytes").exists()
        return self.has_memory

    @property
    def slurm_settings(self) -> dict[str, object]:
        if self.is_v1:
            return {"CgroupPlugin": "cgroup/v1", "CgroupMountpoint": self.v1["memory"].parent}
        # The scopes are made by hand: there may be no systemd, and a test cluster should not be one of its units.
        return {"CgroupPlugin": "cgroup/v2", "IgnoreSystemd": "yes", "EnableControllers": "yes"}

    def unavailable_reason(self) -> str | None:
        names = ("freezer", "memory", "cpuset", "cpuacct")
        for root in [self.v1.get(name) for name in names] if self.is_v1 else [self.v2]:
            if root is None:
                return f"no cgroup hierarchy is mounted for each of {', '.join(names)}"
            probe = root / f"slurm-test-probe-{os.getpid()}"
            try:
                probe.mkdir()
                probe.rmdir()
            except OSError as error:
                return f"the cgroups under {root} cannot be written: {error.strerror}"
        return None

    def of(self, nodes: re.Pattern[str]) -> list[Path]:
        """List the topmost cgroups of the slurmd whose node names match."""
        found = [
            path
            for root in sorted(set(self.v1.values()))
            for path in root.glob("slurm_*")
            if nodes.fullmatch(path.name.removeprefix("slurm_"))
        ]
        if self.v2 is not None:
            found += [
                path
                for path in self.v2.glob("system.slice/*_slurmstepd.scope")
                if nodes.fullmatch(path.name.removesuffix("_slurmstepd.scope"))
            ]
        return found

    def processes(self, nodes: re.Pattern[str]) -> set[int]:
        pids: set[int] = set()
        for top in self.of(nodes):
            for path in top.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    pids.update(map(int, path.read_text().split()))
        # 0 stands for a process outside our PID namespace: not ours to end. A zombie has ended already.
        return {pid for pid in pids - {0} if has_namespaces(pid)}

    def thaw(self, nodes: re.Pattern[str]) -> None:
        for top in self.of(nodes):
            for name, state in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                for path in top.rglob(name):
                    with contextlib.suppress(OSError):
                        path.write_text(state)

    def remove(self, nodes: re.Pattern[str]) -> list[Path]:
        """Remove the cgroups; return those that are still there."""
        for top in self.of(nodes):
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        return self.of(nodes)

    def _v2_controllers(self) -> list[str]:
        assert self.v2 is not None
        return (self.v2 / "cgroup.controllers").read_text().split()


def has_namespaces(pid: int) -> bool:
    """Whether a process is there and no zombie, which has no namespaces any more."""
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/ns/net").readlink())
    return False
