"""The runner is a cluster object: what people and libraries call on Dask's clusters works on it, or says why not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from run_helpers import Place, json_line

ASKED = """
import asyncio, json, sys
from batchlet import BatchletRunner
from dask.distributed import Client
from distributed.deploy.cluster import Cluster
from distributed.utils import Logs, TimeoutError

found = {}
with BatchletRunner() as runner:
    found["loop before"] = runner.loop is None
    found["info without a client"] = len(runner.scheduler_info["workers"]) == runner.n_workers
    with Client(runner) as client, Client(runner) as second:
        found["one loop"] = client.loop is second.loop is runner.loop
        found["get_client"] = runner.get_client() is second
        found["values"] = [runner.name == runner.run_id, runner.status.name, runner.asynchronous]
        found["names"] = runner.requested == runner.observed == set(runner.workers)
        found["sizes"] = sum(info["nthreads"] for info in runner.scheduler_info["workers"].values()) > 0
        found["wait"] = [runner.wait_for_workers(1), client.wait_for_workers(runner.n_workers, timeout=5)]
        try:
            runner.wait_for_workers(1000, timeout=0.3)
        except TimeoutError as error:
            found["too many"] = "1000" in str(error)
        logs = runner.get_logs()
        found["logs"] = isinstance(logs, Logs) and len(logs) == runner.n_workers + 2
        one = sorted(runner.scheduler_info["workers"])[:1]
        found["some logs"] = sorted(runner.logs(cluster=False, scheduler=False, workers=one)) == one
        found["html"] = client._repr_html_().count("BatchletRunner") > 1 and "<script" not in runner._repr_html_()
        found["dashboard"] = client.dashboard_link == runner.dashboard_link
        found["line"] = "\\n" not in repr(runner)
        refused = []
        for ask in (lambda: runner.scale(3), lambda: runner.adapt(minimum=1, maximum=4)):
            try:
                ask()
            except Exception as error:
                refused.append("dask-jobqueue" in str(error))
        found["refused"] = refused
        # All public names of Dask's class, so that a new one is noticed here.
        known = {name for name in dir(Cluster) if not name.startswith("_")}
        found["missing"] = sorted(known - set(dir(runner)))
found["html after"] = "closed" in runner._repr_html_() and "BatchletRunner" in client._repr_html_()
sys.stdout.write("RESULT " + json.dumps(found) + "\\n")
"""


def expect(place: Place, *launch: str) -> None:
    result = place.run(*launch, sys.executable, place.script(ASKED), timeout=90)
    assert result.rc == 0, str(result)
    found = json.loads(json_line(result.stdout))
    assert found.pop("values") == [True, "running", False], found
    assert found.pop("wait") == [None, None], found
    assert found.pop("refused") == [True, True], found
    # Dask's own mixin has them, for its subclasses.
    assert set(found.pop("missing")) <= {"called_from_running_loop", "sync"}, found
    assert all(found.values()), found


def test_what_dasks_clusters_offer_works_here(place: Place) -> None:
    """Every public name of `distributed.deploy.Cluster`, locally."""
    expect(place)


@pytest.mark.slurm
def test_what_dasks_clusters_offer_works_under_srun(slurm_place: Place) -> None:
    """And with workers on two nodes."""
    expect(slurm_place, "srun", "-N2", "-n6")


# What prefect_dask.DaskTaskRunner does with a cluster class, as its source says.
PREFECT = """
import asyncio, json, sys
from contextlib import AsyncExitStack
from batchlet import BatchletRunner
import dask.utils
import distributed


async def prefect(cluster_class, **cluster_kwargs):
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(cluster_class(asynchronous=True, **cluster_kwargs))
        client = await stack.enter_async_context(distributed.Client(cluster, asynchronous=True, set_as_default=False))
        return cluster.asynchronous, bool(client.dashboard_link), await client.submit(sum, [1, 2], key="a-1", pure=True)


found = asyncio.run(prefect(BatchletRunner))
sys.stdout.write("RESULT " + json.dumps(found) + "\\n")
"""


def test_a_task_runner_that_makes_and_enters_an_asynchronous_cluster_works(place: Place) -> None:
    """As prefect-dask does with its `cluster_class`."""
    result = place.run(sys.executable, place.script(PREFECT))
    assert result.rc == 0, str(result)
    assert json.loads(json_line(result.stdout)) == [True, True, 3]
    assert len(result.errors) == 2, str(result)


MANAGER = """
import asyncio, json, sys

import dask.config


async def main():
    from dask_labextension.manager import DaskClusterManager

    dask.config.set({"labextension.factory.module": "batchlet", "labextension.factory.class": "BatchletRunner"})
    manager = DaskClusterManager()
    await manager.initialized
    found = [await manager.start_cluster("one"), *manager.list_clusters()]
    try:
        await manager.scale_cluster("one", 7)
    except Exception as error:
        found.append(str(error))
    found.append(await manager.close_cluster("one"))
    found.append(await manager.start_cluster("two"))
    return [*found, await manager.close_cluster("two")]


sys.stdout.write("RESULT " + json.dumps(asyncio.run(main())) + "\\n")
"""


def test_the_cluster_manager_of_dask_labextension_works(place: Place) -> None:
    """It awaits, lists, describes and closes clusters, one after the other, and cannot change their size."""
    # Where tests/run has installed it.
    python = Path(sys.prefix, "labextension", "bin", "python")
    # Not imported here: it wants the main thread's event loop.
    if not python.exists() and importlib.util.find_spec("dask_labextension") is None:
        pytest.skip("no dask-labextension (pip install dask-labextension)")
    result = place.run(str(python) if python.exists() else sys.executable, place.script(MANAGER))
    assert result.rc == 0, str(result)
    started, listed, refusal, closed, again, over = json.loads(json_line(result.stdout))
    assert started == listed
    assert started["workers"] >= 1
    assert started["cores"] >= 1
    assert started["scheduler_address"].startswith("tls://")
    assert "keeps its size" in refusal
    assert closed["workers"] == over["workers"] == 0
    assert again["workers"] == started["workers"]
