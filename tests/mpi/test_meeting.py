"""Under a real MPI that this test session has started itself: ``mpirun -n 4 python -m pytest --with-mpi tests/mpi``.

Here MPI is the script's own, as it is for a user who imports mpi4py.MPI; the other case, in which Batchlet starts and
finalises it, needs processes of its own: see test_mpirun.py.
"""

from __future__ import annotations

import os
import threading
import time

import pytest

from batchlet.environments import mpi
from batchlet.errors import LauncherError
from batchlet.rendezvous.base import CoordinatorRecord
from batchlet.rendezvous.mpi import MpiRendezvous

pytestmark = pytest.mark.mpi(min_size=2)


def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def rendezvous(rank: int | None = None) -> MpiRendezvous:
    comm = world()
    return MpiRendezvous(
        rank=comm.rank if rank is None else rank,
        world_size=comm.size,
        node="here",
        source="a test",
        deadline=time.monotonic() + 20,
    )


def record(number: int = 0) -> CoordinatorRecord:
    return CoordinatorRecord("run", "nonce", "here", "10.0.0.1", 4242 + number, "cd" * 32)


def test_the_launcher_and_mpi_agree():
    environment = mpi.Mpi()
    assert environment.detect(os.environ) is not None
    info = environment.process(os.environ)
    comm = world()
    assert (info.rank, info.world_size) == (comm.rank, comm.size)
    assert len(set(comm.allgather(info.run_id))) == 1
    grants = comm.allgather(environment.grant(os.environ))
    assert len(set(grants)) == 1


def test_mpi_is_available():
    assert MpiRendezvous.available() is None


@pytest.mark.parametrize("number", range(3))
def test_the_record_reaches_every_rank(number):
    place = rendezvous()
    if world().rank == 0:
        began = time.monotonic()
        place.publish(record(number))
        took = time.monotonic() - began
        place.withdraw()
    else:
        assert place.wait(time.monotonic() + 20) == record(number)
        took = 0.0
    place._thread.join(10)
    assert not place._thread.is_alive()
    assert max(world().allgather(took)) < 5


def test_the_script_goes_on_with_its_own_mpi():
    place = rendezvous()
    place.check()
    if world().rank == 0:
        place.publish(record())
        assert place._over.wait(10)
    else:
        place.wait(time.monotonic() + 20)
    place.withdraw()
    place.abandon(80)
    assert world().allreduce(1) == world().size


def test_the_ranks_of_a_node_are_known():
    from mpi4py import MPI

    place = rendezvous()
    together = world().Split_type(MPI.COMM_TYPE_SHARED)
    assert list(place.layout.local_ranks) == sorted(together.allgather(world().rank))
    together.Free()
    if world().rank == 0:
        place.publish(record())
        assert place._over.wait(10)
    else:
        place.wait(time.monotonic() + 20)


def test_a_wrong_rank_is_refused_on_every_rank():
    place = rendezvous((world().rank + 1) % world().size)
    with pytest.raises(LauncherError, match="mpi4py says rank"):
        place.check()
    place._leaving.set()
    place._thread.join(10)


def test_no_thread_is_left():
    world().Barrier()
    assert [thread.name for thread in threading.enumerate() if thread.name == "batchlet-mpi"] == []
