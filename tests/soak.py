"""Break one run after another, each at random, and count those that did not end as they should. Run by hand, as root::

    python tests/soak.py --runs 100 [--seed S] [--instance K] [--only "SIGKILL to rank 3"]

Each run is a script under srun, on a test cluster of its own; the fault and its moment (start and end included) are drawn
from the seed. It counts hangs, wrong exit codes, and processes or files left behind; the exit code is 0 if there are none.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "slurm")]

import psutil  # noqa: E402
from cluster_slurm import SlurmCluster  # noqa: E402
from fault_helpers import FAULTS, INSIDES, NOTE_RC, Running, options  # noqa: E402
from run_helpers import Place, Result  # noqa: E402

START, STOP, GRACE, WORK = 8, 5, 3, 2.0
# Seconds in which a run must end after its fault, whatever the fault.
LIMIT = START + 5 + STOP + 5
# What still may happen to a script that has come to its end.
LATE = {"TERM": 143, "scancel": 143, "SIGKILL to rank 1": 137}
SIGNALS = {"TERM": signal.SIGTERM, "KILL": signal.SIGKILL}


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and the client's exit codes that are right if the script did not come to its end."""

    name: str
    codes: Collection[int]
    strike: Callable[[Running], object] | None = None
    argv: tuple[str, ...] = ()


def to_rank(rank: int, name: str, codes: Collection[int]) -> Kind:
    """A signal to a rank."""

    def strike(running: Running) -> None:
        # None: it has not been started yet, or has ended already.
        with contextlib.suppress(AssertionError, psutil.Error):
            running.rank(rank).send_signal(SIGNALS[name])

    return Kind(f"SIG{name} to rank {rank}", codes, strike)


def to_worker(running: Running) -> None:
    """SIGKILL to some worker process: a grandchild of an agent."""
    for process in running.place.processes():
        with contextlib.suppress(psutil.Error):
            family = [process, *process.parents()[:2]]
            if process.name() != "dask-scheduler" and all("batchlet.node.agent" in one.cmdline() for one in family):
                process.kill()
                return


def to_scheduler(running: Running) -> None:
    """SIGKILL to the scheduler's process, which comes some time after the start."""
    with contextlib.suppress(AssertionError, psutil.Error):
        running.scheduler().kill()


def scancel(running: Running) -> None:
    """Cancel the job, if it is there."""
    with contextlib.suppress(Exception):
        running.scancel()


# 80: the rank had not arrived. 81: it had, and the cluster is lost.
KINDS = (
    Kind("none", ()),
    *(to_rank(rank, "KILL", (80, 81) if rank != 1 else (137,)) for rank in range(4)),
    # A rank that gets SIGTERM before it has come to Batchlet just dies.
    *(to_rank(rank, "TERM", (80, 81, 143)) for rank in range(4)),
    Kind("SIGKILL to a worker process", (), to_worker),
    Kind("SIGKILL to the scheduler", (81,), to_scheduler),
    Kind("scancel", (143,), scancel),
    Kind("raises", (1,), argv=("raises",)),
    Kind("exit(3)", (3,), argv=("exits", "3")),
    Kind("os._exit(4)", (4,), argv=("exits-hard",)),
    Kind("SIGSEGV", (139,), argv=("signals-itself", "11")),
)


@dataclass
class Tally:
    """What was seen."""

    bad: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def note(self, kind: str, where: str, what: object) -> None:
        """Count something that should not be, and show it."""
        self.bad[kind] += 1
        say(f"  {kind} ({where})\n{indent(str(what))}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def indent(text: str) -> str:
    return "\n".join(f"    | {line}" for line in text.splitlines())


def one_run(cluster: SlurmCluster, kind: Kind, moment: float, nodes: int, tally: Tally) -> str:
    """Do one run and judge it; return a word on how it ended."""
    where = f"{kind.name} after {moment:.2f} s, {nodes} node{'s' if nodes > 1 else ''}"
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    # The moment of what the script does itself is counted from the start of its work.
    work = max(0.0, moment - 1.5) if kind.argv else WORK
    settings = options(start_timeout=START, stop_timeout=STOP, grace=GRACE)
    wrapper = ("prlimit", "--core=0", *NOTE_RC)
    command = ["srun", f"-N{nodes}", "-n4", *wrapper, sys.executable, str(FAULTS), "soaks", str(work), *kind.argv]
    running = Running(place, *command, env=settings)
    try:
        if kind.strike is not None:
            time.sleep(moment)
            kind.strike(running)
            running.struck = time.monotonic()
        try:
            result = running.finish(LIMIT + (WORK + moment if kind.strike is None else WORK))
        except AssertionError as error:
            tally.note("hang", where, error)
            return "hang"
        tally.slowest = max(tally.slowest, result.seconds)
        note = place.base / "rc-1"
        code = int(note.read_text()) if note.exists() else None
        judge(kind, where, code, result, tally)
        try:
            # With its last rank on a node, Slurm kills all else of the step there; the next run removes the scratch.
            alone = nodes > 1 and kind.name == "SIGKILL to rank 3"
            running.assert_nothing_left(result, but_scratch=alone)
        except AssertionError as error:
            tally.note("leftover", where, error)
        return f"srun {result.rc}, client {code}, {result.seconds:.1f} s"
    finally:
        running.end()
        place.close()


def judge(kind: Kind, where: str, code: int | None, result: Result, tally: Tally) -> None:
    """Compare the exit codes and the messages with what is right."""
    finished = "after the block" in result.stdout
    # A signal may come at the very end, when the script has nothing left to do.
    late = {name: code for name, code in LATE.items() if name in kind.name}
    right = {0, *late.values()} if finished else set(kind.codes)
    if not finished and kind.name == "scancel" and code is None:
        # Cancelled before the ranks were started.
        right.add(None)
    if code not in right or (result.rc == 0) != (code == 0 and not any_died(result)) or "WRONG" in result.stdout:
        tally.note("wrong exit code", f"{where}: client {code}, not one of {sorted(right, key=str)}", result)
    elif any(part in result.stderr for part in INSIDES) or result.stderr.count("Traceback") > (kind.name == "raises"):
        tally.note("traceback", where, result)
    elif not finished and not result.errors and code is not None:
        tally.note("silence", where, result)


def any_died(result: Result) -> bool:
    """Whether a task that srun had started did not end well, as srun says."""
    return any(line.startswith("srun: error: ") and ": task" in line for line in result.stderr.splitlines())


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", help="name of the one kind of fault to draw (default: all)")
    parser.add_argument("--instance", type=int, default=9, help="number of the test cluster (default: 9)")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    kinds = [kind for kind in KINDS if given.only in (None, kind.name)]
    cluster = SlurmCluster(given.instance)
    cluster.down()
    cluster.up()
    tally = Tally()
    began = time.monotonic()
    done = 0
    try:
        for number in range(1, given.runs + 1):
            kind, moment, nodes = draw.choice(kinds), draw.uniform(0.0, 5.0), draw.choice((1, 1, 2))
            ended = one_run(cluster, kind, moment, nodes, tally)
            say(f"{number}/{given.runs} {kind.name}, {moment:.2f} s, {nodes} node(s): {ended}")
            done = number
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        cluster.down()
    counts = [f"{tally.bad[what]} {what}" for what in ("hang", "wrong exit code", "leftover", "traceback", "silence")]
    minutes = (time.monotonic() - began) / 60
    say(
        f"soak: {done} runs in {minutes:.1f} min, seed {seed}: {', '.join(counts)}; "
        f"slowest end {tally.slowest:.1f} s after the fault"
    )
    return 1 if tally.bad or done < given.runs else 0


if __name__ == "__main__":
    sys.exit(main())
