"""``python -m batchlet [options] script.py [arguments]``: start the cluster, then run the script on the client alone."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import report
from .binding import bind_plan
from .client.default_client import default_client
from .client.refusal import refuse_alone
from .client.session import Session
from .command_line import parse
from .commands import COMMANDS, find_command
from .cuda_workers import choose_in_plan
from .environments import ProcessInfo, first_process, select
from .environments.allocation_end import AllocationEnd, find_allocation_end
from .errors import EndError, UsageError
from .factory import cluster, submits
from .launchers.base import Launcher
from .plan import CLIENT, SCHEDULER, WORKER, make_plan, role_of
from .program import Program, show_exception
from .rendezvous import FileRendezvous
from .resources import node_resources, read_host
from .runner import BatchletRunner
from .settings import Settings
from .walltime import check_lead, end_of_run

__all__ = ["main"]

# Bytes: more than any host has.
_ANY = 1 << 62


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit code; the program's own exit code comes as `SystemExit`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (command := find_command(arguments)) is not None:
        return _run_command(command, arguments[1:])
    line = parse(arguments, os.environ)
    if line.program is None or line.plan:
        return _show_plan(line.options, as_json=line.as_json)
    return _run(line.program, line.options)


def _run_command(command: str, arguments: Sequence[str]) -> int:
    """Do what is not a run of a script; see `commands`."""
    if Path(command).is_file() and first_process(os.environ):
        report.note(f"`{command}` is Batchlet's command; the script of that name in this directory is ./{command}")
    module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
    try:
        return int(module.main(arguments))
    except EndError as error:
        report.failure(error)
        return error.exit_code


def _run(program: Program, keywords: Mapping[str, Any]) -> int:
    try:
        program.prepare()
        if submits(keywords):
            return _run_on_jobs(program, keywords)
        runner = BatchletRunner(**keywords)
        try:
            program.check()
        except UsageError as error:
            runner._session.refuse(error)
        with runner, default_client(runner):
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


def _run_on_jobs(program: Program, keywords: Mapping[str, Any]) -> int:
    """Run a program on a cluster of jobs that are submitted, in this process."""
    try:
        program.check()
    except UsageError as error:
        refuse_alone(error)
    with cluster(**keywords) as runner, default_client(runner):
        program.run()
    return 0


def _show_plan(keywords: Mapping[str, Any], *, as_json: bool) -> int:
    """Print what would be started here: each node tells rank 0 of itself, through its first rank."""
    began, now = time.monotonic(), time.time()
    if Session.active is not None:
        sys.stdout.write(f"already inside a Batchlet run\n{Session.active.plan}\n")
        return 0
    try:
        settings = Settings.resolve(keywords, os.environ)
        environment, reason = select(settings.mode, os.environ)
        info = environment.identity(os.environ)
        launcher = environment.launcher(os.environ)
        first = info.rank == 0 or launcher is not None
        if not first and info.rank != min(info.local_ranks):
            return 0
        host, nodes = read_host(), environment.nodes(os.environ)
        unknown = host.cgroup_memory is None and any(grant.memory is None for _, grant in nodes)
        controller_memory = environment.ask(os.environ) if first and unknown else {}
        # What can be seen of this host says nothing about another one, whose memory the controller has told.
        elsewhere = replace(host, memory=_ANY, cpus=_ANY, affinity=_ANY)
        plans = []
        for node, grant in nodes:
            seen = elsewhere if node.node in controller_memory and node.node != info.node else host
            resources = node_resources(grant, seen, controller_memory.get(node.node))
            plan = choose_in_plan(make_plan(node, resources, settings), settings, here=node.node == info.node)
            plans.append(
                bind_plan(plan, resources, host, settings, in_job=grant.cpus is not None)
                if node.node == info.node
                else plan
            )
        # Each node as text and as data, by its first rank.
        shown = {min(info.local_ranks, default=0): [(plan.node_text(), plan.to_dict()) for plan in plans]}
        end = end_of_run(find_allocation_end(os.environ) if first else None, settings.time_limit, now)
        if first and end is not None and settings.stop_before is not None:
            check_lead(settings.stop_before, end, now, "stop_before")
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
            "ends_at": None if end is None else _as_time(end.at).isoformat(),
            "time_left": None if end is None else max(0.0, end.at - time.time()),
            "ends_at_source": None if end is None else end.source,
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
        text.insert(0, _headline(info, reason, launcher, end))
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


def _headline(info: ProcessInfo, reason: str, launcher: Launcher | None, end: AllocationEnd | None) -> str:
    lines = [f"mode {info.mode}: {reason}"]
    if info.job:
        lines.append(info.job)
    if end is not None:
        left = report.duration(max(0.0, end.at - time.time()))
        lines.append(f"ends at {_as_time(end.at):%Y-%m-%d %H:%M:%S}, in {left}: {end.source}")
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


def _as_time(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at).astimezone().replace(microsecond=0)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
