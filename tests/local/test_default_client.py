"""Which cluster and which client a script under `python -m batchlet` finds, by each way that Dask has to find one."""

from __future__ import annotations

import sys
import textwrap

import pytest
from run_helpers import Place, Result

OURS = "batchlet: "
INSIDE = ": without effect here, since this script runs inside `python -m batchlet`"
STAYS = "LocalCluster: stays on this node, and the run's 2 workers have nothing to do meanwhile"

# What all programs below begin with. A worker of the run knows its run; one of a LocalCluster of the script's own does not.
BEGIN = """
import asyncio
import os

import dask
import dask.bag
import distributed
from dask.distributed import Client, LocalCluster, default_client, get_client, wait


def where(_=None):
    worker = distributed.get_worker()
    return f"job {worker.name}" if worker.address.startswith("tls://") else "here"


def total():
    return dask.bag.from_sequence(range(4), npartitions=2).map(where).distinct().compute()


def place():
    return sorted({name.split()[0] for name in total()})


def own(**how):
    return LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", protocol="tcp", **how)


"""


def batchlet(place: Place, text: str) -> Result:
    script = place.script(BEGIN + textwrap.dedent(text))
    return place.run(sys.executable, "-m", "batchlet", "--workers-per-node=2", script)


def said(result: Result) -> list[str]:
    """What is on stderr between Batchlet's first and last line."""
    assert result.errors[0].startswith(OURS), str(result)
    assert result.errors[-1].startswith(f"{OURS}done after "), str(result)
    return result.errors[1:-1]


USES = {
    "no client": "print(place())",
    "get_client": "print(place() if get_client().submit(sum, [1, 2]).result() == 3 else None)",
    "default_client": """
        print(place() if default_client() is get_client() is distributed.Client.current() else None)
    """,
    "Client": """
        client = Client()
        assert default_client() is get_client() is client
        print(place() if client.submit(where).result().startswith("job") else None)
    """,
    "Client twice": """
        first = Client()
        second = Client()
        assert first is not second and default_client() is second
        assert first.submit(sum, [1, 2]).result() + second.submit(sum, [1, 2]).result() == 6
        second.close()
        assert default_client() is first
        print(place())
    """,
    "with two clients": """
        with Client() as a, Client() as b:
            assert get_client() is b
            assert a.submit(where).result().startswith("job")
            print(place())
        assert (a.status, b.status) == ("closed", "closed")
    """,
    "closed": """
        client = Client()
        client.close()
        assert default_client() is not client
        print(place())
    """,
    "shut down": """
        client = Client()
        client.shutdown()
        assert client.status == "closed"
        assert place() == ["job"]
        print(place() if Client().submit(where).result().startswith("job") else None)
    """,
    "shut down without a client": """
        get_client().shutdown()
        client = Client()
        assert default_client() is client
        print(place())
    """,
    "asynchronous": """
        async def main():
            async with Client(asynchronous=True) as client:
                assert default_client() is client
                assert client.loop.asyncio_loop is asyncio.get_running_loop()
                return (await client.submit(where)).split()[:1]
        print(asyncio.run(main()))
        assert place() == ["job"]
    """,
    "asynchronous beside another": """
        client = Client()
        async def main():
            other = await Client(asynchronous=True)
            found = (await other.submit(where)).split()[:1]
            await other.close()
            return found
        assert asyncio.run(main()) == ["job"]
        assert default_client() is client
        print(place())
    """,
    "as_current": """
        first, second = Client(), Client()
        with first.as_current():
            assert get_client() is first
            print(place())
        assert get_client() is second
    """,
    "the scheduler's address": """
        client = Client(get_client().scheduler.address)
        print(place() if client.submit(where).result().startswith("job") else None)
    """,
    "a client of a class of its own": """
        class Mine(Client):
            def __init__(self, greeting, **keywords):
                super().__init__(**keywords)
                self.greeting = greeting
        print(place() if Mine("hello", name="mine").greeting == "hello" else None)
    """,
    "worker_client": """
        def inner():
            with distributed.worker_client() as client:
                return client.submit(where, pure=False).result()
        print(place() if get_client().submit(inner).result().startswith("job") else None)
    """,
    "a runner in the script": """
        from batchlet import BatchletRunner
        with BatchletRunner() as runner, Client(runner) as client:
            assert get_client() is client
            assert client.submit(where).result().startswith("job")
            assert place() == ["job"]
        print(place())
    """,
    "client.cluster": """
        client = Client()
        assert client.cluster.scheduler_address == client.scheduler.address
        assert client.cluster.n_workers == 2
        assert client.dashboard_link == client.cluster.dashboard_link
        print(place())
    """,
}


@pytest.mark.parametrize("use", USES)
def test_each_way_to_a_client_leads_to_the_cluster_of_the_run(place: Place, use: str) -> None:
    """The run computes, whatever way the script has to find a client; nothing else is said."""
    result = batchlet(place, USES[use])
    assert (result.rc, result.stdout) == (0, "['job']\n"), str(result)
    assert said(result) == [], str(result)


def test_a_scheduler_that_the_script_chooses_computes(place: Place) -> None:
    """`dask.config.set(scheduler=...)` and `compute(scheduler=...)` choose what computes, as without Batchlet."""
    text = """
        mine = dask.delayed(os.getpid)
        with dask.config.set(scheduler="threads"):
            assert mine().compute() == os.getpid()
        assert mine().compute(scheduler="sync") == os.getpid()
        print(mine().compute() != os.getpid())
    """
    result = batchlet(place, text)
    assert (result.rc, result.stdout) == (0, "True\n"), str(result)
    assert said(result) == [], str(result)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("n_workers=4", "n_workers"),
        ("processes=False", "processes"),
        ("n_workers=1, threads_per_worker=3, memory_limit='1GiB', name='x'", "n_workers, threads_per_worker, memory_limit"),
        ("None, None, '20s', processes=False", "processes"),
        ("security=True", "security"),
    ],
)  # fmt: skip
def test_what_a_local_cluster_would_be_made_with_has_no_effect_and_one_line_says_so(
    place: Place, given: str, names: str
) -> None:
    """`Client(n_workers=4)` means the cluster of the run, whose workers are there; one line names what has no effect."""
    text = f"""
        client = Client({given})
        assert len(client.scheduler_info()["workers"]) == 2
        client.close()
        Client({given})
        print(place())
    """
    result = batchlet(place, text)
    assert (result.rc, result.stdout) == (0, "['job']\n"), str(result)
    assert said(result) == [f"{OURS}{names}{INSIDE}"], str(result)


OWN = {
    "with": """
        with own() as cluster, Client(cluster) as client:
            print(client.submit(where).result(), place(), default_client() is client)
        print(place())
    """,
    "left open": """
        client = Client(own())
        print(client.submit(where).result(), place(), default_client() is client)
        client.close()
        print(place())
    """,
    "by the cluster": """
        cluster = own()
        client = cluster.get_client()
        print(client.submit(where).result(), place(), default_client() is client)
        client.close()
        cluster.close()
        print(place())
    """,
    "in threads": """
        client = Client(own(processes=False))
        print(client.submit(where).result(), place(), default_client() is client)
        client.close()
        print(place())
    """,
}


@pytest.mark.parametrize("way", OWN)
def test_a_cluster_of_the_scripts_own_computes_and_one_line_says_where(place: Place, way: str) -> None:
    """A LocalCluster that the script makes is the one that computes; after it the run's is; one line says what lies idle."""
    result = batchlet(place, "if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(OWN[way]), "    "))
    assert (result.rc, result.stdout) == (0, "here ['here'] True\n['job']\n"), str(result)
    lines = said(result)
    assert len(lines) == 1, str(result)
    assert lines[0].startswith(f"{OURS}{STAYS}"), str(result)


@pytest.mark.parametrize("named", [True, False])
def test_a_coroutine_on_the_clients_event_loop_finds_that_client(place: Place, named: bool) -> None:
    """What runs on the event loop of a client finds that client by `default_client`, `get_client` and `wait`, as libraries do.

    With two clients on two event loops, of which the other one was found, `wait` waited for ever, as `xgboost.dask` did.
    """
    client = "Client()" if named else "get_client()"
    text = f"""
        client = {client}
        async def inside():
            assert default_client() is get_client() is client
            assert client.asynchronous
            futures = client.map(where, range(4), pure=False)
            await wait(futures)
            return await client.gather(futures)
        print(sorted({{name.split()[0] for name in client.sync(inside)}}))
    """
    result = batchlet(place, text)
    assert (result.rc, result.stdout) == (0, "['job']\n"), str(result)
    assert said(result) == [], str(result)


def test_clients_of_a_script_share_an_event_loop(place: Place) -> None:
    """A coroutine on the loop of one client can wait with another one, which is the default by then."""
    text = """
        first, second = Client(), Client()
        async def inside():
            futures = first.map(where, range(4), pure=False)
            await wait(futures)
            return await first.gather(futures)
        print(sorted({name.split()[0] for name in first.sync(inside)}))
    """
    result = batchlet(place, text)
    assert (result.rc, result.stdout) == (0, "['job']\n"), str(result)


@pytest.mark.parametrize("named", [True, False])
def test_what_a_task_says_is_shown_once(place: Place, named: bool) -> None:
    """`distributed.warn` in a task warns once where the script is, whether it has a client of its own or not."""
    text = f"""
        import time, warnings
        def says(number):
            distributed.warn(f"of task {{number}}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client = {"Client()" if named else "get_client()"}
            client.gather(client.map(says, range(3)))
            deadline = time.monotonic() + 20
            while len(caught) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
        print(sorted(str(one.message) for one in caught))
    """
    result = batchlet(place, text)
    assert (result.rc, result.stdout) == (0, "['of task 0', 'of task 1', 'of task 2']\n"), str(result)


@pytest.mark.parametrize("mistake", ["Client(1)", "Client(None, address='x')", "Client(*range(30))"])
def test_a_mistake_is_the_error_that_dask_makes_of_it(place: Place, mistake: str) -> None:
    """What is no argument of a client raises what it raises under plain Dask."""
    text = f"""
        try:
            {mistake}
        except TypeError as error:
            print(str(error))
    """
    plain = place.run(sys.executable, place.script(BEGIN + textwrap.dedent(text)))
    result = batchlet(place, text)
    assert (result.rc, result.stdout) == (0, plain.stdout), str(result)
