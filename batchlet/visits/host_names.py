"""Names of hosts for people, where a scheduler tells addresses; found out beside, since a resolver may take seconds."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterable

__all__ = ["HostNames"]

_PAUSE = 0.01


class HostNames:
    """What hosts are called, as far as that is known by now."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._asked: set[str] = set()

    def __getitem__(self, host: str) -> str:
        return self._known.get(host, host)

    def find_out(self, hosts: Iterable[str], seconds: float = 0.0) -> None:
        """Have those found out that are new, and wait for that, so long at most."""
        new = sorted(set(hosts) - self._asked)
        self._asked.update(new)
        if new:
            threading.Thread(target=self._resolve, args=(new,), name="batchlet-host-names", daemon=True).start()
        until = time.monotonic() + seconds
        while len(self._known) < len(self._asked) and time.monotonic() < until:
            time.sleep(_PAUSE)

    def _resolve(self, hosts: list[str]) -> None:
        for host in hosts:
            name = host
            with contextlib.suppress(OSError, ValueError):
                if not ipaddress.ip_address(host).is_loopback:
                    # The first part, as the batch system has it.
                    name = socket.gethostbyaddr(host)[0].split(".")[0]
            self._known[host] = name
