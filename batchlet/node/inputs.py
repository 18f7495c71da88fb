"""What a rank says to the agent of its node: raw inputs. What they mean, the agent finds out, for all ranks in the same way.

Two messages, both one `marshal`-ed dict after its length in 4 bytes:

* of every rank, through its connection to the agent (`of_this_rank`): its environment, its interpreter, its control groups,
  its CPUs, and what it alone can know (the coordinator's record and the layout of the ranks, where they meet through MPI);
* of the rank that starts the agent, on the agent's standard input (`for_agent`): the options of the runner or the command
  line, ``sys.path``, Dask's configuration, the deadline, and its end of the socket.

Hundreds of ranks come here at the same moment: this module imports next to nothing.
"""

from __future__ import annotations

import marshal
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, BinaryIO

__all__ = ["LENGTH", "decode", "encode", "for_agent", "from_text", "of_this_rank", "read", "to_text", "unpack_options"]

# Bytes that say how long a message is.
LENGTH = 4


def of_this_rank(
    environ: Mapping[str, str], *, record: object = None, layout: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Say what this process is.

    Parameters
    ----------
    environ : mapping of str to str
        Its environment.
    record : dict, optional
        The coordinator's record, where this rank has met the others already.
    layout : sequence, optional
        The ranks of this node and the number of nodes, where the launcher's variables do not tell them.
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:  # noqa: PTH123
            cgroups = file.read().split("\n")
    except OSError:
        cgroups = []
    return {
        "environ": dict(environ),
        "python": [sys.executable, sys.prefix, sys.version],
        # Slurm's innermost level is for accounting, one for each task.
        "cgroups": [line.rpartition("/task_")[0] or line for line in cgroups],
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "record": record,
        "layout": layout,
    }


def for_agent(
    options: Mapping[str, object] | Sequence[str],
    until: float,
    *,
    layout: Sequence[Any] | None = None,
    told: bool = False,
    early: bool = False,
    **more: object,
) -> dict[str, Any]:
    """Say what the launch is about, for a process that Batchlet starts.

    Parameters
    ----------
    options : mapping or sequence of str
        Keywords of the runner, or the command line of ``python -m batchlet``.
    until : float
        When all workers must have joined, in seconds of `time.monotonic`.
    layout : sequence, optional
        As for `of_this_rank`.
    told : bool
        Whether the ranks will say where the coordinator is; otherwise the agent looks for the record itself.
    early: bool
        Whether the user's runner, and with it the options, are still to come.
    **more
        Plain data for this kind of process.
    """
    dask = sys.modules.get("dask.config")
    # The script may have set some of ours.
    variables = {name: value for name, value in os.environ.items() if name.startswith("BATCHLET_")}
    config: Any = dict(dask.config) if dask is not None else None
    words: Any = dict(options) if hasattr(options, "keys") else list(options)
    try:
        marshal.dumps((words, config))
    except ValueError:
        # What the user's script defines travels by value.
        import cloudpickle

        words, config = cloudpickle.dumps((words, config)), None
    return {
        "options": words,
        "dask_config": config,
        "variables": variables,
        "argv": list(sys.argv),
        "sys_path": _path(),
        "until": until,
        # For a process on another node, whose clock is another one.
        "patience": until - time.monotonic(),
        "layout": layout,
        "told": told,
        "early": early,
        **more,
    }


def _path() -> list[str]:
    """Where Python looks for modules, but for the working directory, which its ``-m`` has put there for us alone."""
    ours = sys.argv[:1] == [os.path.join(os.path.dirname(os.path.dirname(__file__)), "__main__.py")]  # noqa: PTH118, PTH120
    return sys.path[1:] if ours and sys.path[0] in ("", os.getcwd()) else list(sys.path)  # noqa: PTH109


def to_text(words: Mapping[str, Any]) -> str:
    """Write what `for_agent` has made as text, for a message of the coordinator."""
    import base64

    return base64.b64encode(marshal.dumps(dict(words))).decode()


def from_text(text: str) -> dict[str, Any]:
    """Read what `to_text` has written; from a process of this run only."""
    import base64

    return decode(base64.b64decode(text))


def unpack_options(words: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any] | None]:
    """Give the options and Dask's configuration out of what `for_agent` has made."""
    if not isinstance(words["options"], bytes):
        return words["options"], words["dask_config"]
    import pickle

    options, config = pickle.loads(words["options"])  # noqa: S301 - from a process of this run
    return options, config


def encode(words: Mapping[str, object]) -> bytes:
    """Write a message: its length, then the words."""
    data = marshal.dumps(dict(words))
    return len(data).to_bytes(LENGTH, "big") + data


def decode(data: bytes) -> dict[str, Any]:
    """Read a message, without its length; from a process of this user only."""
    return dict(marshal.loads(data))  # noqa: S302


def read(stream: BinaryIO) -> dict[str, Any]:
    """Read the next message of a stream.

    Raises
    ------
    EOFError
        If there is no whole one.
    """
    head = stream.read(LENGTH)
    data = stream.read(int.from_bytes(head, "big"))
    if len(head) < LENGTH or len(data) < int.from_bytes(head, "big"):
        raise EOFError
    return decode(data)
