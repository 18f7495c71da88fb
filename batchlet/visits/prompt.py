"""``python -m batchlet attach RUN``: a Python prompt, a script or a line of code with a `client` of a run that is under way."""

from __future__ import annotations

import code
import contextlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import report
from ..program import Program, show_exception
from ..versions import versions
from .attaching import client_of
from .visit import run_parser, visit

__all__ = ["main"]

_EPILOG = """\
RUN is the run's name, how that begins, the number of its job, or the path of its record; it can be left out where there is one
run only, and no script. The run goes on when you leave. What you leave behind on its workers (variables, datasets) stays there.

examples:
  python -m batchlet attach 4242                              a prompt (IPython, where it is installed)
  python -m batchlet attach 4242 -c "print(client.ncores())"
  python -m batchlet attach 4242 look.py arguments            a script, which finds `client`
  echo "client.run(gc.collect)" | python -m batchlet attach
"""


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for beside a run.

    Parameters
    ----------
    arguments : sequence of str
        What follows on the command line.

    Returns
    -------
    int
        The exit code; that of the user's code comes as `SystemExit`, as do our own errors.
    """
    run, program = _parse(list(arguments))
    client: Any = None
    try:
        if program is not None:
            program.prepare()
            program.check()
        found = visit(run, versions())
        from ..dask_backend.logs import configure_logging, hush

        configure_logging()
        # Before the client is closed: what Dask makes of the end is said in our line.
        found.listen(lambda: hush() if found.cluster is None else None)
        client = client_of(found)
        names = {"client": client}
        if program is not None or not sys.stdin.isatty():
            (program or Program("code", sys.stdin.read())).run(names)
        else:
            _type(names, _banner(client))
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        show_exception(error)
        return 130
    except BaseException as error:  # noqa: BLE001
        show_exception(error)
        return 1
    finally:
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()
    return 0


def _parse(arguments: list[str]) -> tuple[str | None, Program | None]:
    parser = run_parser(
        "attach",
        "Run Python with a Dask `client` of a run of yours that is under way.",
        usage="%(prog)s [RUN] [-c CODE [arguments] | script.py [arguments]]",
        epilog=_EPILOG,
        formatter_class=importlib.import_module("argparse").RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", metavar="CODE", help="run this code")
    parser.add_argument("script", nargs="?", help="run this script")
    # Nothing that stands behind the code or the script is ours.
    ours, program = arguments, None
    for place, word in enumerate(arguments):
        if word == "-c":
            ours, rest = arguments[:place], arguments[place + 1 :]
            if not rest:
                parser.error("-c needs code")
            program = Program("code", rest[0], tuple(rest[1:]))
            break
        if place == 1 and not word.startswith("-"):
            ours, program = arguments[:1], Program("script", word, tuple(arguments[2:]))
            break
    given = parser.parse_args(ours)
    if given.script is not None:
        parser.error("a script comes right after RUN")
    return given.run, program


def _banner(client: Any) -> str:
    workers = client.scheduler_info()
    count = workers.get("n_workers", len(workers["workers"]))
    return (
        f"client: {report.count(count, 'worker')} of {client.cluster.name}; the run goes on when you leave (Ctrl-D).\n"
        f"Python {sys.version.split()[0]}; also client.run, client.get_task_stream, client.call_stack; "
        f"dashboard: python -m batchlet dashboard {client.cluster.name}"
    )


def _type(names: Mapping[str, Any], banner: str) -> None:
    """Let somebody type: in IPython where it is installed."""
    try:
        ipython, config = importlib.import_module("IPython"), importlib.import_module("traitlets.config").Config()
    except ImportError:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")
        code.interact(banner, local=dict(names), exitmsg="")
        return
    config.TerminalInteractiveShell.banner1 = f"{banner}\n"
    config.TerminalInteractiveShell.confirm_exit = False
    ipython.start_ipython(argv=[], user_ns=dict(names), config=config)
