"""What leaves a process of its log, and what is kept of a run's, is bounded; the newest count, the others are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchlet.run_report.collector import Collector
from batchlet.run_report.log_lines import Funnel, Limits, LogStore, Ways, as_row, cut, for_report, level_of, written


def line(number: int, who: str = "worker 3", at: float | None = None) -> tuple:
    return (float(number) if at is None else at, "warning", who, 3, "n1", "mine", f"line {number}")


class Way:
    """A funnel, its clock, and what has come through."""

    def __init__(self, burst: int = 3, rate: float = 2.0, kept: int = 4) -> None:
        self.now = 0.0
        self.lines: list[tuple] = []
        self.dropped = 0
        self.funnel = Funnel(self.send, Limits(burst, rate, kept), lambda: self.now)

    def send(self, lines: list, dropped: int) -> None:
        self.lines += lines
        self.dropped += dropped

    @property
    def texts(self) -> list[int]:
        return [int(text.split()[1]) for *_, text in self.lines]


def test_few_lines_come_through_at_once():
    way = Way()
    for number in range(3):
        way.funnel.put(line(number))
        assert way.texts == list(range(number + 1))
    assert way.dropped == 0


def test_of_many_the_newest_come_later_and_the_others_are_counted():
    way = Way()
    for number in range(100):
        way.funnel.put(line(number))
    assert way.texts == [0, 1, 2]
    way.now = 1.0
    way.funnel.tick()
    assert way.texts == [0, 1, 2, 96, 97]
    way.funnel.drain()
    assert way.texts == [0, 1, 2, 96, 97, 98, 99]
    assert way.dropped == 93


def test_a_process_that_floods_does_not_silence_another_one():
    way = Way()
    for number in range(50):
        way.funnel.put(line(number, "worker 3"))
    way.funnel.put(line(1, "worker 4"))
    way.now = 1.0
    way.funnel.tick()
    assert [who for _, _, who, *_ in way.lines] == ["worker 3"] * 4 + ["worker 4"]


def test_while_nothing_may_pass_a_line_need_not_be_made():
    way = Way()
    for number in range(3):
        assert not way.funnel.refuses()
        way.funnel.put(line(number))
    assert all(way.funnel.refuses() for _ in range(10))
    way.now = 0.6
    assert not way.funnel.refuses()
    way.funnel.put(line(7))
    assert (way.texts, way.dropped) == ([0, 1, 2, 7], 10)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=200), st.integers(1, 9), st.integers(1, 9))
def test_no_more_comes_through_than_may_and_nothing_is_lost_uncounted(said, burst, kept):
    way = Way(burst, 2.0, kept)
    for number, (who, pause) in enumerate(said):
        way.now += pause
        way.funnel.put(line(number, who))
        assert len(way.lines) <= burst + 2.0 * way.now + 1e-6
    way.funnel.drain()
    assert len(way.lines) + way.dropped == len(said)


def test_a_flood_of_warnings_holds_up_no_error():
    said: list = []
    ways = Ways(lambda lines, _: said.extend(lines), Limits(3, 2.0, 4), lambda: 0.0)
    for number in range(100):
        ways.put(line(number))
    assert ways.refuses("warning")
    assert not ways.refuses("critical")
    ways.put((1.0, "error", *line(7)[2:]))
    assert [one[1] for one in said] == ["warning"] * 3 + ["error"]
    ways.drain()
    assert len(said) == 8


def test_a_store_keeps_the_newest_of_each_process():
    store = LogStore(each=2, total=100)
    for number in range(5):
        store.log(*line(number, "worker 3"))
    store.log(*line(2, "scheduler", at=2.5))
    assert [(at, who) for at, _, who, *_ in store.lines()] == [(2.5, "scheduler"), (3.0, "worker 3"), (4.0, "worker 3")]
    assert store.dropped == 3


def test_a_store_is_bounded_however_many_processes_there_are():
    store = LogStore(each=10, total=50)
    for number in range(1000):
        store.log(*line(number, f"worker {number % 100}"))
        assert len(store.lines()) <= 50
    assert len(store.lines()) + store.dropped == 1000
    assert store.lines()[-1][-1] == "line 999"


def test_lines_are_told_to_the_report_with_the_number_of_those_left_out():
    told = for_report([line(1)], 7)
    assert told == [("log", as_row(line(1))), ("dropped", {"lines": 7})]
    collector = Collector(0.0, {})
    collector.take(9.0, told, "n9")
    assert collector.logs.lines() == [line(1)]
    assert collector.logs.dropped == 7
    collector.log(2.0, "odd", "worker 3", None, "n1", "mine", "x" * 10_000)
    kept = collector.logs.lines()[-1]
    assert kept[1] == "warning"
    assert len(kept[-1]) < 2100


def test_a_store_is_told_in_parts_of_one_moment():
    store = LogStore(each=1000)
    for number in range(250):
        store.log(*line(number))
    told: list = []
    while True:
        part, count, _ = store.part(len(told))
        told += part
        store.log(*line(1000 + len(told)))
        if len(told) >= count:
            break
    assert [text for *_, text in told] == [f"line {number}" for number in range(250)]
    assert store.part(10_000)[0] == []


@pytest.mark.parametrize(
    ("rank", "who", "expected"),
    [
        (3, "worker 3", "worker 3, node n1"),
        (2, "worker 2-1", "worker 2-1, rank 2, node n1"),
        (None, "host of the workers", "host of the workers, node n1"),
        (0, "scheduler", "scheduler, rank 0, node n1"),
    ],
)
def test_a_line_is_written_with_its_process_rank_and_node(rank, who, expected):
    text = written((0.25, "error", who, rank, "n1", "mine", "bad"))
    assert text.endswith(f",250 - {expected} - mine - ERROR - bad")


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = cut("begin" + "x" * 100_000 + "end")
    assert len(text) < 2100
    assert text.startswith("begin")
    assert text.endswith("end")
    assert cut("short") == "short"
    assert [level_of(number) for number in (30, 35, 40, 50, 60)] == [
        "warning",
        "warning",
        "error",
        "critical",
        "critical",
    ]
