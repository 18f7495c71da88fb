"""A map of 1,000 tasks whose job is stopped three times, at random moments and in random ways. Run by hand, as root::

    python tests/soak_time.py --runs 20 [--seed S] [--instance K] [--kinds limit,rank,step,preempt]

Each run is a batch job on a test cluster of its own, with ``requeue``; how and when it is stopped is drawn from the seed:

- ``limit``: its time (``--time=2``, a real limit of Slurm's) is nearly over, as the run notices by itself;
- ``rank``: SIGTERM to the process of one of the ranks;
- ``step``: SIGTERM to the whole step, as ``sbatch --signal`` has Slurm send it;
- ``preempt``: another job gets its nodes.

It must give the result of an undisturbed run with exit code 0, be requeued once for each stop, compute at most 5 % of its tasks
twice, and leave nothing. The exit code is 0 if all runs do.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "slurm")]

import psutil  # noqa: E402
from cluster_slurm import SlurmCluster  # noqa: E402
from run_helpers import WORKLOADS, BatchJob, Place, environ_of, poll  # noqa: E402

TASKS, SECONDS, RANKS, NODES = 1000, 0.25, 8, 2
STOPS = 3
# What may be computed twice.
MOST = 0.05
KINDS = ("limit", "rank", "step", "preempt")
# Seconds of a job with --time=2, after which it is stopped where that is by its limit; and else hardly ever.
LIMIT, EARLIEST, LATEST, NEVER = 120, 25.0, 35.0, 110.0
# Tasks that are done before a signal comes.
TASKS_BEFORE = 200
# Seconds for a requeued job to start, to be stopped, and to end.
PATIENCE = 240


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


class Disturbed:
    """One run."""

    def __init__(self, place: Place, kinds: list[str], draw: random.Random) -> None:
        self._place = place
        self._kinds = kinds
        self._draw = draw
        leads = [LIMIT - (draw.uniform(EARLIEST, LATEST) if kind == "limit" else NEVER) for kind in kinds]
        leads.append(LIMIT - NEVER)
        where = ["--exclusive", f"--nodes={NODES}", "--partition=low"] if "preempt" in kinds else [f"--nodes={NODES}"]
        argv = f"{TASKS} {SECONDS} {','.join(f'{lead:.1f}' for lead in leads)}"
        self.job = BatchJob(
            place, "--open-mode=append", "--time=2", *where, f"--ntasks={RANKS}", f"--ntasks-per-node={RANKS // NODES}",
            script=f"#!/bin/sh\nexec srun --ntasks={RANKS} {sys.executable} {WORKLOADS / 'long_map.py'} {argv}\n",
        )  # fmt: skip

    @property
    def output(self) -> str:
        path = self._place.cwd / f"slurm-{self.job.id}.out"
        return path.read_text() if path.exists() else ""

    @property
    def computed(self) -> list[int]:
        path = self._place.cwd / "computed"
        return [int(number) for number in path.read_text().split()] if path.exists() else []

    def run(self) -> list[str]:
        """Stop it as often as it is to be; what is not as it should be."""
        for number, kind in enumerate(self._kinds, 1):
            if not self._until(lambda number=number: f"attempt {number} has" in self.output):
                return [f"attempt {number} did not come: {self._facts()}"]
            if kind != "limit":
                self._stop(kind)
            if not self._until(lambda number=number: self._restarts() >= number or self._is_over()):
                return [f"attempt {number} was not stopped by {kind}: {self._facts()}"]
            if self._restarts() < number:
                return [f"the job was not requeued after {kind}: {self._facts()}"]
        done = self.job.wait(PATIENCE)
        again, counted = self._restarts(), Counter(self.computed)
        twice = sum(counted.values()) - len(counted)
        found = {
            f"exit code {done.rc}": done.rc != 0,
            # An attempt that is slow on a busy machine may be stopped by its limit, too.
            f"requeued {again} times": not len(self._kinds) <= again == done.output.count("\nbatchlet: ended by "),
            "no result": f"RESULT {sum(n * n for n in range(TASKS))}\n" not in done.output,
            f"{TASKS - len(counted)} tasks not done": len(counted) != TASKS,
            f"{twice} tasks done twice": twice > MOST * TASKS,
        }
        self.twice = twice
        for name in ("computed", "results.json"):
            (self._place.cwd / name).unlink(missing_ok=True)
        problems = [text for text, bad in found.items() if bad]
        return [*problems, done.output] if problems else []

    def _stop(self, kind: str) -> None:
        """Wait for a random moment, and stop the attempt that runs."""
        enough = len(self.computed) + self._draw.randrange(TASKS_BEFORE)
        self._until(lambda: len(self.computed) >= enough)
        time.sleep(self._draw.uniform(0, SECONDS))
        if kind == "rank":
            self._draw.choice(self._ranks()).send_signal(signal.SIGTERM)
        elif kind == "step":
            self._place.run_only("scancel", "--signal=TERM", f"{self.job.id}.0", timeout=20)
        else:
            everything = f"--nodes={len(self._place.run_only('sinfo', '-hN', '-pmain', '-o%n').stdout.split())}"
            BatchJob(
                self._place, everything, "--exclusive", "--partition=high", "--output=/dev/null",
                script="#!/bin/sh\nsleep 1\n",
            )  # fmt: skip

    def _ranks(self) -> list[psutil.Process]:
        """Name the processes that srun has started: a rank's own, be it a shell by now."""
        found = []
        for process in self._place.processes():
            environ = environ_of(process)
            if "SLURM_PROCID" not in environ:
                continue
            try:
                # The batch script is called the same, and has become srun, which ends all at once when it is told to end.
                if "slurmstepd" in process.parent().name() and process.name() != "srun":
                    found.append(process)
            except (psutil.Error, AttributeError):
                continue
        return sorted(found, key=lambda process: process.pid)

    def _until(self, condition: Callable[[], object]) -> object:
        return poll(condition, PATIENCE, 0.1)

    def _facts(self) -> str:
        return f"{self.job._facts()}\n{self.output}"

    def _restarts(self) -> int:
        return int(self.job._facts().get("Restarts", 0))

    def _is_over(self) -> bool:
        return self.job._facts_of_its_end() is not None


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"ways to stop it (default: {','.join(KINDS)})")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--instance", type=int, default=8, help="number of the test cluster (default: 8)")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    cluster = SlurmCluster(given.instance)
    cluster.down()
    cluster.up()
    bad, most = 0, 0
    try:
        for number in range(1, given.runs + 1):
            draw = random.Random(f"{seed} {number}")
            kinds = [draw.choice(given.kinds.split(",")) for _ in range(STOPS)]
            place = Place(cluster.env(), on_timeout=cluster.end_jobs)
            began = time.monotonic()
            try:
                run = Disturbed(place, kinds, draw)
                problems = run.run()
                place.run_only("scancel", "--full", run.job.id)
                poll(lambda place=place: not place.run_only("squeue", "--noheader").stdout.strip(), 60)
                poll(lambda place=place: not place.processes(), 5)
                problems += [f"left: {process}" for process in place.processes()]
                # Scratch on a node whose job was ended in one moment, the next job there removes.
                left = [path for path in place.files() if not path.name.startswith(("batchlet-", "slurm-"))]
                problems += [f"left: {path}" for path in left]
            finally:
                place.close()
            bad += bool(problems)
            most = max(most, getattr(run, "twice", 0))
            what = "as it should be" if not problems else "\n".join(problems)
            say(
                f"run {number} ({', '.join(kinds)}) after {time.monotonic() - began:.0f} s, "
                f"{getattr(run, 'twice', '?')} tasks twice: {what}"
            )
    finally:
        cluster.down()
    say(
        f"soak: seed {seed}, {given.runs - bad} of {given.runs} runs as they should be; at most {most} tasks done twice"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
