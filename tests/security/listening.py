"""What a process listens on: TCP, UDP and Unix sockets, as the kernel lists them."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Listening:
    """A socket that somebody listens on."""

    family: str
    namespace: str
    address: str
    port: int
    who: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.family, self.namespace, self.address, self.port


def sockets_of(process: psutil.Process) -> Iterator[Listening]:
    root = Path("/proc", str(process.pid))
    inodes = set()
    for entry in (root / "fd").iterdir():
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
            if match:
                inodes.add(match[1])
    namespace = str((root / "ns/net").readlink())
    who = " ".join(process.cmdline())[:80]
    for family, listens in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in (root / "net" / family).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == listens:
                host, port = fields[1].split(":")
                address = ".".join(str(byte) for byte in struct.pack("<I", int(host, 16))) if len(host) == 8 else host
                yield Listening(family, namespace, address, int(port, 16), who)
    for line in (root / "net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        # Flag 0x10000: it listens. Type 2: datagrams, which need no connection.
        if fields[6] in inodes and (int(fields[3], 16) & 0x10000 or (fields[4] == "0002" and len(fields) > 7)):
            yield Listening("unix", namespace, fields[7] if len(fields) > 7 else "", 0, who)
