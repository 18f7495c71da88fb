"""What another user of a node does with the names of sockets that runs are going to use. Standard library only.

Argument: the manner. Reads the names from standard input, as JSON; says "ready" when it has them all, and keeps them.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import sys

# More connections than these to a name that keeps one waiting are not needed to fill it.
MOST = 64


def squat(name: str, manner: str) -> list[socket.socket]:
    """Take a name, in a manner: the sockets that hold it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0" + name)
    held = [server]
    if manner == "accepts and says nothing":
        server.listen(100)
    elif manner == "full backlog":
        server.listen(0)
        for _ in range(MOST):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].setblocking(False)
            try:
                held[-1].connect("\0" + name)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                return held
        raise SystemExit("the backlog does not fill up")
    elif manner != "never listens":
        raise SystemExit(f"unknown manner: {manner}")
    return held


def main() -> None:
    manner, names = sys.argv[1], json.load(sys.stdin)
    if os.geteuid() == 0:
        raise SystemExit("this is to be run as another user")
    held = [squat(name, manner) for name in names]
    print("ready", flush=True)
    selector = selectors.DefaultSelector()
    if manner == "accepts and says nothing":
        for server, *_ in held:
            selector.register(server, selectors.EVENT_READ)
    accepted = []
    while True:
        for key, _ in selector.select():
            accepted.append(key.fileobj.accept())  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
