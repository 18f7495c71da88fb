"""The ranks meet through MPI, without a cluster; how is the first argument. Each rank prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from batchlet.environments.mpi import Mpi
from batchlet.errors import BatchletError
from batchlet.rendezvous.base import CoordinatorRecord
from batchlet.rendezvous.mpi import MpiRendezvous

HOW = sys.argv[1]
if HOW == "script":
    from mpi4py import MPI

began = time.monotonic()
info = Mpi().process(os.environ)
if HOW == "absent" and info.rank == info.world_size - 1:
    time.sleep(60)
rendezvous = MpiRendezvous(
    rank=info.rank,
    world_size=info.world_size,
    node=info.node,
    source=Mpi().detect(os.environ) or "",
    deadline=time.monotonic() + (3 if HOW == "absent" and info.rank == 0 else 20),
)
try:
    rendezvous.check()
    checked = time.monotonic()
    layout = rendezvous.layout
    if HOW == "fails" and info.rank == 0:
        raise BatchletError("rank 0 cannot go on")
    record = CoordinatorRecord(info.run_id, "nonce", "node", "10.1.2.3", 4242, "ab" * 32)
    if info.rank == 0:
        rendezvous.publish(record)
        published = time.monotonic()
        deadline = published + 10
        while not rendezvous._over.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert published - checked < 0.5
        assert rendezvous._over.is_set()
    else:
        assert rendezvous.wait(time.monotonic() + 15) == record
    rendezvous.withdraw()
except BatchletError as error:
    sys.stderr.write(f"ERROR {info.rank} {type(error).__name__}: {error}\n")
    sys.stderr.flush()
    rendezvous.withdraw()
    rendezvous.abandon(error.exit_code)
    sys.exit(error.exit_code)

facts = {
    "rank": info.rank,
    "layout": [list(layout.local_ranks), layout.nodes],
    "guess": list(info.local_ranks),
    "run_id": info.run_id,
    "threads": threading.active_count(),
    "started": round(checked - began, 2),
    "met": round(time.monotonic() - checked, 3),
}
if HOW == "script":
    facts["sum"] = MPI.COMM_WORLD.allreduce(info.rank)
else:
    from mpi4py import MPI

    facts["finalised"] = MPI.Is_finalized()
# One write, so that lines of several ranks do not mix.
os.write(1, (json.dumps(facts) + "\n").encode())
# MPI is over: every rank ends when it likes.
if HOW == "codes":
    time.sleep(0.3 * info.rank)
    sys.exit(3 if info.rank == info.world_size - 1 else 0)
