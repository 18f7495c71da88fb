"""From a report to advice in plain words: what would have been quicker, or cheaper, and what to type.

Nothing is said on too little evidence, and one subject gets one piece of advice at most, so that no two contradict each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .asking import memory_option, rounded_time, time_option
from .summary import Course, lasted, total
from .wording import asked_time, clock, count, cut, duration, names_of, percent, span_of

__all__ = ["advise"]

Report = Mapping[str, Any]
Advice = dict[str, str]

# Seconds of work below which nothing is said of how the grant was used.
_SHORT = 60.0
# Samples below which nothing is said of what happened when.
_FEW_SAMPLES = 10
# Dask begins to move data to disk at six tenths of a worker's limit (`distributed.worker.memory.target`).
_SPILL_FROM = 0.6
# A worker pauses at eight tenths, and is ended at 95 % (`distributed.worker.memory`).
_CLOSE = 0.85
# Bytes on disk that are worth a word, and their part of the workers' memory.
_SPILLED, _SPILLED_PART = 1 << 30, 0.02
# Part of the CPUs that is busy where nothing is said of them.
_BUSY = 0.7
# Part of the time in which hardly anything ran, from which it is told.
_WAITED = 0.3
# Dask needs a good part of a millisecond for each task: seconds, and tasks.
_TINY, _MANY = 1e-3, 10_000
# Characters of a name that is quoted.
_NAME = 60


def advise(report: Report) -> list[Advice]:
    """Give the advice that a report supports.

    Parameters
    ----------
    report : mapping
        The report, in the form of ``schema.json``; what it has under "advice" is not looked at.

    Returns
    -------
    list of dict
        As the schema has it, each with "about" and "text"; the most useful first.
    """
    found: list[Advice] = []
    for rule in _RULES:
        found += rule(report)
    return found


def _faults(report: Report) -> Iterator[Advice]:
    """Processes that died."""
    again = {name: worker for name, worker in report["workers"].items() if worker["restarts"]}
    lost = [event for event in report["events"] if event["kind"] in ("agent", "node")]
    if not again and not lost:
        return
    parts = []
    if again:
        times = sum(worker["restarts"] for worker in again.values())
        parts.append(
            f"{names_of([f'worker {cut(name, _NAME)}' for name in again], 3)} had to be started anew"
            + (f" ({times} times in all)" if times > 1 else "")
            + ", and what was lost was done again"
        )
    if lost:
        where = {event["node"] for event in lost if event["node"]}
        parts.append(
            "the processes that host the workers were lost"
            + (f" on {names_of(sorted(cut(node, _NAME) for node in where), 3)}" if where else "")
        )
    text = "; ".join(parts)
    full = [name for name, worker in again.items() if worker["memory_peak"] >= _CLOSE * worker["memory_limit"] > 0]
    why = (
        f"Worker {cut(full[0], _NAME)} was close to its memory limit before: that is the likely cause."
        if full
        else "The events and the logs say when and by what."
    )
    yield _advice("faults", f"{text[:1].upper()}{text[1:]}. {why}")


def _time(report: Report) -> Iterator[Advice]:
    """The time limit, where it was met, nearly met, or far away."""
    limit, used, state = report["time"]["limit"], span_of(report), report["outcome"]["state"]
    error = report["outcome"]["error"]
    if error is not None and error["kind"] == "TimeIsUpError":
        yield _advice(
            "time", "The time was up before the work was done: ask for more, or go on in another job (`requeue`)."
        )
    elif limit is not None and state == "done" and used >= _SHORT:
        if used >= 0.9 * limit:
            option = time_option(report, rounded_time(used * 1.5))
            yield _advice(
                "time",
                f"The run ended {duration(max(0.0, limit - used))} before its time limit of {asked_time(limit)}: a little more "
                f"work would not have fitted. Ask for {option}, or let it stop in time (`stop_before`).",
            )
        elif limit - used >= 1800.0 and (asked := rounded_time(max(600.0, used * 1.5))) <= limit / 2:
            yield _advice(
                "time",
                f"The job had {duration(limit)} and needed {duration(used)}. Jobs that ask for less start sooner: "
                f"{time_option(report, asked)} leaves a margin of a half.",
            )


def _memory(report: Report) -> Iterator[Advice]:
    """Memory that was too little, or more than was of use."""
    workers = report["workers"].values()
    granted = sum(worker["memory_limit"] for worker in workers)
    peaks = [worker["memory_peak"] / worker["memory_limit"] for worker in workers if worker["memory_limit"] > 0]
    if lasted(report) < _SHORT or not peaks:
        return
    peak, spilled = max(peaks), report["use"]["spilled"]
    wanted = max(
        (worker["memory_peak"] + worker["spilled_peak"]) / worker["memory_limit"]
        for worker in workers
        if worker["memory_limit"] > 0
    )
    if spilled >= max(_SPILLED, _SPILLED_PART * granted) or peak >= _CLOSE:
        factor = max(1.25, min(4.0, wanted / _SPILL_FROM))
        more = memory_option(report, factor)
        fewer = "fewer workers on a node (`workers_per_node`), each with more memory"
        ways = f"ask for {more}, or have {fewer}" if more else f"have {fewer}"
        if spilled >= max(_SPILLED, _SPILLED_PART * granted):
            text = f"Workers had too little memory and wrote data to disk, which is slow: {ways}; smaller chunks help as well."
        else:
            near = f"{sum(one >= _CLOSE for one in peaks)} of {count(len(peaks), 'worker')}"
            text = f"{near} came close to the memory limit ({percent(peak)} of it), at which Dask ends them: {ways}."
        yield _advice("spill" if spilled >= max(_SPILLED, _SPILLED_PART * granted) else "memory", text)
        return
    # What is spared has to leave room for the peak below the point where Dask begins to write to disk.
    factor = peak / _SPILL_FROM
    disturbed = report["outcome"]["state"] != "done" or spilled or any(worker["restarts"] for worker in workers)
    if disturbed or factor > 0.5 or peak <= 0:
        return
    less = memory_option(report, factor)
    if less and less != memory_option(report, 1.0):
        yield _advice(
            "memory",
            f"{_part(factor)} of the memory would do: no worker had more than {percent(peak)} of its limit. {less} keeps the "
            "peak below the point where Dask begins to write to disk.",
        )


def _part(fraction: float) -> str:
    for most, words in ((0.1, "A tenth"), (0.2, "A fifth"), (0.25, "A quarter"), (1 / 3, "A third")):
        if fraction <= 1.02 * most:
            return words
    return "Half"


def _cpu(report: Report) -> Iterator[Advice]:
    """CPUs that waited, and for what."""
    fraction, time = report["use"]["cpu_fraction"], lasted(report)
    threads = sum(worker["threads"] for worker in report["workers"].values())
    if fraction is None or fraction >= _BUSY or time < _SHORT or threads < 2:
        return
    running = total(report["nodes"], "tasks")
    if len(running) >= _FEW_SAMPLES and (found := _waited(report, running, threads)):
        yield _advice("cpu", found)
        return
    busy = sum(worker["busy_seconds"] for worker in report["workers"].values()) / (threads * time)
    used = report["use"]["cpu_seconds"] / max(1.0, sum(w["busy_seconds"] for w in report["workers"].values()))
    if busy >= 0.5 and used < 0.5:
        if max(worker["threads"] for worker in report["workers"].values()) > 1:
            text = (
                "they wait for files, for the network, or for each other (Python runs one thread at a time): more workers of "
                "one thread each may be quicker (`threads_per_worker=1`)."
            )
        else:
            text = "they wait for files or the network; more threads than CPUs do not help, larger or fewer reads do."
        yield _advice(
            "cpu",
            f"Tasks held the threads {percent(min(1.0, busy))} of the time, but the CPUs were {percent(fraction)} busy: "
            + text,
        )
    elif fraction < 0.5:
        needed = max(1, round(threads * fraction * 1.25 + 0.5))
        if needed < threads:
            yield _advice(
                "cpu",
                f"The CPUs were {percent(fraction)} busy: {needed} of {threads} threads would have done in little more time.",
            )


def _waited(report: Report, running: Course, threads: int) -> str | None:
    """Say for what the threads waited, from the number of tasks that were executing."""
    ready, end = report["time"]["ready"] or 0.0, span_of(report)
    few = max(1.5, 0.1 * threads)
    pieces = [
        (running.at[i - 1], running.at[i], running.values[i])
        for i in range(1, len(running))
        if running.at[i - 1] >= ready - 1 and running.at[i] <= end + 1
    ]
    whole = sum(until - since for since, until, _ in pieces)
    if whole < _SHORT:
        return None
    none = sum(until - since for since, until, tasks in pieces if tasks < 0.5) / whole
    low = [(since, until) for since, until, tasks in pieces if 0.5 <= tasks < few]
    part = sum(until - since for since, until in low) / whole
    if none >= _WAITED and none >= part:
        return (
            f"For {percent(none)} of the time no task was there for the workers: the script itself was at work, or waited. Do "
            "that part in tasks as well, or ask for fewer CPUs."
        )
    if part < _WAITED:
        return None
    alone = all(tasks < 1.5 for _, _, tasks in pieces if 0.5 <= tasks < few)
    most = max(tasks for _, _, tasks in pieces if 0.5 <= tasks < few)
    what = "one task" if alone else f"{round(most)} tasks at most"
    group = _culprit(report, low)
    one_by_one = alone and group is not None and group["tasks"] > 5
    of = "" if group is None else f"{' at a time,' if one_by_one else ''} of `{cut(group['name'], _NAME)}`"
    # Most of it in one stretch at the end, with more at work before.
    tail = list(itertools.takewhile(lambda piece: piece[2] < few, reversed(pieces)))
    late = sum(until - since for since, until, tasks in tail if tasks >= 0.5) >= 0.8 * part * whole
    late = late and tail[-1][0] > ready + 0.2 * (end - ready)
    if one_by_one:
        remedy = "let them run side by side (do they need each other's results, or a lock?)"
    else:
        remedy = "begin the long ones first (`priority=`), or divide them" if late else "divide it into smaller ones"
    when = f", from {clock(tail[-1][0])} on" if late else ""
    return (
        f"Workers waited {percent(part)} of the time for {what}{of}, with {threads} threads at hand{when}: {remedy}, or "
        "ask for fewer CPUs."
    )


def _culprit(report: Report, low: Sequence[tuple[float, float]]) -> Mapping[str, Any] | None:
    """Find the group of tasks that was at work in these times, where one fits."""
    length = sum(until - since for since, until in low)
    best: tuple[float, Mapping[str, Any]] | None = None
    for group in report["task_groups"]:
        first, last = group["first"], group["last"]
        if first is None or last is None or group["seconds"] < 0.5 * length:
            continue
        within = sum(max(0.0, min(until, last) - max(since, first)) for since, until in low)
        if within >= 0.6 * length:
            fits = within - 0.5 * (last - first)
            if best is None or fits > best[0]:
                best = (fits, group)
    return best[1] if best else None


def _tasks(report: Report) -> Iterator[Advice]:
    """Tasks that are too small."""
    groups = report["task_groups"]
    tasks, seconds = sum(group["tasks"] for group in groups), sum(group["seconds"] for group in groups)
    if tasks < _MANY or seconds >= tasks * _TINY:
        return
    most = max(groups, key=lambda group: group["tasks"])
    mean = f"{1e3 * seconds / tasks:.2g} ms"
    yield _advice(
        "tasks",
        f"{tasks:,} tasks took {mean} each on average, and Dask needs about as long to hand one out: make them larger (larger "
        f"chunks or partitions, several items in one task), first of all `{cut(most['name'], _NAME)}` ({most['tasks']:,}).",
    )


def _transfer(report: Report) -> Iterator[Advice]:
    """Data that was moved for longer than it was computed with."""
    groups = report["task_groups"]
    moved, computed = (sum(group[name] for group in groups) for name in ("transfer_seconds", "seconds"))
    threads = sum(worker["threads"] for worker in report["workers"].values())
    if lasted(report) < _SHORT or moved < _SHORT or moved < computed or moved < 0.1 * threads * lasted(report):
        return
    most = max(groups, key=lambda group: group["transfer_seconds"])
    yield _advice(
        "transfer",
        f"Workers fetched data from each other for {duration(moved)} in all and computed for {duration(computed)}, most of it "
        f"for `{cut(most['name'], _NAME)}`: fewer and larger workers, fewer shuffles, or chunks that fit the computation move "
        "less.",
    )


def _start(report: Report) -> Iterator[Advice]:
    """A start that took long, and what took long in it."""
    ready, whole = report["time"]["ready"], span_of(report)
    if ready is None or ready < 30.0 or ready < 0.1 * whole:
        return
    gaps = []
    for process, events in report["timeline"].items():
        ordered = sorted(events, key=lambda event: event[1])
        gaps += [(later[1] - earlier[1], later[0], process) for earlier, later in itertools.pairwise(ordered)]
    text = f"{duration(ready)} went by until all workers were there."
    if gaps and (longest := max(gaps))[0] >= 0.4 * ready:
        seconds, event, process = longest
        text += f" {duration(seconds)} of them passed before `{cut(event, _NAME)}` ({cut(process, _NAME)})."
    if report["run"]["mode"] == "slurm":
        text += " `from batchlet.early import BatchletRunner` above all other imports spares the ranks theirs."
    yield _advice(
        "start",
        f"{text} A Python environment on a node's own disk loads faster than one on a shared file system; `--timeline` shows "
        "each step.",
    )


def _gpu(report: Report) -> Iterator[Advice]:
    """GPUs that did nothing."""
    busy = total({name: node for name, node in report["nodes"].items() if node["gpu"]}, "gpu")
    if lasted(report) < _SHORT or len(busy) < _FEW_SAMPLES or busy.mean() >= 0.05:
        return
    yield _advice(
        "gpu",
        f"The GPUs were idle (all together {percent(busy.mean())} of one, on average): ask for none, or let tasks use them.",
    )


def _advice(about: str, text: str) -> Advice:
    return {"about": about, "text": text}


# The most useful first.
_RULES: tuple[Callable[[Report], Iterator[Advice]], ...] = (
    _faults, _gpu, _cpu, _transfer, _tasks, _memory, _time, _start,
)  # fmt: skip
