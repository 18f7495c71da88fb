"""Kill agents of one run after another, at random, and count the runs that a user would complain of. Run by hand, as root::

    python tests/soak_agents.py --runs 50 [--seed S] [--instance K] [--only "two nodes"]

Each run is a script under srun, on a test cluster of its own, launched in one of several ways; how many agents die, and when
(the start and the end included), is drawn from the seed. Each run must have the right results, its workers under their names,
addresses and limits, one line for each death, exit code 0, and leave nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "slurm")]

from cluster_slurm import SlurmCluster  # noqa: E402
from fault_helpers import Running  # noqa: E402
from host_faults import SHAPES, Moment, judge, kill_some, told  # noqa: E402
from run_helpers import Place  # noqa: E402

WORK = 2.0
# Seconds in which each run must end after the last death: a busy machine takes several times as long as a quiet one.
LIMIT = 90.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def one_run(cluster: SlurmCluster, name: str, draw: random.Random, deaths: int) -> tuple[str, str | None]:
    """Do one run; return a word on how it ended, and what was wrong with it."""
    shape = SHAPES[name]
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    running = Running(place, *shape.line(WORK), env=shape.env)
    moments = sorted(Moment.drawn(draw, shape) for _ in range(deaths))
    try:
        try:
            killed, noticed = kill_some(running, shape.blocks, draw, moments)
            result = running.finish(LIMIT)
            problem = judge(shape, result, killed, noticed)
            running.assert_nothing_left(result)
        except AssertionError as error:
            return "failed", str(error)
        word = f"{killed} died at {', '.join(map(str, moments))}; {told(result)} told; {result.seconds:.1f} s after"
        return word, f"{problem}\n{result}" if problem else None
    finally:
        running.end()
        place.close()


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", help="name of the one way to start that is drawn (default: all)")
    parser.add_argument("--instance", type=int, default=8, help="number of the test cluster (default: 8)")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    names = [name for name in SHAPES if given.only in (None, name)]
    cluster = SlurmCluster(given.instance)
    cluster.down()
    cluster.up()
    began, done, bad = time.monotonic(), 0, 0
    try:
        for number in range(1, given.runs + 1):
            name, deaths = draw.choice(names), draw.choice((1, 1, 1, 2, 2, 3))
            word, problem = one_run(cluster, name, random.Random(draw.random()), deaths)
            say(f"{number}/{given.runs} {name}: {word}")
            if problem:
                bad += 1
                say("\n".join(f"    | {line}" for line in problem.splitlines()))
            done = number
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        cluster.down()
    say(f"soak: {done} runs in {(time.monotonic() - began) / 60:.1f} min, seed {seed}: {bad} not as they should be")
    return 1 if bad or done < given.runs else 0


if __name__ == "__main__":
    sys.exit(main())
