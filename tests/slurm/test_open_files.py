"""The limit of open files: raised where that is enough, and a sentence where it is not."""

from __future__ import annotations

import pytest
from run_helpers import WORKLOADS, Run, open_files

pytestmark = pytest.mark.slurm

PLAIN = WORKLOADS / "plain.py"
FINDS = """
import os
import resource
from batchlet import BatchletRunner


def soft_limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


with BatchletRunner() as runner:
    from dask.distributed import Client

    with Client(runner) as client:
        limits = {client.run_on_scheduler(soft_limit), *client.run(soft_limit).values()}
        print(len(client.run(os.getpid)), min(limits) > 1024, soft_limit())
"""


@pytest.mark.parametrize("share_node", [True, False])
def test_the_soft_limit_is_raised_for_our_own_processes(srun: Run, share_node: bool) -> None:
    """An agent of 6 workers needs more than 60, as one of 128 needs more than the usual 1,024. The client keeps its own."""
    env = {"BATCHLET_DASK_CLUSTER__SHARE_NODE": str(share_node)}
    result = srun("-N1", "-n8", script=FINDS, prefix=open_files("-S", 60), env=env)
    assert result.rc == 0, str(result)
    assert result.stdout == "6 True 60\n", str(result)
    assert "Too many open files" not in result.stderr, str(result)


@pytest.mark.parametrize(
    ("shape", "limit", "who"),
    [
        (("-N1", "-n8"), 100, "The workers on node "),
        # Rank 0 knows before any host has imported Dask.
        (("-N4", "-n32", "--ntasks-per-node=8"), 120, "The scheduler of up to 32 workers, on node "),
    ],
    ids=["workers", "scheduler"],
)
def test_too_low_a_hard_limit_is_said_at_once(srun: Run, shape: tuple[str, ...], limit: int, who: str) -> None:
    """One sentence with what is needed, what there is and what to type."""
    result = srun(*shape, script=PLAIN, prefix=open_files("", limit), timeout=30)
    assert result.rc == 2, str(result)
    [message] = result.errors
    for words in (who, "open files", f"the hard limit is {limit} ", "ulimit -Hn", "threads_per_worker="):
        assert words in message, str(result)
    assert "Traceback" not in result.stderr, str(result)
    assert result.stdout == ""
