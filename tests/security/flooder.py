"""Many connections by another user to one port: idle ones, ones that begin TLS and stop, ones that send rubbish.

Standard library only. Arguments: host, port, how many (2,500 at most), kind. Says "ready" when all have been tried, and keeps
them for two minutes at most.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import sys
import time

MOST = 2500
# Who is not let in after so many seconds is not waited for.
PATIENCE = 10.0
KEEP = 120.0
# The first bytes of a TLS client hello, which promise more.
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def said(kind: str, number: int) -> bytes:
    """What a connection says."""
    if kind == "mixed":
        kind = ("idle", "half a hello", "garbage")[number % 3]
    return {"idle": b"", "half a hello": HALF_A_HELLO, "garbage": os.urandom(2000)}[kind]


def flood(address: tuple[str, int], count: int, kind: str) -> tuple[int, list[socket.socket]]:
    """Connect so many times at once; gives how many got through, and all of them."""
    held, through = [], 0
    with selectors.DefaultSelector() as selector:
        for number in range(count):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(address)
            selector.register(connection, selectors.EVENT_WRITE, number)
            held.append(connection)
        deadline = time.monotonic() + PATIENCE
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.1):
                selector.unregister(key.fileobj)
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    through += 1
                    # The other side may have hung up already.
                    with contextlib.suppress(OSError):
                        key.fileobj.send(said(kind, key.data))
    return through, held


def main() -> None:
    host, port, count, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if os.geteuid() == 0:
        raise SystemExit("this is to be run as another user")
    if count > MOST:
        raise SystemExit(f"no more than {MOST}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    through, held = flood((host, port), count, kind)
    if through < count // 4:
        raise SystemExit(f"only {through} of {count} connections to {host}:{port} were made: that is no flood")
    print("ready", flush=True)
    time.sleep(KEEP)
    del held


if __name__ == "__main__":
    main()
