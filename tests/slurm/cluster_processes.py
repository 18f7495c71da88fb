"""Which processes are those of a test cluster, and a lock that the kernel takes back from the dead."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from cluster_commands import wait

#: Name of the environment variable by which the cluster's own daemons are known; its value is the state directory.
MARKER = "SLURM_TEST_CLUSTER_STATE"


def processes_of(state_dir: str) -> set[int]:
    """Find the daemons by their marker, and the rest by the network namespace that they are in."""
    mark = f"{MARKER}={state_dir}".encode()
    namespace_of: dict[int, Path] = {}
    marked: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        with contextlib.suppress(OSError):
            # A zombie has no namespaces any more: it drops out here.
            namespace_of[pid] = (process / "ns/net").readlink()
            if mark in (process / "environ").read_bytes().split(b"\0"):
                marked.add(pid)
    ours = {namespace_of[pid] for pid in marked} - {Path("/proc/self/ns/net").readlink()}
    return marked | {pid for pid, namespace in namespace_of.items() if namespace in ours}


@contextlib.contextmanager
def locked(name: str, seconds: float, otherwise: str) -> Iterator[None]:
    """Let one process at a time do something; a `ClusterError` that says `otherwise` if it is not one's turn in time.

    The lock is the name of an abstract socket: no file to leave behind, and the kernel takes it back from the dead.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:

        def taken() -> bool:
            try:
                holder.bind(f"\0{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

        wait(taken, seconds, lambda: otherwise)
        yield
