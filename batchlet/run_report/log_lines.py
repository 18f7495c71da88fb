"""What the processes of a run log at level "warning" and above: the form of a line, and how much of it travels and is kept.

A process may log a million lines a second. What leaves it is bounded for each second (`Funnel`), and what is kept is bounded
for each process and in all (`LogStore`); both prefer what is new, and count what they leave out.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "AT",
    "LEVELS",
    "NODE",
    "RANK",
    "WHO",
    "Funnel",
    "Limits",
    "LogLine",
    "LogStore",
    "Ways",
    "as_row",
    "cut",
    "for_report",
    "level_of",
    "written",
]

#: Seconds since the epoch, level, process ("worker 3", "scheduler"), rank or `None`, node, logger, text; JSON makes it a list.
LogLine = Sequence[Any]
#: Where these are in it.
AT, LEVEL, WHO, RANK, NODE, LOGGER, TEXT = range(7)

LEVELS = ("warning", "error", "critical")
# Characters of a line; a traceback says what matters at its end.
_HEAD, _TAIL = 600, 1400
# Lines of a message, and their characters.
_TOGETHER, _SIZE = 100, 100_000
# Lines that are kept of each process at least, however many there are.
_LEAST = 5


def level_of(number: int) -> str:
    """Name a level of `logging` that is "warning" or above."""
    return LEVELS[0 if number < 40 else 1 if number < 50 else 2]


def cut(text: str) -> str:
    """Leave out the middle of a text that is too long to be kept."""
    if len(text) <= _HEAD + _TAIL:
        return text
    return f"{text[:_HEAD]} [... {len(text) - _HEAD - _TAIL} characters ...] {text[-_TAIL:]}"


def written(line: LogLine) -> str:
    """Write a line for people."""
    at, level, who, rank, node, logger, text = line
    moment = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))},{int(at % 1 * 1000):03}"
    whose = f"{who}, node {node}" if rank is None or who == f"worker {rank}" else f"{who}, rank {rank}, node {node}"
    return f"{moment} - {whose} - {logger} - {level.upper()} - {text}"


def as_row(line: LogLine) -> dict[str, Any]:
    """Give a line in the form that reports have, but for the moment, which is still since the epoch."""
    return dict(zip(("at", "level", "who", "rank", "node", "logger", "text"), line, strict=True))


def for_report(lines: Iterable[LogLine], dropped: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Give what is to be told of lines; see `batchlet.run_report.told.Told.take`.

    Parameters
    ----------
    lines : iterable of LogLine
        What was said.
    dropped : int
        How many lines were left out before.
    """
    told = [("log", as_row(line)) for line in lines]
    return [*told, ("dropped", {"lines": dropped})] if dropped else told


class Limits(NamedTuple):
    """How much a `Funnel` lets through.

    Parameters
    ----------
    burst : int
        Lines that may come at once.
    rate : float
        Lines in each second from then on.
    kept : int
        Lines of each process that may wait.
    """

    burst: int
    rate: float
    kept: int


class Funnel:
    """A way for lines that lets so many through at once, and so many in a second from then on; thread-safe.

    Those that must wait are kept for each process whose they are, the newest of them.

    Parameters
    ----------
    send : callable
        Gets lines, and how many were left out before them. Called by whoever has brought a line, or `tick` or `drain`.
    limits : Limits
        How much it lets through.
    clock : callable
        Gives seconds.
    """

    def __init__(
        self,
        send: Callable[[list[LogLine], int], object],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._burst = float(limits.burst)
        self._rate = limits.rate
        self._kept = limits.kept
        self._clock = clock
        self._free = self._burst
        self._then = self._closed_until = clock()
        # By process.
        self._waiting: dict[str, deque[LogLine]] = {}
        self._dropped = 0
        # What is said while something is sent, as by a signal's handler in the same thread, must not stop it.
        self._lock = threading.RLock()

    def refuses(self) -> bool:
        """Whether a line would have to wait now, which is then counted as left out: quicker than to make one and `put` it."""
        if self._clock() < self._closed_until:
            self._dropped += 1
            return True
        return False

    def put(self, line: LogLine) -> None:
        """Let a line through, now or later, unless newer ones are too many."""
        with self._lock:
            waiting = self._waiting.get(line[WHO])
            if waiting is None:
                waiting = self._waiting[line[WHO]] = deque()
            elif len(waiting) >= self._kept:
                waiting.popleft()
                self._dropped += 1
            waiting.append(line)
            self._let_through()

    def lose(self, count: int) -> None:
        """Note lines that were left out elsewhere."""
        with self._lock:
            self._dropped += count

    def tick(self) -> None:
        """Let through what may go by now."""
        with self._lock:
            if self._waiting or self._dropped:
                self._let_through()

    def drain(self) -> None:
        """Let through all that waits."""
        with self._lock:
            self._flush(math.inf)

    def _let_through(self) -> None:
        now = self._clock()
        self._free = min(self._burst, self._free + (now - self._then) * self._rate)
        self._then = now
        self._free -= self._flush(self._free)
        self._closed_until = now + max(0.0, 1 - self._free) / self._rate

    def _flush(self, allowed: float) -> int:
        count = 0
        while allowed - count >= 1 and (self._waiting or self._dropped):
            lines: list[LogLine] = []
            size = 0
            while self._waiting and allowed - count >= 1 and len(lines) < _TOGETHER and size < _SIZE:
                # In turn, one of each process.
                who = next(iter(self._waiting))
                waiting = self._waiting.pop(who)
                lines.append(waiting.popleft())
                if waiting:
                    self._waiting[who] = waiting
                size += len(lines[-1][TEXT])
                count += 1
            dropped, self._dropped = self._dropped, 0
            self._send(lines, dropped)
        return count


class Ways:
    """Two funnels: a flood of warnings holds up no error.

    Parameters
    ----------
    send, limits, clock
        Of each; see `Funnel`.
    """

    def __init__(
        self,
        send: Callable[[list[LogLine], int], object],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._warnings, self._errors = (Funnel(send, limits, clock) for _ in range(2))

    def put(self, line: LogLine) -> None:
        """Let a line through, now or later; see `Funnel.put`."""
        (self._warnings if line[LEVEL] == LEVELS[0] else self._errors).put(line)

    def refuses(self, level: str) -> bool:
        """Whether a line of this level would have to wait now; see `Funnel.refuses`."""
        return (self._warnings if level == LEVELS[0] else self._errors).refuses()

    def lose(self, count: int) -> None:
        """Note lines that were left out elsewhere."""
        self._warnings.lose(count)

    def tick(self) -> None:
        """Let through what may go by now."""
        for funnel in (self._errors, self._warnings):
            funnel.tick()

    def drain(self) -> None:
        """Let through all that waits."""
        for funnel in (self._errors, self._warnings):
            funnel.drain()


class LogStore:
    """The lines of a run, the newest of each process, and of these the warnings apart from the errors; thread-safe.

    Parameters
    ----------
    each : int
        Lines of each process, so many warnings and so many errors; fewer, where there are so many processes that they would be
        more than `total` in all.
    total : int
        Lines of all of them.
    """

    def __init__(self, each: int = 100, total: int = 2_000) -> None:
        self._each = each
        self._total = total
        self._count = 0
        self._kept: dict[tuple[str, str, bool], deque[LogLine]] = {}
        self._shown: list[LogLine] = []
        self._lock = threading.RLock()
        #: Lines that there was no room for, here or on the way.
        self.dropped = 0

    def log(self, at: float, level: str, who: str, rank: int | None, node: str, logger: str, text: str) -> None:
        """Keep a line."""
        known = level.lower()
        known = known if known in LEVELS else LEVELS[0]
        with self._lock:
            kept = self._kept.setdefault((who, node, known == LEVELS[0]), deque())
            kept.append((at, known, who, rank, node, logger, cut(text)))
            self._count += 1
            if len(kept) > self._each:
                self._leave_out(kept)
            self._make_room()

    def _make_room(self) -> None:
        while self._count > self._total:
            if self._each > _LEAST:
                self._each = max(_LEAST, self._each // 2)
                for lines in self._kept.values():
                    while len(lines) > self._each:
                        self._leave_out(lines)
            else:
                # More processes than there is room for: that of the one that was first to speak.
                oldest = next(iter(self._kept))
                self._leave_out(self._kept[oldest])
                if not self._kept[oldest]:
                    del self._kept[oldest]

    def _leave_out(self, lines: deque[LogLine]) -> None:
        lines.popleft()
        self._count -= 1
        self.dropped += 1

    def lines(self) -> list[LogLine]:
        """Give all lines, in the order of their time."""
        with self._lock:
            return sorted((line for kept in self._kept.values() for line in kept), key=lambda line: line[AT])

    def part(self, start: int) -> tuple[list[LogLine], int, int]:
        """Give some lines for a message, how many there are and were left out; from the first on those of this moment."""
        if start == 0:
            self._shown = self.lines()
        start = max(0, start)
        return self._shown[start : start + _TOGETHER], len(self._shown), self.dropped
