"""CoordinatorRecord through MPI, with an MPI of threads: what a real one makes of it is tested in tests/mpi."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from batchlet.errors import LauncherError, RendezvousError, StartTimeoutError
from batchlet.rendezvous.base import CoordinatorRecord
from batchlet.rendezvous.mpi import MpiRendezvous, MpiUnavailableError

MEETING = CoordinatorRecord("run", "nonce", "n1", "10.0.0.1", 4242, "ab" * 32)

MADE: list[MpiRendezvous] = []


class Shared:
    """What the ranks of a pretended MPI world have in common."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.posted: dict[str, dict[int, tuple[object, ...]]] = {}
        self.finalised: set[int] = set()
        self.aborted: list[tuple[int, int]] = []


class World:
    """MPI's COMM_WORLD as one rank sees it."""

    def __init__(self, shared: Shared, rank: int) -> None:
        self._shared, self.rank, self.size = shared, rank, shared.size

    def Set_errhandler(self, handler):  # noqa: N802
        pass

    def _post(self, name, *buffers, complete=lambda _: None):
        posted = self._shared.posted.setdefault(name, {})
        posted[self.rank] = buffers

        def test():
            if len(posted) < self.size:
                return False
            complete(posted)
            return True

        return SimpleNamespace(Test=test)

    def Iallgather(self, send, receive):  # noqa: N802
        def complete(posted):
            receive[0][:] = b"".join(bytes(posted[rank][0]) for rank in range(self.size))

        return self._post("allgather", send[0], complete=complete)

    def Ibcast(self, message, root):  # noqa: N802
        def complete(posted):
            message[0][:] = posted[root][0]

        return self._post("bcast", message[0], complete=complete)

    def Ibarrier(self):  # noqa: N802
        return self._post("barrier")

    def Abort(self, code):  # noqa: N802
        self._shared.aborted.append((self.rank, code))


def pretend(shared: Shared, rank: int, *, initialised: bool = False, thread_level: int = 3) -> SimpleNamespace:
    """The module mpi4py.MPI as rank `rank` sees it."""
    state = {"initialised": initialised}
    return SimpleNamespace(
        COMM_WORLD=World(shared, rank),
        THREAD_FUNNELED=1,
        THREAD_SERIALIZED=2,
        ERRORS_RETURN=object(),
        BYTE=object(),
        Is_initialized=lambda: state["initialised"],
        Is_finalized=lambda: rank in shared.finalised,
        Query_thread=lambda: thread_level,
        Init_thread=lambda _: state.update(initialised=True),
        Finalize=lambda: shared.finalised.add(rank),
        Get_library_version=lambda: "Open MPI v5.0.11, package: Open MPI someone@somewhere, ident: 5.0.11",
    )


def meet(rank, size, mpi, *, patience=5.0, node="n1") -> MpiRendezvous:
    rendezvous = MpiRendezvous(
        rank=rank, world_size=size, node=node, source=f"PMI_RANK={rank}", deadline=time.monotonic() + patience
    )
    rendezvous._import = lambda: mpi
    MADE.append(rendezvous)
    return rendezvous


@pytest.fixture(autouse=True)
def _mpi4py_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    yield
    # The thread of a rank that has failed waits to be told how to end.
    while MADE:
        rendezvous = MADE.pop()
        rendezvous._leaving.set()
        if rendezvous._thread is not None:
            rendezvous._thread.join(5)
            assert not rendezvous._thread.is_alive()


def in_parallel(*calls):
    """Call each in a thread; return what they returned."""
    results = [None] * len(calls)

    def call(index):
        results[index] = calls[index]()

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("initialised", [False, True], ids=["ours", "the script's"])
def test_the_record_reaches_every_rank_and_mpi_is_over(initialised):
    shared = Shared(3)
    ranks = [meet(rank, 3, pretend(shared, rank, initialised=initialised)) for rank in range(3)]
    others = [lambda rank=rank: ranks[rank].wait(time.monotonic() + 5) for rank in (1, 2)]
    assert in_parallel(lambda: ranks[0].publish(MEETING), *others) == [None, MEETING, MEETING]
    for rendezvous in ranks:
        rendezvous.withdraw()
        rendezvous.withdraw()
        rendezvous.abandon(80)
        rendezvous._thread.join(5)
        assert not rendezvous._thread.is_alive()
    # What the script has started, the script ends.
    assert shared.finalised == (set() if initialised else {0, 1, 2})
    assert shared.aborted == []
    assert ("barrier" in shared.posted) is not initialised


def test_publishing_does_not_wait_for_the_others():
    shared = Shared(2)
    ranks = [meet(rank, 2, pretend(shared, rank)) for rank in range(2)]
    in_parallel(ranks[0].check, ranks[1].check)
    ranks[1]._poll = None  # never again
    began = time.monotonic()
    ranks[0].publish(MEETING)
    assert time.monotonic() - began < 1


def test_the_layout_is_who_is_on_which_node():
    shared = Shared(5)
    nodes = ["a", "b", "a", "b", "c"]
    ranks = [meet(rank, 5, pretend(shared, rank), node=nodes[rank]) for rank in range(5)]
    layouts = in_parallel(*(lambda rank=rank: ranks[rank].layout for rank in range(5)))
    assert [layout.local_ranks for layout in layouts] == [(0, 2), (1, 3), (0, 2), (1, 3), (4,)]
    assert {layout.nodes for layout in layouts} == {3}


def test_an_mpi_that_disagrees_with_the_launcher_is_a_clear_error():
    shared = Shared(1)
    rendezvous = meet(3, 6, pretend(shared, 0))
    with pytest.raises(LauncherError) as caught:
        rendezvous.check()
    message = str(caught.value)
    for words in (
        "rank 3 of 6 (PMI_RANK=3)",
        "rank 0 of 1",
        "Open MPI v5.0.11",
        "mpirun",
        "pip install",
        'rendezvous="file"',
    ):
        assert words in message
    assert shared.finalised == {0}
    assert caught.value.exit_code == 2
    with pytest.raises(LauncherError):
        rendezvous.publish(MEETING)
    began = time.monotonic()
    rendezvous.withdraw()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("missing", [0, 2])
def test_a_rank_that_never_comes_is_a_timeout_on_the_others(missing):
    shared = Shared(3)
    rank = 1
    rendezvous = meet(rank, 3, pretend(shared, rank), patience=0.3)
    began = time.monotonic()
    with pytest.raises(StartTimeoutError) as caught:
        rendezvous.check()
    assert 0.25 < time.monotonic() - began < 3
    assert "reach all ranks" in str(caught.value)
    assert "Rank 1 on node n1" in str(caught.value)
    rendezvous.abandon(80)
    assert shared.aborted == [(1, 80)]


def test_without_a_word_from_rank_0_the_others_give_up():
    shared = Shared(2)
    ranks = [meet(rank, 2, pretend(shared, rank), patience=2) for rank in range(2)]
    in_parallel(ranks[0].check, ranks[1].check)
    with pytest.raises(StartTimeoutError, match="word from rank 0"):
        ranks[1].wait(time.monotonic() + 0.2)
    ranks[0].abandon(2)
    assert shared.aborted == [(0, 2)]


def test_a_rank_that_fails_while_mpi_runs_takes_the_others_with_it():
    shared = Shared(2)
    ranks = [meet(rank, 2, pretend(shared, rank)) for rank in range(2)]
    in_parallel(ranks[0].check, ranks[1].check)
    began = time.monotonic()
    ranks[0].withdraw()
    ranks[0].abandon(2)
    assert shared.aborted == [(0, 2)]
    assert time.monotonic() - began < 1


def test_whatever_mpi_raises_is_told():
    shared = Shared(2)
    mpi = pretend(shared, 0)
    mpi.COMM_WORLD.Iallgather = lambda *_: 1 / 0
    rendezvous = meet(0, 2, mpi)
    with pytest.raises(RendezvousError, match="division by zero"):
        rendezvous.check()


@pytest.mark.parametrize(
    ("mpi", "words"),
    [
        ({"finalised": True}, "finalised"),
        ({"initialised": False}, "without initialising"),
        ({"thread_level": 1}, "single thread"),
        ({"thread_level": 0}, "single thread"),
    ],
)
def test_an_mpi_of_the_script_that_cannot_be_used_is_left_alone(monkeypatch, mpi, words):
    shared = Shared(2)
    if mpi.pop("finalised", False):
        shared.finalised.add(0)
    module = pretend(shared, 0, **{"initialised": True, **mpi})
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", module)
    assert words in (MpiRendezvous.available() or "")
    with pytest.raises(MpiUnavailableError, match=words):
        meet(0, 2, module).check()
    assert shared.posted == {}


def test_an_mpi_of_the_script_that_can_be_used_is_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", pretend(Shared(2), 0, initialised=True, thread_level=2))
    assert MpiRendezvous.available() is None


def test_without_mpi4py_mpi_is_not_available(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert MpiRendezvous.available() == "mpi4py is not installed"
    with pytest.raises(MpiUnavailableError, match=r'mpi4py is not installed.*rendezvous="file"'):
        MpiRendezvous(rank=0, world_size=2, node="n1", source="", deadline=time.monotonic() + 5).check()


@pytest.mark.parametrize("error", ["ImportError('libmpi.so.12: no')", "RuntimeError('cannot load MPI library\\nx')"])
def test_an_mpi4py_that_does_not_load_is_unavailable_and_its_settings_are_as_before(monkeypatch, tmp_path, error):
    package = tmp_path / "mpi4py"
    package.mkdir()
    (package / "__init__.py").write_text("class rc:\n    initialize = True\n    finalize = None\n")
    (package / "MPI.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mpi4py", raising=False)
    rendezvous = MpiRendezvous(rank=0, world_size=2, node="n1", source="", deadline=time.monotonic() + 5)
    with pytest.raises(MpiUnavailableError) as caught:
        rendezvous.check()
    assert "\n" not in str(caught.value)
    assert error.split("'")[1].split("\\")[0] in str(caught.value)
    assert (sys.modules["mpi4py"].rc.initialize, sys.modules["mpi4py"].rc.finalize) == (True, None)
    monkeypatch.delitem(sys.modules, "mpi4py", raising=False)


def test_a_record_that_is_too_long_is_refused():
    shared = Shared(1)
    rendezvous = meet(0, 1, pretend(shared, 0))
    with pytest.raises(RendezvousError, match="bytes"):
        rendezvous.publish(CoordinatorRecord("run", "nonce", "n" * 5000, "h", 1, "s"))
