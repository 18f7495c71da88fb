"""Killing the agents of a run, once or several times, and what a user sees of it; for test_hosts.py and soak_agents.py."""

from __future__ import annotations

import contextlib
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
from fault_helpers import INSIDES, Running, options
from run_helpers import WORKLOADS, Place, Result, poll

HOSTS = str(WORKLOADS / "hosts.py")
AGENT = "batchlet.node.agent"
# Seconds for a part of a run to begin.
PATIENCE = 60.0
# What is said of an agent that was killed and of the one in its place: one line for each.
LINE = re.compile(r"^batchlet: the host of the workers on node \S+ (was killed \(SIGKILL\)|died); ")


@dataclass(frozen=True)
class Shape:
    """One way to start a run."""

    command: tuple[str, ...]
    how: str = "ordinary"
    blocks: int = 1
    env: dict[str, str] = field(default_factory=dict)

    def line(self, seconds: float) -> list[str]:
        """The command, for so many seconds of work in each block."""
        through = ("-m", "batchlet") if self.how == "plain" else ()
        return [*self.command, sys.executable, *through, HOSTS, str(seconds), str(self.blocks), self.how]


SHAPES = {
    "two nodes": Shape(("srun", "-N2", "-n8", "--ntasks-per-node=4")),
    "one node": Shape(("srun", "-N1", "-n5")),
    "early": Shape(("srun", "-N2", "-n6", "--ntasks-per-node=3"), "early"),
    "python -m": Shape(("srun", "-N2", "-n6", "--ntasks-per-node=3"), "plain"),
    "a node each": Shape(("srun", "-N3", "-n3", "-c4")),
    "two ranks": Shape(("srun", "-N1", "-n2", "-c4")),
    "an agent each": Shape(("srun", "-N1", "-n5"), env=options(share_node=False)),
    "an allocation": Shape(("salloc", "-N2", "-n4")),
    "two blocks": Shape(("srun", "-N2", "-n6", "--ntasks-per-node=3"), blocks=2),
    "two blocks, early": Shape(("srun", "-N2", "-n6", "--ntasks-per-node=3"), "early", 2),
}


def agents(place: Place) -> list[psutil.Process]:
    """The agents of a run; the fork server of each and its workers have the same command line."""
    found = {}
    for process in place.processes():
        with contextlib.suppress(psutil.Error):
            if AGENT in process.cmdline():
                found[process.pid] = process
    tops = []
    for process in found.values():
        with contextlib.suppress(psutil.Error):
            # One that has just been forked is still its parent's image.
            if process.ppid() not in found and process.name() != "dask-scheduler":
                tops.append(process)
    return tops


# What a run has printed before each part of it: the start, the tasks, what comes after them, the end. The first is the time
# from the first agent on.
PARTS = ("", r"workers \d+", "total right", "workers as planned")


@dataclass(frozen=True, order=True)
class Moment:
    """So many seconds after the beginning of a part of a block."""

    block: int
    part: int
    seconds: float

    @classmethod
    def drawn(cls, draw: random.Random, shape: Shape) -> Moment:
        """Draw one: each part is as likely as the others, however long it takes."""
        part = draw.randrange(len(PARTS))
        return cls(draw.randrange(shape.blocks), part, draw.uniform(0.0, (2.5, 2.0, 1.0, 0.7)[part]))

    def has_come(self, running: Running) -> bool:
        """Whether that part has begun, or the run is over."""
        lines = running.stdout.splitlines()
        if running.process.poll() is not None:
            return True
        if self.part == 0:
            return bool(agents(running.place)) and lines.count(PARTS[-1]) >= self.block
        return sum(re.fullmatch(PARTS[self.part], line) is not None for line in lines) > self.block

    def __str__(self) -> str:
        part = ("start", "tasks", "after them", "end")[self.part]
        return f"{part} + {self.seconds:.2f}" + (f" of block {self.block + 1}" if self.block else "")


def kill_some(running: Running, blocks: int, draw: random.Random, moments: Sequence[Moment]) -> tuple[int, int]:
    """Kill an agent at each of these moments.

    Returns
    -------
    killed, noticed : int
        How many were there to be killed, and how many of them while there was work to do, so that each must be told of.
    """
    killed = noticed = 0
    for moment in sorted(moments):
        if not poll(lambda moment=moment: moment.has_come(running), PATIENCE, 0.01):
            break
        time.sleep(moment.seconds)
        there = [agent for agent in agents(running.place) if agent.is_running()]
        if there:
            with contextlib.suppress(psutil.Error):
                draw.choice(there).kill()
                killed += 1
                running.struck = time.monotonic()
                noticed += running.stdout.splitlines().count("total right") < blocks
    return killed, noticed


def told(result: Result) -> int:
    """Of how many agents the run has told that they have died."""
    return sum(LINE.match(line) is not None for line in result.errors)


def judge(shape: Shape, result: Result, killed: int, noticed: int) -> str | None:
    """Say what is wrong with what a user has seen; `None` if nothing is.

    Of two that are killed before the second one is in touch with rank 0, the user is told in one line.
    """
    said = [line for line in result.stdout.splitlines() if not re.fullmatch(PARTS[1], line)]
    wanted = ["total right", "workers as planned"] * shape.blocks + ["end"]
    errors = [line for line in result.errors if line.startswith("batchlet: error")]
    inside = [part for part in INSIDES if part in result.stderr]
    problems = [
        f"exit code {result.rc}" if result.rc else "",
        f"it has said {said}" if said != wanted else "",
        f"{told(result)} lines for {killed} deaths" if not min(noticed, 1) <= told(result) <= killed else "",
        f"errors: {errors}" if errors else "",
        f"insides: {inside}" if inside else "",
    ]
    return "; ".join(filter(None, problems)) or None
