"""``python -m batchlet dashboard RUN``: where a run's dashboard is, and the tunnel to it; or both opened, with ``--open``.

The address has a secret in it. It goes to standard output alone: never into the arguments of another program, which others can
see in `ps`; a browser gets it in a file that only the user can read, as JupyterLab gives it its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from .. import report
from ..client.announce import dashboard_at
from ..errors import LauncherError, UsageError
from ..network import LOOPBACK
from .visit import Visit, run_parser, visit

__all__ = ["main"]

# Seconds for ssh to be connected.
_CONNECT = 30.0
_PAUSE = 0.1
_END = 5.0


def main(arguments: Sequence[str]) -> int:
    """Say where the dashboard is, or open it.

    Parameters
    ----------
    arguments : sequence of str
        What follows on the command line.

    Returns
    -------
    int
        The exit code.
    """
    parser = run_parser(
        "dashboard", "Say where the dashboard of a run is, and by which command it comes to your own machine."
    )
    parser.add_argument(
        "--open", action="store_true", help="open the tunnel and a browser on this machine, until Ctrl-C"
    )
    asked = parser.parse_args(list(arguments))
    # Without versions: they do not matter to a browser.
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(visit(asked.run, {})) as visited:
        place, token = _place(visited)
        node = visited.record.node
        if asked.open:
            _open(visited, node, place, token)
        else:
            sys.stdout.write(f"{dashboard_at(place, token)}\n")
            if place[0] == LOOPBACK and (tunnel := _tunnel(node, place[1])):
                sys.stdout.write(f"{tunnel}\n")
    return 0


def _place(visit: Visit) -> tuple[tuple[str, int], str | None]:
    cluster = visit.cluster
    if cluster is None:
        raise UsageError(f"There is no dashboard now: {visit.last_word}.")
    if cluster.dashboard is None:
        raise UsageError(f"Run {visit.run_id} has no dashboard: that needs bokeh in its environment.")
    return cluster.dashboard, cluster.token


def _is_here(node: str) -> bool:
    return node == socket.gethostname().split(".")[0]


def _tunnel(node: str, port: int) -> str | None:
    """Give the command that brings the dashboard to the user's own machine; `None` where the user is here."""
    here, this = _is_here(node), socket.getfqdn()
    if here and "SSH_CONNECTION" not in os.environ:
        return None
    if this.startswith("localhost"):
        this = socket.gethostname()
    return f"ssh -N -L {port}:localhost:{port} {this if here else f'-J {this} {node}'}"


def _open(visit: Visit, node: str, place: tuple[str, int], token: str | None) -> None:
    with contextlib.ExitStack() as stack:
        if place[0] == LOOPBACK and not _is_here(node):
            place = (LOOPBACK, stack.enter_context(_connected(node, place[1])))
        page = stack.enter_context(_page(dashboard_at(place, token)))
        if not webbrowser.open(page.as_uri()):
            report.note(f"no browser could be started here; the address is in {page}")
        report.note("the dashboard is open until Ctrl-C, or the end of the run")
        while not visit.is_over:
            visit.wait(1.0)
        report.note(visit.last_word)


@contextlib.contextmanager
def _connected(node: str, port: int) -> Iterator[int]:
    """Have ssh bring a port of a node's loopback here; gives the port here."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        here = int(free.getsockname()[1])
    command = ["ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{here}:localhost:{port}", node]
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise LauncherError(
            f"ssh cannot be started: {error.strerror}. Without --open the command to type is shown."
        ) from None
    try:
        until = time.monotonic() + _CONNECT
        while not _listens(here):
            if process.poll() is not None or time.monotonic() > until:
                raise LauncherError(
                    f"`{' '.join(command)}` brings no tunnel to node {node}; many sites allow ssh to a node only while a job "
                    "of yours runs there, or not at all."
                )
            time.sleep(_PAUSE)
        yield here
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1.0):
        return True
    return False


@contextlib.contextmanager
def _page(address: str) -> Iterator[Path]:
    """Make a page, for the user alone, that leads to an address."""
    with tempfile.TemporaryDirectory(prefix="batchlet-dashboard-") as directory:
        page = Path(directory) / "dashboard.html"
        page.touch(mode=0o600)
        page.write_text(f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={escape(address)}">\n')
        yield page
