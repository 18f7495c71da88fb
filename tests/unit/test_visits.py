"""Which run a word means, and how what its workers do is added up and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchlet.rendezvous import CoordinatorRecord
from batchlet.visits import find, prompt, ps, top
from batchlet.visits.find import Run
from batchlet.visits.probe import Life, Seen
from batchlet.visits.usage import total_of, workers_of

GIB = 1 << 30


def run(name: str, job: str = "", began: float = 0.0) -> Run:
    record = CoordinatorRecord(name, "n", "n1", "10.0.0.1", 1, "ab" * 32, job=job, began=began)
    return Run(Path(f"/x/{name}.json"), None, record)


RUNS = [
    run("slurm-hpc-4242.0", "slurm job 4242.0"),
    run("slurm-hpc-4243.0", "slurm job 4243.0"),
    run("slurm-hpc-4243.1", "slurm job 4243.1"),
    run("slurm-hpc-42.0", "slurm job 42.0"),
    run("local-77-abcd", "local"),
    run("local-7", "local"),
    run("local-7-more", "local"),
]


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("slurm-hpc-4242.0", "slurm-hpc-4242.0"),
        ("4242", "slurm-hpc-4242.0"),
        ("42", "slurm-hpc-42.0"),
        ("4243", "slurm-hpc-4243.0 slurm-hpc-4243.1"),
        ("4243.1", "slurm-hpc-4243.1"),
        ("local-7", "local-7"),
        ("local-77", "local-77-abcd"),
        ("local", "local-77-abcd local-7 local-7-more"),
        ("0", ""),
        ("hpc", ""),
        ("job", ""),
        ("", " ".join(each.name for each in RUNS)),
        (None, " ".join(each.name for each in RUNS)),
    ],
)
def test_a_word_means_a_name_before_a_job_before_the_beginning_of_a_name(word, names):
    assert " ".join(found.name for found in find.matching(word, RUNS)) == names


def worker(number: int, **metrics: object) -> dict:
    return {
        "name": number,
        "host": f"10.0.0.{number % 4}",
        "nthreads": 2,
        "memory_limit": 2 * GIB,
        "status": metrics.pop("status", "running"),
        "metrics": {"cpu": 0, "memory": 0, **metrics},
    }


def identity(*workers: dict) -> dict:
    return {"workers": {f"tls://{number}": each for number, each in enumerate(workers)}}


def test_workers_are_added_up_the_net_of_a_host_once_and_the_interesting_ones_come_first():
    net = {"host_net_io": {"read_bps": 1000.0, "write_bps": 24.0}}
    found = workers_of(
        identity(
            worker(1, cpu=50, memory=GIB, task_counts={"executing": 1, "ready": 3}, **net),
            worker(2, cpu=200, memory=GIB // 2, task_counts={"executing": 2}, **net),
            worker(3, memory=2 * GIB, status="paused", spilled_bytes={"memory": 1, "disk": GIB}, **net),
            worker(5, **net),
        )
    )
    assert [each.name for each in found] == ["3", "2", "1", "5"]
    total = total_of(found)
    assert (total.workers, total.nodes, total.threads, total.executing, total.waiting) == (4, 3, 8, 3, 3)
    assert (total.cpu, total.memory, total.limit) == (2.5 / 8, int(3.5 * GIB), 8 * GIB)
    assert (total.spilled, total.network, total.paused) == (GIB, 3 * 1024, 1)


@pytest.mark.parametrize("said", [{}, {"workers": {}}, identity({}), identity({"nthreads": 0, "metrics": None})])
def test_a_scheduler_that_says_little_is_no_error(said):
    total = total_of(workers_of(said))
    assert total.cpu == total.memory == total.executing == 0


class Visit:
    """A visit as far as what is shown depends on it."""

    def __init__(self) -> None:
        self.record, self.run_id, self.cluster = RUNS[0].record, RUNS[0].name, object()


def test_five_hundred_workers_are_as_many_lines_as_there_is_room_for():
    found = workers_of(identity(*(worker(number, cpu=number % 200) for number in range(500))))
    lines = top._text(Visit(), found, 20).splitlines()
    assert len(lines) == 1 + 1 + 20 + 1
    assert "500 workers on 4 nodes" in lines[0]
    assert lines[-1] == "and 480 more, less busy"
    assert max(map(len, lines[1:])) < 100
    assert len({line.rindex("/s") for line in lines[2:-1]}) == 1, "columns stand one below the other"
    assert top._text(Visit(), None, 20).splitlines()[0].endswith("its scheduler is busy")


def test_the_table_of_runs_has_a_column_for_each_figure_and_room_for_what_is_said_instead():
    use = total_of(workers_of(identity(worker(1, cpu=50, memory=GIB), worker(2))))
    rows = [ps._row(RUNS[0], Seen(Life.ALIVE, cluster=object()), use), ps._row(RUNS[4], Seen(Life.ALIVE), None)]
    head, one, other = ps._table(rows).splitlines()
    assert one[head.index("WORKERS") :].startswith("2 ")
    assert one[head.index("CPUS") :].startswith("12 % of 4")
    assert one[head.index("MEMORY") :].startswith("25 % of 4.00 GiB")
    assert other[head.index("NODES") :] == "    no cluster at the moment" or other.endswith("no cluster at the moment")


@pytest.mark.parametrize(
    ("words", "means"),
    [
        ([], (None, None, None, ())),
        (["4242"], ("4242", None, None, ())),
        (["-c", "code"], (None, "code", "code", ())),
        (["4242", "-c", "code", "-x", "y"], ("4242", "code", "code", ("-x", "y"))),
        (["4242", "look.py", "-c", "--help"], ("4242", "script", "look.py", ("-c", "--help"))),
    ],
)
def test_nothing_behind_the_code_or_the_script_is_ours(words, means):
    which, program = prompt._parse(words)
    found = (None, None, ()) if program is None else (program.kind, program.target, program.arguments)
    assert (which, *found) == means


@pytest.mark.parametrize("words", [["-c"], ["-x"], ["4242", "-x"]])
def test_a_command_line_that_cannot_be_understood_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        prompt._parse(words)
    assert end.value.code == 2
    assert "usage: python -m batchlet attach" in capsys.readouterr().err
