"""A long computation on jobs with short time limits, of which one is killed now and then. Run by hand, as root::

    python tests/soak_jobs.py --minutes 20 [--kill 30] [--walltime 2] [--seed S] [--instance K]
    python tests/soak_jobs.py --turns 10

A script on the login node of a test cluster of its own has 1 to 6 jobs by adaptive scaling; what it has to do comes and goes.
It counts what was computed more than once, jobs submitted against the fewest possible, wrong results, and jobs, processes and
files that are left; the exit code is 0 if all of that is as it should be. With ``--turns`` nothing is killed, and the script
goes so many times from no job to six and back.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "slurm")]

import psutil  # noqa: E402
from cluster_slurm import SlurmCluster  # noqa: E402
from run_helpers import Place, poll  # noqa: E402

# Jobs submitted for each that was needed.
MOST = 1.3

SCRIPT = """
import json, math, os, random, sys, threading, time
from collections import Counter
from batchlet import BatchletCluster

def work(i, seconds, marks):
    with open(marks, "a") as file:
        file.write(f"{i} ")
    time.sleep(seconds)
    return i

if __name__ == "__main__":
    seconds, minutes, seed, marks = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    draw = random.Random(seed)
    interface = {"interface": os.environ["LOGIN_INTERFACE"]}
    with BatchletCluster("slurm", cores=2, memory="600MiB", workers_per_node=2, walltime=f"00:{minutes:02}:00",
                         scheduler_options=interface) as cluster:
        adaptive = cluster.adapt(minimum_jobs=1, maximum_jobs=6)
        client = cluster.get_client()
        counted, over = Counter(), threading.Event()

        def watch():
            # For how many seconds each job was one of those that the work needs.
            while not over.wait(0.5):
                for name in list(cluster.worker_spec):
                    counted[name] += 0.5

        threading.Thread(target=watch, daemon=True).start()
        began, total, wrong, kept = time.monotonic(), 0, 0, []
        while (left := began + seconds - time.monotonic()) > 0:
            # Half a minute or two of work for all jobs, and then less, or nothing for a while.
            jobs, length = draw.choice((1, 2, 6, 6)), draw.uniform(30, 90)
            each = draw.choice((0.2, 0.5, 2.0))
            count = max(1, int(2 * jobs * min(left, length) / each))
            futures = client.map(work, range(total, total + count), seconds=each, marks=marks)
            wrong += sum(client.gather(futures)) != sum(range(total, total + count))
            # Some results stay in memory for ever.
            kept.append((total, futures[: 5]))
            total += count
            print(f"{time.monotonic() - began:.0f} s: {count} tasks of {each} s done, {len(cluster.jobs)} jobs", flush=True)
            time.sleep(draw.choice((0, 0, 5, 20)))
        for first, futures in kept:
            wrong += client.gather(futures) != list(range(first, first + len(futures)))
        over.set()
        # A job that was killed, or that was let go because there was nothing to do, has had no whole time.
        cut = [job.name for job in cluster.jobs if job.state == "lost" or job.state == "ended" and not job.succeeded]
        rest = sum(seconds for name, seconds in counted.items() if name not in cut) / (60 * minutes)
        removed = [event for _, event in cluster.scheduler.get_events("all") if event.get("action") == "remove-worker"]
        found = {
            "tasks": total, "wrong": wrong, "jobs": len(cluster.jobs), "least": len(cut) + math.ceil(rest),
            "states": Counter(job.state for job in cluster.jobs),
            # What was in the memory of killed workers, and what each of them was at; and what was lost without a kill.
            "lost": sum(len(event["lost-computed-tasks"]) + 1 for event in removed if not event["expected"]),
            "lost by retiring": sum(len(event["lost-computed-tasks"]) for event in removed if event["expected"]),
            "up, down": [sum(entry["status"] == way for _, entry in adaptive.log) for way in ("up", "down")],
        }
        client.close()
    print("RESULT", json.dumps(found))
"""


TURNS = """
import json, os, sys, time
from batchlet import BatchletCluster

def work(i):
    time.sleep(0.2)
    return i

if __name__ == "__main__":
    with BatchletCluster("slurm", cores=2, memory="600MiB", workers_per_node=2, walltime="00:10:00",
                         scheduler_options={"interface": os.environ["LOGIN_INTERFACE"]}) as cluster:
        cluster.adapt(minimum_jobs=0, maximum_jobs=6)
        client = cluster.get_client()
        most = []
        for turn in range(int(sys.argv[1])):
            before = len(cluster.jobs)
            total = sum(client.gather(client.map(work, range(300), pure=False)))
            assert total == sum(range(300)), total
            until = time.monotonic() + 60
            while cluster.worker_spec or cluster.scheduler.workers or not all(job.is_over for job in cluster.jobs):
                assert time.monotonic() < until, [str(job) for job in cluster.jobs]
                time.sleep(0.1)
            most.append(len(cluster.jobs) - before)
            print(f"turn {turn + 1}: {most[-1]} jobs", flush=True)
        client.close()
    print("RESULT", json.dumps(most))
"""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def kill_one(place: Place, draw: random.Random) -> bool:
    """Kill the agent of some job, and so the job."""
    found: dict[int, int] = {}
    for process in place.processes():
        try:
            if "batchlet.job" in process.cmdline():
                found[process.pid] = process.ppid()
        except psutil.Error:
            continue
    agents = sorted(pid for pid, parent in found.items() if parent not in found)
    if not agents:
        return False
    os.kill(draw.choice(agents), signal.SIGKILL)
    return True


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--kill", type=float, default=30, help="seconds between two kills (default: 30)")
    parser.add_argument("--walltime", type=int, default=2, help="minutes of each job (default: 2)")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--turns", type=int, default=0, help="go from 0 jobs to 6 and back, so many times, and do nothing else"
    )
    parser.add_argument("--instance", type=int, default=9, help="number of the test cluster (default: 9)")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    cluster = SlurmCluster(given.instance)
    cluster.down()
    cluster.up()
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    marks = place.base / "marks"
    marks.touch()
    kills = 0
    try:
        long = [place.script(SCRIPT), str(60 * given.minutes), str(given.walltime), str(seed), str(marks)]
        client = subprocess.Popen(
            [sys.executable, *([place.script(TURNS), str(given.turns)] if given.turns else long)],
            cwd=place.cwd, env={**place.environ, "LOGIN_INTERFACE": f"slurm{given.instance}"}, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        until = time.monotonic() + 60 * given.minutes
        while not given.turns and client.poll() is None and time.monotonic() < until:
            try:
                client.wait(given.kill)
            except subprocess.TimeoutExpired:
                kills += kill_one(place, draw)
        try:
            out, _ = client.communicate(timeout=240 + 90 * given.turns)
        except subprocess.TimeoutExpired:
            client.kill()
            out, _ = client.communicate()
            say("the client hangs")
        say(out)
        poll(lambda: not place.run_only("squeue", "--noheader").stdout.strip(), 30)
        jobs = place.run_only("squeue", "--noheader").stdout.split("\n")[:-1]
        poll(lambda: not place.processes(), 5)
        processes = [process.pid for process in place.processes()]
        # Scratch on a node whose job was killed in one moment, the next job there removes.
        files = [str(path) for path in place.files() if not path.name.startswith("batchlet-")]
        computed = len(marks.read_text().split())
    finally:
        place.close()
        cluster.down()
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if not lines:
        say(f"soak: the client ended with {client.returncode} and no result, seed {seed}")
        return 1
    found = json.loads(lines[0].removeprefix("RESULT "))
    if given.turns:
        say(
            f"soak: {given.turns} turns, jobs {found}; left: {len(jobs)} jobs, {len(processes)} processes, {len(files)} files"
        )
        return 1 if client.returncode or jobs or processes or files else 0
    twice = computed - found["tasks"]
    say(
        f"soak: {given.minutes:g} min, seed {seed}, {kills} jobs killed: "
        f"{found['tasks']} tasks, {found['wrong']} results wrong, {twice} computed once more "
        f"({found['lost']} lost with killed jobs, {found['lost by retiring']} with jobs that retired); "
        f"{found['jobs']} jobs submitted, {found['least']} the least possible ({found['jobs'] / found['least']:.2f}); "
        f"left: {len(jobs)} jobs, {len(processes)} processes, {len(files)} files"
    )
    bad = [
        client.returncode, found["wrong"], found["lost by retiring"], twice > found["lost"],
        found["jobs"] > MOST * found["least"] + 1, jobs, processes, files,
    ]  # fmt: skip
    return 1 if any(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
