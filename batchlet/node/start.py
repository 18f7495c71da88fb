"""Starting processes of our own: they read their orders from standard input (see `batchlet.node.wait.START`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from . import inputs
from .wait import AGENT, AGENT_ENVIRONMENT, START, memory_file

__all__ = ["RANK", "command", "start_agent"]

#: Name on the command line of a rank of a step that Batchlet has started.
RANK = "batchlet.node.rank"


def command(kind: str) -> list[str]:
    """Command line of a process that reads its orders from standard input; `kind` is what it is to be."""
    return [sys.executable, "-c", START, kind]


def start_agent(orders: Mapping[str, Any], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the agent of a node, in the environment of a rank; it inherits the socket that the orders name.

    It is in a session of its own: a Ctrl-C at a terminal is for the client, which still needs the workers to save its work.
    """
    data = inputs.encode(orders)
    # Where the system has no files in memory, the orders wait in a pipe.
    stdin = memory_file(data) if hasattr(os, "memfd_create") else subprocess.PIPE
    process = subprocess.Popen(
        command(AGENT),
        stdin=stdin,
        pass_fds=(orders["socket"],),
        env={**AGENT_ENVIRONMENT, **environ},
    )
    if process.stdin is None:
        os.close(stdin)
    else:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(data)
            process.stdin.close()
    return process
