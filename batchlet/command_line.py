"""The command line ``python -m batchlet [options] (script.py | -m module | -c code) [arguments]``, and what it asks for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .commands import COMMANDS
from .environments import first_process
from .program import Program
from .settings import PREFIX, SWITCH_VALUES, Settings

__all__ = ["CommandLine", "Parser", "make_parser", "parse", "split"]

_COMMANDS = "".join(
    f"  {f'python -m batchlet {word} {follows}':<46} {about}\n" for word, (_, follows, about) in COMMANDS.items()
)
_EPILOG = f"""\
The script needs no change: Client() without arguments and .compute() use the cluster. It runs once, on rank 1;
rank 0 is the scheduler, the other ranks host the workers. Without a launcher there is a LocalCluster.

Each option can also be given as a variable: --workers-per-node is {PREFIX}WORKERS_PER_NODE.

examples:
  srun -n 12 python -m batchlet script.py        one scheduler, one client, ten workers
  mpirun -n 12 python -m batchlet script.py      the same without Slurm
  python -m batchlet script.py                   in a batch script: on all its nodes; on a laptop: here
{_COMMANDS}  python -m batchlet --plan                      what would be started here, and why
"""
_FLAGS = ("--plan", "--json", "--help", "-h", "--version")


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for.

    Parameters
    ----------
    options : mapping of str to str
        What was given of the fields of `Settings`.
    program : Program, optional
        What to run; there is one unless `plan` is asked for.
    plan : bool
        Whether to show what would be started, and start nothing.
    as_json : bool
        Whether to show that for programs.
    """

    options: Mapping[str, str]
    program: Program | None
    plan: bool = False
    as_json: bool = False


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> CommandLine:
    """Read a command line.

    Parameters
    ----------
    arguments : sequence of str
        Without the name of the program, which is ours.
    environ : mapping of str to str
        Says whether this process is the one that prints.

    Raises
    ------
    SystemExit
        If it asks for help or the version (0), or cannot be understood (2).
    """
    ours, program = split(arguments)
    parser = make_parser(environ)
    given = vars(parser.parse_args(ours))
    plan, as_json = given.pop("plan"), given.pop("json")
    if program is None and not plan:
        parser.error("nothing to run: name a script, give -m module or -c code, or add --plan")
    return CommandLine({name: value for name, value in given.items() if value is not None}, program, plan, as_json)


class Parser(argparse.ArgumentParser):
    """A parser that speaks once for all ranks."""

    speaks = True

    def _print_message(self, message: str, file: Any = None) -> None:
        if self.speaks:
            super()._print_message(message, file)


def make_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """Make the parser of our own options, all fields of `Settings` and a few more."""
    parser = Parser(
        prog="python -m batchlet",
        usage="%(prog)s [options] (script.py | -m module | -c code) [arguments]",
        description="Make one Dask cluster of the processes that srun or mpirun started, and run a script on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.speaks = first_process(environ)
    for option in fields(Settings):
        if option.metadata:
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.metadata["switch"] else {}
            parser.add_argument(
                _called(option.name),
                metavar="X",
                help=option.metadata["help"].replace("%", "%%"),
                **switch,
            )
    parser.add_argument("--plan", action="store_true", help="print what would be started here and why; start nothing")
    parser.add_argument("--json", action="store_true", help="with --plan: for programs")
    parser.add_argument(
        "--version", action="version", version=f"batchlet {importlib.import_module(__package__).__version__}"
    )
    return parser


def split(arguments: Sequence[str]) -> tuple[list[str], Program | None]:
    """Divide the command line into our options and the program with its arguments, as Python does with its own."""
    switches = {_called(option.name) for option in fields(Settings) if option.metadata and option.metadata["switch"]}
    possible = [[value] for value in SWITCH_VALUES]
    arguments = list(arguments)
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word in ("-m", "-c"):
            rest = arguments[position + 1 :]
            if not rest:
                return arguments, None
            return arguments[:position], Program("module" if word == "-m" else "code", rest[0], tuple(rest[1:]))
        if not word.startswith("-"):
            return arguments[:position], Program("script", word, tuple(arguments[position + 1 :]))
        alone = "=" in word or word in _FLAGS
        if word in switches:
            # `--timeline script.py` is as good as `--timeline true script.py`.
            alone = [value.lower() for value in arguments[position + 1 : position + 2]] not in possible
        position += 1 if alone else 2
    return arguments, None


def _called(option: str) -> str:
    return "--" + option.replace("_", "-")
