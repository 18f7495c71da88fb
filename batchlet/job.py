"""Entry point of ``python -m batchlet.job``, which the script of a submitted job runs on each of its nodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from .node.wait import AGENT_ENVIRONMENT

__all__ = ["main", "named"]


def named(arguments: list[str], environ: Mapping[str, str]) -> list[str]:
    """Give the arguments with the job's own name, in a job of an array: all jobs of an array have one script.

    Parameters
    ----------
    arguments : list of str
        ``--name`` is that of the first job of the array, and ``--array VARIABLE:N`` says which variable has the job's number
        in the array, and what number the first one has.
    environ : mapping of str to str
        The environment.

    Raises
    ------
    SystemExit
        If the variable is not there.
    """
    if "--array" not in arguments:
        return arguments
    at, name = arguments.index("--array"), arguments.index("--name") + 1
    variable, _, first = arguments[at + 1].partition(":")
    number = environ.get(variable, "")
    if not number.isdecimal():
        raise SystemExit(f"batchlet: this job is one of an array, but {variable}={number!r} does not say which one.")
    prefix, _, own = arguments[name].rpartition("-")
    found = [*arguments[:at], *arguments[at + 2 :]]
    found[found.index("--name") + 1] = f"{prefix}-{int(own) + int(number) - int(first)}"
    return found


def main(arguments: list[str]) -> int:
    """Host workers until the cluster does not want them any more, or is gone.

    Parameters
    ----------
    arguments : list of str
        As dask-jobqueue writes them for ``dask worker``, and ``--record FILE`` and ``--workers N``; those that a worker alone
        would need mean nothing here.

    Returns
    -------
    int
        The exit code.
    """
    import argparse

    parser = argparse.ArgumentParser(prog="python -m batchlet.job", allow_abbrev=False)
    parser.add_argument("--name", required=True, help="the cluster's name for this job")
    parser.add_argument("--record", required=True, help="file that says where the cluster is")
    parser.add_argument("--workers", type=int, default=1, help="workers of this node")
    parser.add_argument("--local-directory", help="node-local scratch")
    known, _ = parser.parse_known_args(arguments)
    from .node.job_agent import run_job_agent

    return run_job_agent(known.name, known.record, known.workers, known.local_directory)


if __name__ == "__main__":
    words = named(sys.argv[1:], os.environ)
    missing = {name: value for name, value in AGENT_ENVIRONMENT.items() if name not in os.environ}
    if missing:
        # Some of these count only when a process starts.
        os.execve(  # noqa: S606
            sys.executable, [sys.executable, "-m", "batchlet.job", *words], {**os.environ, **missing}
        )
    sys.exit(main(words))
