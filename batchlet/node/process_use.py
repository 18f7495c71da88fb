"""What a process and its descendants have used: CPU time and memory, as the kernel has counted them.

The time of children that have ended counts from the moment at which their parent knows (``wait``): tasks that run programs are
seen whole. Memory is the resident set (RSS), which Dask's own limits mean too; pages that forked workers share count for each.
Their proportional set (PSS) would be smaller, but takes the kernel milliseconds for each GiB.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

__all__ = ["Use", "use_of_process"]

_LINUX = sys.platform.startswith("linux")


@dataclass(frozen=True)
class Use:
    """What a process has used, and its descendants.

    Parameters
    ----------
    cpu : float
        Seconds, user and system.
    memory : int
        Bytes, at this moment.
    peak : int
        The most that the process itself ever had.
    """

    cpu: float
    memory: int
    peak: int


def use_of_process(pid: int) -> Use | None:
    """Look at a process; `None` if it has ended."""
    return _from_proc(pid) if _LINUX else _from_psutil(pid)


def _from_proc(pid: int) -> Use | None:
    """Read /proc, see proc(5): utime, stime, cutime, cstime and rss in stat, VmHWM in status, children of all threads."""
    cpu = memory = 0
    found, left = False, [pid]
    while left:
        one = left.pop()
        try:
            fields = _read(f"/proc/{one}/stat").rpartition(b")")[2].split()
            cpu += sum(map(int, fields[11:15]))
            memory += int(fields[21])
            found = found or one == pid
            for thread in os.listdir(f"/proc/{one}/task"):  # noqa: PTH208 - a good part of what sampling costs
                left += map(int, _read(f"/proc/{one}/task/{thread}/children").split())
        except (OSError, ValueError, IndexError):
            # It ends at this very moment, or the kernel does not list children.
            continue
    if not found:
        return None
    return Use(cpu / os.sysconf("SC_CLK_TCK"), memory * os.sysconf("SC_PAGE_SIZE"), _peak(pid))


def _peak(pid: int) -> int:
    try:
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _from_psutil(pid: int) -> Use | None:
    """Ask psutil, which Dask needs anyway."""
    import psutil

    try:
        process = psutil.Process(pid)
        everyone = [process, *process.children(recursive=True)]
        times, memory = process.cpu_times(), 0
        cpu = times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        for one in everyone:
            try:
                memory += one.memory_info().rss
                if one is not process:
                    cpu += sum(one.cpu_times()[:2])
            except psutil.Error:
                continue
    except psutil.Error:
        return None
    return Use(cpu, memory, memory)
