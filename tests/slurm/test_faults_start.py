"""The fault matrix at the start: ranks that fail, do not come or come late, and places that cannot be used to meet."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_slurm import SlurmCluster
from fault_helpers import FAULTS, Fault, Running, check, in_node, options, run_fault
from run_helpers import Place, eventually

pytestmark = pytest.mark.slurm

DONE = r"^batchlet: done after"
SHORT = options(start_timeout=4, stop_timeout=4)
# Rank 0 ends the run at start_timeout; a rank that never hears of it is more patient by this.
PATIENCE = 5


def incomplete(*ranks: int) -> str:
    """Pattern of the message at the deadline; the names of the test cluster's nodes are like c5n1."""
    names = ", ".join(rf"rank {rank} on node c\d+n\d" for rank in ranks)
    return rf"^batchlet: error: The cluster was not complete after 4 s \(start_timeout\): {names} did not arrive"


def kill(*ranks: int):
    """End ranks that sleep, once the others have spoken."""

    def act(running: Running) -> None:
        running.wait_for("did not arrive")
        time.sleep(2)
        struck = running.struck
        for process in [running.rank(rank) for rank in ranks]:
            process.kill()
        running.struck = struck

    return act


def kill_at_once(first: int, last: int):
    """Kill a rank before the cluster is complete, and one that sleeps a little later."""

    def act(running: Running) -> None:
        running.wait_for_rank(1)
        time.sleep(2)
        running.signal(signal.SIGKILL, first)
        struck = running.struck
        running.wait_for("died while the cluster was starting", 5)
        running.rank(last).kill()
        running.struck = struck

    return act


RANKS = {
    "import error on rank 0": Fault(
        "When rank 0 fails before the bootstrap the others say so at the deadline, once.",
        "import-error 0", 80, ["^ModuleNotFoundError", r"^batchlet: error: No word from rank 0"],
        env=SHORT, early=True, within=4 + PATIENCE, tracebacks=1,
    ),
    "import error on rank 1": Fault(
        "When the client fails before the bootstrap it is named at the deadline.",
        "import-error 1", 80, ["^ModuleNotFoundError", incomplete(1)], env=SHORT, early=True, within=4, tracebacks=1,
    ),
    "import error on rank 3": Fault(
        "When a worker rank does it is named at the deadline.",
        "import-error 3", 80, ["^ModuleNotFoundError", incomplete(3)], env=SHORT, early=True, within=4, tracebacks=1,
    ),
    "import error on rank 3, min_workers": Fault(
        "With min_workers the run then goes on without it.",
        "import-error 3", 1,
        ["^ModuleNotFoundError", r"^batchlet: rank 3 .* did not arrive after 4 s; the run goes on with 1 workers?", DONE],
        ["6"], env={**SHORT, **options(min_workers=1)}, early=True, within=4, tracebacks=1, client_rc=0,
    ),
    "never arrives": Fault(
        "A rank that never arrives is named with its node at the deadline, and the others end.",
        "late 3 60", 137, [incomplete(3)], srun="-N2 -n4 --ntasks-per-node=2", env=SHORT, early=True, act=kill(3), client_rc=80,
    ),
    "never arrives, alone on its node": Fault(
        "So is one that nobody else on its node can name.",
        "late 2 60", 137, [incomplete(2)], srun="-N2 -n3", env=SHORT, early=True, act=kill(2), client_rc=80,
    ),
    "late": Fault(
        "A rank that is late but in time is waited for.", "late 3 4", 0, [DONE], ["6"],
        env=options(start_timeout=20), early=True, within=10,
    ),
    "rank 0 late": Fault(
        "So is rank 0.", "late 0 4", 0, [DONE], ["6"], env=options(start_timeout=20), early=True, within=10
    ),
    "killed": Fault(
        "A rank that dies while the others are waiting for another one ends the start at once.",
        "late 3 60", 137, [r"^batchlet: error: rank 2 on node \S+ died while the cluster was starting"],
        env=SHORT, early=True, act=kill_at_once(2, 3), client_rc=81, within=5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RANKS)
def test_every_rank_that_does_not_come_is_named_at_the_deadline(place: Place, case: str) -> None:
    """Every rank that does not come is named at the deadline, and one that is only late is waited for."""
    run_fault(place, RANKS[case])


def test_a_directory_that_is_not_shared_is_said_at_the_deadline(place: Place, cluster: SlurmCluster) -> None:
    """A rendezvous directory that each node has for itself is named, and nothing is left in it."""
    local = str(cluster.node_local / "meet")
    fault = Fault(
        "The directory is named.",
        "fine", 80, [r"^batchlet: error: .*rank 2.* rank 3 .*did not arrive", rf"{local}.* is not shared"],
        srun="-N2 -n4 --ntasks-per-node=2", env={**SHORT, **options(rendezvous_dir=local)}, early=True, within=4 + PATIENCE,
    )  # fmt: skip
    run_fault(place, fault)
    for node in cluster.node_names:
        assert in_node(node, "ls", "-A", str(cluster.node_local)) == ""


@contextlib.contextmanager
def full_disk(node: str, where: Path) -> Iterator[None]:
    """A file system of one page on a node, with no room left."""
    in_node(node, "mount", "-t", "tmpfs", "-o", "size=4k,mode=0755", "full", str(where))
    try:
        in_node(node, "dd", "if=/dev/zero", f"of={where}/rubbish", "bs=4096", "count=1")
        yield
    finally:
        in_node(node, "umount", str(where))


def test_a_full_disk_is_refused_by_rank_0(place: Place, cluster: SlurmCluster) -> None:
    """A rendezvous directory without room for the record is refused by rank 0; the others wait for it till the deadline."""
    where = place.base / "full"
    where.mkdir()
    node = cluster.node_names[0]
    says = [rf"^batchlet: error: The rendezvous directory {where}/meet .*No space left", "No word from rank 0"]
    fault = Fault(
        "No room.", "fine", (2, 80), says, srun=f"-n4 -w {node}", env={**SHORT, **options(rendezvous_dir=where / "meet")},
        early=True, within=4 + PATIENCE,
    )  # fmt: skip
    with full_disk(node, where):
        run_fault(place, fault)
        assert in_node(node, "ls", "-A", str(where)) == "rubbish\n"


SHIM = 'test "$SLURM_PROCID" != 3 || export PYTHONPATH=../shim; exec "$@"'


def test_a_rank_with_another_version_is_refused_with_both_versions(place: Place) -> None:
    """A rank with another version of Dask is refused, with both versions."""
    shim = place.base / "shim" / "dask-1.2.3.dist-info"
    shim.mkdir(parents=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: dask\nVersion: 1.2.3\n")
    says = r"^batchlet: error: rank 3 on node \S+ has dask 1\.2\.3, but rank 0 has dask 20\S+"
    fault = Fault("Both.", "fine", 83, [says], prefix=("sh", "-c", SHIM, "sh"), early=True, within=8)
    run_fault(place, fault)


@pytest.mark.parametrize("same", [False, True], ids=["of another run", "of the same name"])
def test_a_stale_record_is_not_believed(place: Place, same: bool) -> None:
    """A record that is in the way, left by a run that was killed before it could tidy up, is not believed."""
    # Some record, of a run that was killed: rank 0 has written it and nobody has met it.
    first = Running(place, "srun", "-n3", sys.executable, str(FAULTS), "late", "2", "60")
    try:
        eventually(lambda: list(place.cwd.glob(".batchlet/*.json")), 20)
        (path,) = place.cwd.glob(".batchlet/*.json")
        text, name = path.read_text(), path.name
        first.signal(signal.SIGKILL, 0, 1, 2)
        first.finish(10)
    finally:
        first.end()
    # What is left of the run may be on its way to tidying up, the directory included.
    shutil.rmtree(place.cwd / ".batchlet", ignore_errors=True)
    # It gets the name of the next run's, and perhaps what it says of its run is made to fit, too.
    run_id = json.loads(text)["run_id"]
    cluster, _, rest = run_id.rpartition("-")
    now = f"{cluster}-$SLURM_JOB_ID.{rest.partition('.')[2]}"
    assert name.count(run_id) == 1, (name, run_id)
    (place.base / "record").write_text(text)
    command = (
        f'mkdir -m 700 -p .batchlet && sed "s/{run_id}/{now if same else run_id}/" ../record '
        f"> .batchlet/{name.replace(run_id, now)} && chmod 600 .batchlet/*.json && "
        f"exec srun -n4 {sys.executable} {FAULTS} late 0 3"
    )
    second = Running(place, "salloc", "-n4", "sh", "-c", command, env=options(start_timeout=20))
    try:
        result = second.finish(10)
    finally:
        second.end()
    check(Fault("It works.", "", 0, [DONE], ["6"]), result)
    second.assert_nothing_left(result)


def test_a_requeued_job_meets_anew(place: Place) -> None:
    """A job that is killed and requeued meets anew, and works."""
    script = place.base / "job.sh"
    script.write_text(f"#!/bin/sh\nexec srun {sys.executable} {FAULTS} works-on >> ../out-$SLURM_RESTART_COUNT 2>&1\n")
    submit = ["sbatch", "--parsable", "--requeue", "-n4", "-o", "/dev/null", str(script)]
    job = place.run_only(*submit, timeout=20).stdout.strip()
    try:
        eventually(lambda: "strike" in read(place.base / "out-"), 20)
        stopped = place.run_only("scontrol", "requeue", job, timeout=20)
        assert stopped.rc == 0, str(stopped)
        (place.base / "go-on").touch()
        eventually(lambda: "after the block" in read(place.base / "out-1"), 50)
        eventually(lambda: job not in place.run_only("squeue", "-h", "-o", "%A", timeout=20).stdout.split(), 20)
    finally:
        place.run_only("scancel", job, timeout=20)
    assert "sum 190" in read(place.base / "out-1")
    place.assert_nothing_left()


def read(path: Path) -> str:
    """What is in a file, if there is one."""
    return path.read_text() if path.exists() else ""
