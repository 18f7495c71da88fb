"""``python -m batchlet [options] script.py [arguments]``: start the cluster, then run the script on the client alone."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from . import __version__, report
from .client.session import Run
from .environments import ProcessInfo, first_process, select
from .errors import EndError, UsageError
from .launchers.base import Launcher
from .plan import CLIENT, SCHEDULER, WORKER, make_plan, role_of
from .program import Program, show_exception
from .rendezvous import FileRendezvous
from .resources import node_resources, read_host
from .runner import BatchletRunner
from .settings import PREFIX, SWITCH_VALUES, Settings

__all__ = ["main"]

_EPILOG = f"""\
The script needs no change: Client() without arguments and .compute() use the cluster. It runs once, on rank 1;
rank 0 is the scheduler, the other ranks host the workers. Without a launcher there is a LocalCluster.

Each option can also be given as a variable: --workers-per-node is {PREFIX}WORKERS_PER_NODE.

examples:
  srun -n 12 python -m batchlet script.py        one scheduler, one client, ten workers
  mpirun -n 12 python -m batchlet script.py      the same without Slurm
  python -m batchlet script.py                   in a batch script: on all its nodes; on a laptop: here
  python -m batchlet --plan                      what would be started here, and why
"""
# Bytes: more than any host has.
_ANY = 1 << 62
_FLAGS = ("--plan", "--json", "--help", "-h", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit code; the program's own exit code comes as `SystemExit`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options, program = _split(arguments)
    parser = _parser()
    given = vars(parser.parse_args(options))
    plan, as_json = given.pop("plan"), given.pop("json")
    keywords = {name: value for name, value in given.items() if value is not None}
    if plan:
        return _show_plan(keywords, as_json=as_json)
    if program is None:
        parser.error("nothing to run: name a script, give -m module or -c code, or add --plan")
    return _run(program, keywords)


class _Parser(argparse.ArgumentParser):
    """A parser that speaks once for all ranks."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if first_process(os.environ):
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m batchlet",
        usage="%(prog)s [options] (script.py | -m module | -c code) [arguments]",
        description="Make one Dask cluster of the processes that srun or mpirun started, and run a script on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
    parser.add_argument("--version", action="version", version=f"batchlet {__version__}")
    return parser


def _split(arguments: list[str]) -> tuple[list[str], Program | None]:
    """Divide the command line into our options and the program with its arguments, as Python does with its own."""
    switches = {_called(option.name) for option in fields(Settings) if option.metadata and option.metadata["switch"]}
    possible = [[value] for value in SWITCH_VALUES]
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


def _run(program: Program, keywords: dict[str, Any]) -> int:
    try:
        program.prepare()
        runner = BatchletRunner(**keywords)
        try:
            program.check()
        except UsageError as error:
            runner._run.refuse(error)
        with runner, _default_client(runner):
            program.run()
    except (EndError, SystemExit):
        raise
    except KeyboardInterrupt as error:
        show_exception(error)
        return 130
    except BaseException as error:  # noqa: BLE001
        show_exception(error)
        return 1
    return 0


@contextlib.contextmanager
def _default_client(runner: BatchletRunner) -> Iterator[None]:
    """Make the cluster the one that ``Client()`` and ``.compute()`` find."""
    import dask.config
    from distributed import Client

    from .dask_backend import tls

    tls.set_loaded(runner.security)
    found = {
        "scheduler-address": runner.scheduler_address,
        "distributed.client.security-loader": f"{tls.__name__}.{tls.loader.__name__}",
    }
    try:
        with dask.config.set(found), Client(runner):
            yield
    finally:
        tls.set_loaded(None)


def _show_plan(keywords: dict[str, Any], *, as_json: bool) -> int:
    """Print what would be started here: each node tells rank 0 of itself, through its first rank."""
    began = time.monotonic()
    if Run.active is not None:
        sys.stdout.write(f"already inside a Batchlet run\n{Run.active.plan}\n")
        return 0
    try:
        settings = Settings.resolve(keywords, os.environ)
        environment, reason = select(settings.mode, os.environ)
        info = environment.process(os.environ)
        launcher = environment.launcher(os.environ)
        first = info.rank == 0 or launcher is not None
        if not first and info.rank != min(info.local_ranks):
            return 0
        host, nodes = read_host(), environment.nodes(os.environ)
        unknown = host.cgroup_memory is None and any(grant.memory is None for _, grant in nodes)
        controller_memory = environment.ask(os.environ) if first and unknown else {}
        # What can be seen of this host says nothing about another one, whose memory the controller has told.
        elsewhere = replace(host, memory=_ANY, cpus=_ANY, affinity=_ANY)
        plans = [
            make_plan(
                node,
                node_resources(
                    grant,
                    elsewhere if node.node in controller_memory and node.node != info.node else host,
                    controller_memory.get(node.node),
                ),
                settings,
            )
            for node, grant in nodes
        ]
        # Each node as text and as data, by its first rank.
        shown = {min(info.local_ranks, default=0): [(plan.node_text(), plan.to_dict()) for plan in plans]}
        alone = launcher is not None or info.nodes == 1 or not environment.knows_layout
        if not alone and not _gather(info, settings, shown, began):
            return 0
    except EndError as error:
        if first_process(os.environ):
            report.failure(error)
        return error.exit_code
    parts = [part for rank in sorted(shown) for part in shown[rank]]
    if as_json:
        found: dict[str, Any] = {
            "mode": info.mode,
            "reason": reason,
            "job": info.job,
            "ranks": info.world_size,
            "run_id": info.run_id,
        }
        found["nodes"] = [data for _, data in parts]
        found["settings"] = {
            name: {"value": _plain(getattr(settings, name)), "source": source}
            for name, source in settings.sources.items()
        }
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    text = [part for part, _ in parts]
    if first:
        text.insert(0, _headline(info, reason, launcher))
        asked = [
            f"  {name:<20} {getattr(settings, name)!s:>10}  {source}"
            for name, source in settings.sources.items()
            if source != "default"
        ]
        text += ["asked for", *asked] if asked else []
    sys.stdout.write("\n".join(text) + "\n")
    return 0


def _gather(info: ProcessInfo, settings: Settings, shown: dict[int, Any], began: float) -> bool:
    """Bring what the nodes say of themselves to rank 0; whether this is rank 0."""
    place = FileRendezvous(settings.rendezvous_dir, info.run_id, info.node)
    if info.rank:
        place.hand_over(f"plan{info.rank}", json.dumps([info.rank, shown[info.rank]]))
        return False
    texts = place.collect("plan", info.nodes - 1, began + settings.start_timeout)
    shown.update(json.loads(text) for text in texts)
    if len(texts) < info.nodes - 1:
        report.note(f"only {len(texts) + 1} of {info.nodes} nodes have told what they would start (start_timeout)")
    return True


def _headline(info: ProcessInfo, reason: str, launcher: Launcher | None) -> str:
    lines = [f"mode {info.mode}: {reason}"]
    if info.job:
        lines.append(info.job)
    if launcher is not None:
        lines.append(
            f"{info.world_size} ranks to be started with {launcher.name}, one a node; "
            "rank 0 is the scheduler, this process the client"
        )
    elif info.world_size == 1:
        lines.append("1 process: scheduler, client and workers on this node")
    else:
        last = info.world_size - 1
        names = {SCHEDULER: "rank 0", CLIENT: "rank 1", WORKER: f"ranks 2 to {last}" if last > 2 else "rank 2"}
        here = {role_of(info, rank) for rank in range(info.world_size)}
        lines.append(
            f"{info.world_size} ranks on {info.nodes} node{'s' if info.nodes > 1 else ''}: "
            + ", ".join(f"{role} {ranks}" for role, ranks in names.items() if role in here)
        )
    return "\n".join(textwrap.fill(line, 118) for line in lines)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
