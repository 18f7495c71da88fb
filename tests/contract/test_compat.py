"""What `batchlet.dask_backend.compat` relies on in Dask, Tornado and CPython: a version that differs fails here, by name."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import io
import json
import logging
import multiprocessing
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import Client, LocalCluster, Nanny, Scheduler, Worker
from tornado import iostream
from tornado.routing import RuleRouter

from batchlet.dask_backend.compat import (
    dask_internals,
    figures,
    http_servers,
    log_messages,
    logging_internals,
    multiprocessing_internals,
    scheduler_state,
    tls_backend,
    tls_connections,
)
from batchlet.dask_backend.node_links import NodeLinks
from batchlet.dask_backend.tls import RunSecurity
from batchlet.security import Credentials

Run = Callable[[Callable[[Any, Any], Any]], Any]


def child(code: str, *, timeout: float = 60) -> str:
    """Run Python in a process of its own, which may be changed; what it makes among the temporary files goes with it."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
            env={**os.environ, "TMPDIR": directory},
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Said(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Written(io.StringIO):
    """Notes what is written."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def write(self, text: str) -> int:
        self.said.append(text)
        return len(text)


@contextlib.contextmanager
def listening_to(name: str, level: int = logging.INFO) -> Any:
    logger, said = logging.getLogger(name), Said()
    before = logger.level
    logger.addHandler(said)
    logger.setLevel(level)
    try:
        yield said
    finally:
        logger.removeHandler(said)
        logger.setLevel(before)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.01)


# logging_internals


def test_hear_records() -> None:
    """Any logger is heard after its filters, once, whatever its handlers are; what is printed stays as it is."""
    heard: list[str] = []

    def take(record: logging.LogRecord) -> None:
        heard.append(record.getMessage())
        logging.getLogger("a").error("not heard itself")
        raise ValueError

    end = logging_internals.hear_records(take)
    try:
        alone, filtered = logging.getLogger("compat.alone"), logging.getLogger("compat.filtered")
        alone.propagate = False
        alone.warning("one that keeps it to itself")
        filtered.addFilter(lambda _: False)
        filtered.error("filtered")
        logging.getLogger("distributed.worker").info("of no interest")
        logging.getLogger("distributed.worker").error("Dask's")
        assert heard == ["one that keeps it to itself", "Dask's"]
    finally:
        end()
    alone.warning("too late")
    assert len(heard) == 2
    printed = child(
        "import io, logging, os, sys\n"
        "from batchlet.dask_backend.compat.logging_internals import hear_records\n"
        "sys.stderr, heard = io.StringIO(), []\n"
        "hear_records(lambda record: heard.append(record.msg))\n"
        "logging.getLogger('x').warning('without a handler')\n"
        "logging.basicConfig(format='%(name)s %(message)s', stream=sys.stdout)\n"
        "logging.getLogger('x').warning('with one')\n"
        "print(sys.stderr.getvalue().split(), heard, flush=True)\n"
        "if os.fork() == 0:\n"
        "    logging.getLogger('x').warning('in a child')\n"
        "    print(len(heard), flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    assert printed.splitlines() == [
        "x with one", "['without', 'a', 'handler'] ['without a handler', 'with one']", "x in a child", "2",
    ]  # fmt: skip


# dask_internals


def test_living_and_is_disconnected(cluster: Run) -> None:
    """Clients, workers and nannies are in a set of their class; a client whose scheduler is gone has a closed connection."""

    async def use(scheduler: Any, nanny: Any) -> None:
        assert nanny in dask_internals.living(Nanny)
        async with Client(scheduler.address, asynchronous=True) as client:
            assert client in dask_internals.living(Client)
            assert not dask_internals.is_disconnected(client)
            client.scheduler_comm.comm.abort()
            assert dask_internals.is_disconnected(client)
        async with Worker(scheduler.address, nthreads=1, host="127.0.0.1") as worker:
            assert worker in dask_internals.living(Worker)

    cluster(use)


ALTERED = """
from distributed import Client
from batchlet.dask_backend.compat.dask_internals import altered_clients, living
seen = []
def alter(given, known):
    seen.append((given, {"address", "timeout", "security", "asynchronous", "scheduler_file"} <= known, "n_workers" in known))
    raise LookupError
before = Client.__init__
with altered_clients(alter):
    for make in (lambda: Client(None, None, 3, n_workers=4), lambda: Client(name="x", processes=False)):
        try:
            make()
        except LookupError:
            pass
assert Client.__init__ is before
print(seen)
"""


def test_altered_clients() -> None:
    """All arguments of a client come by their names, and those that a LocalCluster would get as they are."""
    first = "({'address': None, 'loop': None, 'timeout': 3, 'n_workers': 4}, True, False)"
    second = "({'name': 'x', 'processes': False}, True, False)"
    assert child(ALTERED) == f"[{first}, {second}]\n"


def test_living_clusters(tmp_path: Path) -> None:
    """Clusters are in a set of their class."""
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", processes=False) as cluster:
        assert cluster in dask_internals.living(LocalCluster)
        assert cluster.shutdown_on_close


def test_nannies_of_and_child_processes(cluster: Run) -> None:
    """A Nanny's process has a number, says whether it lives, and can be killed."""

    class Several:
        def __init__(self, nanny: Any) -> None:
            self.others, self.by_name, self.name = [nanny], {"a": nanny}, "several"

    async def use(_scheduler: Any, nanny: Any) -> None:
        assert dask_internals.nannies_of(nanny) == [nanny]
        assert dask_internals.nannies_of(Several(nanny)) == [nanny]
        [process] = dask_internals.child_processes(Several(nanny))
        assert process.is_alive()
        dask_internals.stay_ended(nanny, "test")
        await process.kill()
        await until(lambda: not process.is_alive())
        with pytest.raises(OSError, match="No such process"):
            os.kill(process.pid, 0)

    cluster(use)


def test_worker_plugins_of() -> None:
    """A Nanny keeps what it passes to its worker, plugins among it, where they can be altered before the start."""

    async def use() -> None:
        plugin = distributed.WorkerPlugin()
        nanny = distributed.Nanny("tcp://127.0.0.1:9", plugins={plugin})
        assert dask_internals.worker_plugins_of(nanny) == [plugin]
        assert dask_internals.worker_plugins_of(distributed.Nanny("tcp://127.0.0.1:9")) == []

    asyncio.run(use())


def test_worker_process_is_called_as_expected(cluster: Run) -> None:
    """By this name its start is told from that of the user's own processes."""

    async def use(_scheduler: Any, nanny: Any) -> None:
        [process] = dask_internals.child_processes(nanny)
        assert process.name == dask_internals.WORKER_PROCESS

    cluster(use)


def test_keep_port(cluster: Run) -> None:
    """A worker whose process is started again has the address that it had."""

    async def use(scheduler: Any, nanny: Any) -> None:
        port = dask_internals.keep_port(nanny)
        assert nanny.worker_address.endswith(f":{port}")
        before, [process] = nanny.worker_address, dask_internals.child_processes(nanny)
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not process.is_alive())
        await until(lambda: nanny.status.name == "running" and nanny.worker_address in scheduler.workers)
        assert nanny.worker_address == before

    cluster(use)


def test_keep_port_where_somebody_else_has_taken_it(cluster: Run) -> None:
    """The worker comes back at another one."""

    async def use(scheduler: Any, nanny: Any) -> None:
        port = dask_internals.keep_port(nanny)
        assert dask_internals.keep_port(nanny) == port
        before, [process] = nanny.worker_address, dask_internals.child_processes(nanny)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            os.kill(process.pid, signal.SIGKILL)
            while True:
                try:
                    taken.bind(("127.0.0.1", port))
                    break
                except OSError:
                    # Without a pause: the Nanny hears of the death as soon.
                    continue
            taken.listen()
            await until(lambda: not process.is_alive())
            await until(lambda: nanny.status.name == "running" and nanny.worker_address in scheduler.workers)
            await until(lambda: nanny.worker_address != before)

    cluster(use)


def test_stay_ended(cluster: Run) -> None:
    """A worker that dies then is not started again."""

    async def use(_scheduler: Any, nanny: Any) -> None:
        [process] = dask_internals.child_processes(nanny)
        dask_internals.stay_ended(nanny, "test")
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not process.is_alive())
        await asyncio.sleep(0.5)
        assert dask_internals.child_processes(nanny) in ([], [process])

    cluster(use)


def test_give_up_start(cluster: Run) -> None:
    """A Nanny whose start was cancelled can be closed at once, and its process has ended."""

    async def use(scheduler: Any, _nanny: Any) -> None:
        nanny = Nanny(scheduler.address, nthreads=1, host="127.0.0.1", name="other")
        start = asyncio.ensure_future(nanny.start())
        await until(lambda: bool(dask_internals.child_processes(nanny)))
        [process] = dask_internals.child_processes(nanny)
        pid = process.pid
        start.cancel()
        await asyncio.wait([start])
        dask_internals.stay_ended(nanny, "test")
        await dask_internals.give_up_start(nanny)
        await asyncio.wait_for(nanny.close(timeout=20), 30)
        assert nanny.status.name == "closed"
        await until(lambda: not Path(f"/proc/{pid}").exists())

    cluster(use)


def test_off_the_path(cluster: Run) -> None:
    """A Nanny puts its directory on the path, and what is in its `env` when it starts its worker has."""

    async def use(scheduler: Any, _nanny: Any) -> None:
        nanny = Nanny(scheduler.address, nthreads=1, host="127.0.0.1", name="other")
        assert nanny.local_directory in sys.path
        dask_internals.off_the_path(nanny, "OF_THE_TEST")
        assert nanny.local_directory not in sys.path
        async with nanny, Client(scheduler.address, asynchronous=True) as client:
            found = await client.submit(os.getenv, "OF_THE_TEST", workers="other")
            assert found == nanny.local_directory

    cluster(use)


def test_quiet_if(cluster: Run) -> None:
    """What tasks print, a client shows by a handler that can be another one."""
    said: list[str] = []

    async def use(scheduler: Any, _nanny: Any) -> None:
        async with Client(scheduler.address, asynchronous=True) as client:
            assert sorted(Client._default_event_handlers) == ["print", "warn"]
            assert client._event_handlers.keys() >= {"print", "warn"}
            asked: list[bool] = []
            dask_internals.quiet_if(client, lambda: not asked.append(True))
            with contextlib.redirect_stdout(Written(said)):
                await client.submit(distributed.print, "in a task")
                await until(lambda: bool(asked))
            assert said == []
            dask_internals.quiet_if(client, lambda: False)
            with contextlib.redirect_stdout(Written(said)):
                await client.submit(distributed.print, "another", pure=False)
                await until(lambda: "another" in "".join(said))

    cluster(use)


def test_observed_cluster_and_correct_state(tmp_path: Path) -> None:
    """A LocalCluster's scheduler is seen before it listens, and the workers of a changed specification are there."""
    seen = []
    cluster = dask_internals.ObservedCluster(
        lambda scheduler: seen.append((scheduler, scheduler.status.name)),
        n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1", scheduler_kwargs={"dashboard": False},
    )  # fmt: skip
    with cluster:
        assert isinstance(cluster, LocalCluster)
        assert seen == [(cluster.scheduler, "init")]
        options = {"nthreads": 1, "name": "x", "host": "127.0.0.1", "local_directory": str(tmp_path)}
        cluster.worker_spec["x"] = {"cls": lambda address, **given: Nanny(address, **given), "options": options}
        dask_internals.correct_state(cluster)
        assert [state.name for state in cluster.scheduler.workers.values()] == ["x"]


def test_lose_worker(cluster: Run) -> None:
    """A scheduler that is told forgets a worker at once."""

    async def use(scheduler: Any, nanny: Any) -> None:
        assert nanny.worker_address in scheduler.workers
        dask_internals.stay_ended(nanny, "test")
        scheduler_state.lose_worker(scheduler, nanny.worker_address)
        await until(lambda: not scheduler.workers)

    cluster(use)


def test_let_all_leave(cluster: Run) -> None:
    """Workers hear of one that has left, and of no other one when all do; everything else they still hear."""

    async def use(scheduler: Any, nanny: Any) -> None:
        options: dict[str, Any] = {"nthreads": 1, "host": "127.0.0.1"}
        async with (
            Worker(scheduler.address, **options) as stays,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            heard: list[str] = []
            handler = stays.stream_handlers["remove-worker"]
            stays.stream_handlers["remove-worker"] = lambda **told: [heard.append(told["worker"]), handler(**told)]
            async with Worker(scheduler.address, **options) as first:
                pass
            await until(lambda: heard == [first.address])
            scheduler_state.let_all_leave(scheduler)
            async with Worker(scheduler.address, **options) as second:
                pass
            await until(lambda: second.address not in scheduler.workers)
            # What is sent after it comes after it.
            assert await client.submit(abs, -1, workers=[stays.address]) == 1
            assert heard == [first.address]

    cluster(use)


def test_a_worker_that_is_expected_to_go_is_known_by_name_says_what_it_does_and_is_not_held_against_tasks(
    cluster: Run,
) -> None:
    async def use(scheduler: Any, nanny: Any) -> None:
        async with (
            Worker(scheduler.address, nthreads=1, host="127.0.0.1", name="job-0") as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            assert scheduler_state.addresses_of(scheduler, ["job-0", "job-1"]) == [worker.address]
            assert set(scheduler_state.addresses_of(scheduler, None)) == {worker.address, nanny.worker_address}
            busy = client.submit(time.sleep, 3, workers=["job-0"], allow_other_workers=True)
            await until(lambda: bool(scheduler.workers[worker.address].executing))
            assert scheduler_state.are_computing(scheduler, [worker.address], 0.0)
            await until(lambda: not scheduler_state.are_computing(scheduler, [nanny.worker_address], 0.0))
            assert await scheduler_state.is_computing(worker.address, {})
            assert not await scheduler_state.is_computing(nanny.worker_address, {})
            # It has not said anything since.
            assert scheduler_state.are_computing(scheduler, [nanny.worker_address], time.time() + 60)
            dask_internals.stay_ended(worker, "test")
            scheduler_state.lose_worker(scheduler, worker.address, expected=True)
            await until(lambda: worker.address not in scheduler.workers)
            assert scheduler.tasks[busy.key].suspicious == 0

    cluster(use)


def test_mp_context_and_keep_preload() -> None:
    """Dask's context follows its configuration, and leaves our list alone if it is told that it has set its own."""
    code = """
import dask, multiprocessing.forkserver as f, sys
from batchlet.dask_backend.compat import dask_internals as d
with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
    d.keep_preload()
    print(d.mp_context().get_start_method(), "distributed" in (getattr(f._forkserver, "_preload_modules", None) or []))
import distributed.utils
print(distributed.utils._forkserver_preload_set, callable(distributed.utils.get_mp_context))
"""
    assert child(code) == "forkserver False\nTrue True\n"


def test_parse_configuration_once() -> None:
    """`dask.config.collect` reads files by the function that is made to remember."""
    code = """
import os, tempfile
directory = tempfile.mkdtemp()
open(os.path.join(directory, "dask.yaml"), "w").write("batchlet-test: 1")
os.environ["DASK_CONFIG"] = directory
import dask.config
from batchlet.dask_backend.compat import dask_internals
dask_internals.parse_configuration_once()
dask.config.collect()
print(dask.config._load_config_file.cache_info().hits > 0, dask.config.get("batchlet-test"))
"""
    assert child(code) == "True 1\n"


def test_warm_up(tmp_path: Path) -> None:
    """A worker can be made without starting it, and starts no thread."""
    code = f"""
import asyncio, threading
from batchlet.dask_backend.compat import dask_internals

async def main():
    dask_internals.warm_up({str(tmp_path)!r})

asyncio.run(main())
print(threading.active_count())
"""
    assert child(code) == "1\n"


# http_servers


async def fetch(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


def test_route_pages_and_http_address() -> None:
    """Who asks a scheduler for a page is answered by the router that we give, and its own is known."""

    async def main() -> None:
        options = {"port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0", "http_prefix": "secret"}
        async with Scheduler(host="127.0.0.1", **options) as scheduler:
            address = http_servers.http_address(scheduler)
            assert address is not None
            assert address[0] == "127.0.0.1"
            assert await fetch(address[1], "/secret/health") == 200
            http_servers.route(scheduler, RuleRouter([]))
            assert await fetch(address[1], "/secret/health") == 404
            http_servers.route(scheduler, http_servers.pages(scheduler))
            assert await fetch(address[1], "/secret/health") == 200

    asyncio.run(main())


def test_connect_dashboard() -> None:
    """The dashboard can be added to a scheduler that was made without."""
    pytest.importorskip("bokeh")

    async def main() -> None:
        options = {"port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0", "http_prefix": "secret"}
        async with Scheduler(host="127.0.0.1", **options) as scheduler:
            address = http_servers.http_address(scheduler)
            assert address is not None
            assert await fetch(address[1], "/secret/status") == 404
            importlib.import_module(http_servers.DASHBOARD)
            http_servers.connect_dashboard(scheduler, "secret")
            assert await fetch(address[1], "/secret/status") == 200

    asyncio.run(main())


def test_deafen_workers() -> None:
    """A worker of a run with TLS knows no page, whatever its options are."""
    code = """
import asyncio
from distributed import Scheduler, Worker
from batchlet.dask_backend.compat import http_servers
from batchlet.dask_backend.tls import RunSecurity
from batchlet.security import Credentials
http_servers.deafen_workers()
security = RunSecurity(Credentials.generate())

async def main():
    async with Scheduler(port=0, dashboard_address="127.0.0.1:0", host="tls://127.0.0.1", security=security) as scheduler:
        async with Worker(scheduler.address, security=security, nthreads=1, host="127.0.0.1") as worker:
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.http_server.port)
            writer.write(b"GET /health HTTP/1.0\\r\\n\\r\\n")
            print((await reader.readline()).split()[1].decode())
            writer.close()

asyncio.run(main())
"""
    assert child(code) == "404\n"


# log_messages


def test_dead_worker_and_is_restart(cluster: Run) -> None:
    """What a Nanny says of a worker process that was killed, and of starting it again."""

    async def use(_scheduler: Any, nanny: Any) -> list[str]:
        [process] = dask_internals.child_processes(nanny)
        with listening_to("distributed.nanny") as said:
            os.kill(process.pid, signal.SIGKILL)
            await until(lambda: any(log_messages.is_restart(record.getMessage()) for record in said.records))
        [pid] = [pid for record in said.records if (pid := log_messages.dead_worker(record.getMessage())) is not None]
        assert pid == process.pid
        return [record.getMessage() for record in said.records]

    assert any("signal 9" in text for text in cluster(use))


def test_greedy_worker(cluster: Run) -> None:
    """What a Nanny says of a worker that it ends for its memory."""

    async def use(_scheduler: Any, nanny: Any) -> tuple[int, list[str]]:
        [process] = dask_internals.child_processes(nanny)
        manager = nanny.memory_manager
        with listening_to("distributed.nanny.memory") as said:
            manager.memory_limit, manager.memory_terminate_fraction = 1, 0.5
            manager.memory_monitor(nanny)
            manager.memory_limit = 1 << 62
        return process.pid, [record.getMessage() for record in said.records]

    pid, texts = cluster(use)
    assert pid in [log_messages.greedy_worker(text) for text in texts], texts


def test_is_failed_handshake_and_is_broken_off() -> None:
    """What is said of a connection without the run's credentials, and of those that were given up, with leave and without."""
    security = RunSecurity(Credentials.generate())
    hello = ssl.MemoryBIO()
    client = security.make_context(ssl.Purpose.SERVER_AUTH).wrap_bio(ssl.MemoryBIO(), hello)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    leave = hello.read() + bytes.fromhex("15030300020100")  # an alert: "close notify"

    async def main() -> None:
        options = {"port": 0, "dashboard_address": "127.0.0.1:0"}
        async with Scheduler(host="tls://127.0.0.1", security=security, **options) as scheduler:
            with listening_to("distributed.comm.tcp") as dask_said, listening_to("tornado.general") as tornado_said:
                for words in (b"rubbish, and more than a few bytes", leave, b""):
                    reader, writer = await asyncio.open_connection("127.0.0.1", scheduler.port)
                    writer.write(words)
                    if not words:
                        writer.write_eof()
                    with contextlib.suppress(OSError):
                        await reader.read()
                    writer.close()
                await until(lambda: len(dask_said.records) >= 3)
            records = [*dask_said.records, *tornado_said.records]
            assert all(log_messages.is_failed_handshake(record) for record in records), records
            broken_off = [log_messages.is_broken_off(record) for record in dask_said.records]
            assert sorted(broken_off) == [False, True, True], dask_said.records

    asyncio.run(main())


def test_is_late_heartbeat(cluster: Run) -> None:
    """A worker that the scheduler has forgotten, and that says that it lives, is a warning of this text."""

    async def use(scheduler: Any, nanny: Any) -> None:
        with listening_to("distributed.scheduler", logging.WARNING) as said:
            answer = scheduler.heartbeat_worker(
                address="tcp://127.0.0.1:9", resolve_address=False, now=time.time(), metrics={}
            )
        assert answer["status"] == "missing"
        assert [log_messages.is_late_heartbeat(record.getMessage()) for record in said.records] == [True]

    cluster(use)


def test_is_late_connection() -> None:
    """What a listener raises when a connection comes while it is stopped."""
    from distributed.comm import listen

    async def main() -> None:
        listener = await listen("tcp://127.0.0.1:0", lambda _: None)
        listener.stop()
        with pytest.raises(ValueError, match="TCPListener") as caught:
            listener.get_host_port()
        assert log_messages.is_late_connection(caught.value)

    asyncio.run(main())


def test_slow_scratch() -> None:
    """Dask warns of directories that are slow in these words."""
    source = inspect.getsource(importlib.import_module("distributed.core")) + inspect.getsource(
        importlib.import_module("distributed.diskutils")
    )
    assert log_messages.SLOW_SCRATCH in source


def test_is_task_of_the_end() -> None:
    """A worker that ends says so of its own tasks in these words."""
    source = inspect.getsource(importlib.import_module("distributed.worker_state_machine"))
    assert 'ended with CancelledError")' in source
    assert log_messages.is_task_of_the_end("Async instruction for <Task> ended with CancelledError")


def test_is_told_by_the_nanny() -> None:
    """A worker that does not start says so in these words."""
    source = inspect.getsource(importlib.import_module("distributed.nanny"))
    assert 'f"Failed to {failure_type} worker"' in source
    for kind in ("initialize", "start"):
        assert f'"{kind}"' in source
        assert log_messages.is_told_by_the_nanny(f"Failed to {kind} worker")


# multiprocessing_internals


def test_child_config() -> None:
    """Where sockets and semaphores of children are made can be chosen."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    assert multiprocessing_internals.child_config() is config
    assert "semprefix" in config
    code = """
import multiprocessing.util, tempfile
from batchlet.dask_backend.compat.multiprocessing_internals import child_config
child_config()["tempdir"] = place = tempfile.mkdtemp()
print(multiprocessing.util.get_temp_dir() == place)
"""
    assert child(code) == "True\n"


def test_altered_preparation() -> None:
    """What a process is to do first can be changed, for each name."""
    from multiprocessing import spawn

    before = spawn.get_preparation_data

    def alter(name: str, data: dict[str, Any]) -> None:
        data["seen"] = name

    with multiprocessing_internals.altered_preparation(alter):
        data = spawn.get_preparation_data("mine")
        assert data["seen"] == "mine"
        assert "sys_path" in data
    assert spawn.get_preparation_data is before
    assert {"init_main_from_name", "init_main_from_path"} & set(inspect.getsource(before).replace("'", " ").split())


def test_true_exit_codes() -> None:
    """All that ask for an exit code ask `Popen.poll`, and that has the parts that it is made of here."""
    assert list(inspect.signature(Popen.poll).parameters) == ["self", "flag"]
    before = Popen.poll
    with multiprocessing_internals.true_exit_codes():
        assert Popen.poll is not before
    assert Popen.poll is before


FORKS = """
import multiprocessing, os, socket, tempfile
from batchlet.dask_backend.compat import multiprocessing_internals as m
from batchlet.dask_backend.processes import close_files

def fork(work, needs):
    pid = os.fork()
    if not pid:
        try:
            close_files({needs})
            work()
        finally:
            os._exit(0)
    return pid

if __name__ == "__main__":
    assert m.may_adopt_fork_server()
    assert m.adopt_tracker(fork)
    assert m.tracker_file()
    listener = socket.socket(socket.AF_UNIX)
    address = os.path.join(tempfile.mkdtemp(), "s")
    listener.bind(address)
    listener.listen()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.close(writer)
        m.serve_forks(listener.fileno(), reader)
        os._exit(0)
    os.close(reader)
    m.adopt_fork_server(pid, address, writer)
    process = multiprocessing.get_context("forkserver").Process(target=os.getppid)
    process.start()
    process.join()
    semaphore = multiprocessing.get_context("forkserver").Lock()
    del semaphore
    print(process.exitcode)
    print(m.end_fork_server() == pid)
    m.run_finalizers()
    m.stop_helpers()
    print(m.tracker_file())
"""


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="3.14 starts its fork server in another way, which is left alone"
)
def test_adopt_fork_server_and_tracker() -> None:
    """Processes of ours are taken as fork server and resource tracker, and end when they are told."""
    assert child(FORKS) == "0\nTrue\n0\n"


def test_start_quiet_tracker_and_forget_tracker() -> None:
    """The tracker is started with our options for warnings, and forgotten in a child."""
    code = """
from batchlet.dask_backend.compat import multiprocessing_internals as m
m.start_quiet_tracker()
from multiprocessing.resource_tracker import _resource_tracker as tracker
import time
deadline = time.monotonic() + 10
# It is a copy of this process for a moment.
while "ignore:resource_tracker" not in open(f"/proc/{tracker._pid}/cmdline").read() and time.monotonic() < deadline:
    time.sleep(0.01)
print(time.monotonic() < deadline, m.tracker_file() > 0)
m.forget_tracker()
print(m.tracker_file())
"""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("reads /proc")
    assert child(code) == "True True\n0\n"


# tls_connections


def test_memory_security() -> None:
    """Dask asks for the contexts of both sides where they come from memory, and for what it shows."""
    security = RunSecurity(Credentials.generate())
    assert isinstance(security, tls_connections.MemorySecurity)
    listen, connect = security.get_listen_args("scheduler"), security.get_connection_args("client")
    assert listen["ssl_context"] is security.make_context(ssl.Purpose.CLIENT_AUTH)
    assert connect["ssl_context"] is security.make_context(ssl.Purpose.SERVER_AUTH)
    assert listen["require_encryption"]
    assert connect["require_encryption"]
    assert "PRIVATE" not in repr(security)
    assert "PRIVATE" not in security._repr_html_()


def test_defer_authorities() -> None:
    """From Tornado 6.6 the context is made by a function that can be put off; before, it is there already."""
    import tornado

    expected = callable(iostream._client_ssl_defaults)
    assert expected == (tornado.version_info >= (6, 6))
    tls_connections.defer_authorities()
    assert callable(iostream._client_ssl_defaults) == expected


def test_limit_handshakes() -> None:
    """Connections that say nothing are given up after a while, and the listener is as before at the end."""
    from distributed.comm.tcp import TLSListener

    before = TLSListener._handle_stream, TLSListener._prepare_stream
    security = RunSecurity(Credentials.generate(), node_links=False)

    async def main() -> None:
        options = {"port": 0, "dashboard_address": "127.0.0.1:0"}
        async with Scheduler(host="tls://127.0.0.1", security=security, **options) as scheduler:
            with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
                reader, writer = await asyncio.open_connection("127.0.0.1", scheduler.port)
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    assert await asyncio.wait_for(reader.read(), 10) == b""
                assert 0.2 < time.monotonic() - began < 5
                writer.close()
            async with Client(scheduler.address, security=security, asynchronous=True) as client:
                assert await client.run_on_scheduler(lambda: 42) == 42

    with warnings.catch_warnings(), tls_connections.limited_handshakes():
        assert not tls_connections.limit_handshakes(), "it is done already"
        asyncio.run(main())
    assert (TLSListener._handle_stream, TLSListener._prepare_stream) == before


FLOOD = """
import asyncio, os, resource, socket, sys
from distributed import Client, Scheduler
from batchlet.dask_backend.compat import tls_connections
from batchlet.dask_backend.tls import RunSecurity
from batchlet.security import Credentials

HELLO = b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03"
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 4096))
security = RunSecurity(Credentials.generate(), node_links=False)
FLOODER = '''
import os, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = []
for number in range(2000):
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30)
    held.append(connection)
    try:
        if number % 3:
            connection.sendall(sys.argv[2].encode("latin-1") if number % 3 == 1 else os.urandom(100))
    except OSError:
        pass
print("hanging", flush=True)
sys.stdin.read()
'''

async def main():
    tls_connections.limit_handshakes()
    async with Scheduler(port=0, dashboard_address="127.0.0.1:0", host="tls://127.0.0.1", security=security) as scheduler:
        async with Client(scheduler.address, security=security, asynchronous=True) as old:
            command = [sys.executable, "-c", FLOODER, str(scheduler.port), HELLO.decode("latin-1").replace("\\0", "\\x01")]
            pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
            flooder = await asyncio.create_subprocess_exec(*command, **pipes)
            await asyncio.wait_for(flooder.stdout.readline(), 60)
            print(await old.run_on_scheduler(lambda: 41))
            async with Client(scheduler.address, security=security, asynchronous=True) as new:
                print(await new.run_on_scheduler(lambda: 42))
            print(len(os.listdir("/dev/fd")) < 400)
            flooder.stdin.close()
            await flooder.wait()

asyncio.run(main())
"""


def test_limit_handshakes_under_a_flood() -> None:
    """2,000 connections that stay unfinished, with 400 open files: who is there stays, who comes gets in."""
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "41\n42\nTrue\n"
    assert "Too many open files" not in done.stderr


# tls_backend


async def say(security: Any, listening: Any, message: Any, **options: Any) -> tuple[Any, Any, list[Any]]:
    """Send a message to a listener and back: what has come back, the connection, and those that the listener has seen."""
    from distributed.comm import connect, listen

    seen: list[Any] = []

    async def echo(comm: Any) -> None:
        seen.append(comm)
        with contextlib.suppress(distributed.comm.CommClosedError):
            while True:
                await comm.write(await comm.read())

    listener = listen("tls://127.0.0.1:0", echo, **listening.get_listen_args("worker"))
    async with listener:
        comm = await connect(listener.contact_address, **security.get_connection_args("worker"), **options)
        await comm.write(message)
        found = await asyncio.wait_for(comm.read(), 30)
        assert comm.peer_address == listener.contact_address
        assert comm.same_host
        assert seen[0].same_host
        await comm.close()
        await until(seen[0].closed)
    return found, comm, seen


@pytest.mark.skipif(sys.platform != "linux", reason="links are for Linux")
def test_offer() -> None:
    """Who has the run's credentials is connected by a link, any others as ever, and nothing about an address tells which."""
    from distributed.comm import registry
    from distributed.comm.tcp import TLS, TLSBackend

    security, temporary = RunSecurity(Credentials.generate()), distributed.Security.temporary()
    plain = RunSecurity(security.credentials, node_links=False)
    data = os.urandom(1000) * 5_000
    message = {"bytes": data, "number": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ends, linked in (((security, security), True), ((security, plain), False), ((plain, security), False)):
            found, comm, seen = asyncio.run(say(*ends, message))
            assert found == message
            kinds = {type(each) for each in (comm, *seen)}
            assert (kinds == {tls_backend.NodeLink}) is linked
            assert (kinds == {TLS}) is not linked
            assert all(each.startswith("tls://127.0.0.1:") for each in (comm.local_address, seen[0].local_address))
        _, comm, _ = asyncio.run(say(temporary, temporary, message))
    assert type(comm) is TLS
    assert isinstance(registry.backends["tls"], TLSBackend)
    assert tls_backend.offer(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), NodeLinks(security.credentials)), "all is there"


@pytest.mark.skipif(sys.platform != "linux", reason="links are for Linux")
def test_a_link_that_keeps_silent_costs_a_fifth_of_the_time_for_a_connection() -> None:
    """The next try is by TLS: a process that does not answer, though its name is right, keeps nobody waiting for ever."""

    class Silent(NodeLinks):
        async def admit(self, stream: Any) -> bool:
            await asyncio.Event().wait()
            return False

    security = RunSecurity(Credentials.generate())
    context = security.make_context(ssl.Purpose.CLIENT_AUTH)
    tls_backend.offer(context, Silent(security.credentials))
    began = time.monotonic()
    found, comm, _ = asyncio.run(say(security, security, "word", timeout=5))
    assert found == "word"
    assert type(comm) is not tls_backend.NodeLink
    assert 0.5 < time.monotonic() - began < 5


TWO_BLOCKS = """
import multiprocessing, multiprocessing.forkserver as f, os
from batchlet.dask_backend.compat.multiprocessing_internals import fork_server_of_this_block

def run():
    process = multiprocessing.get_context("forkserver").Process(target=print, args=("forked",))
    process.start()
    process.join(30)
    return f._forkserver._forkserver_pid

def gone(pid):
    return not os.path.exists(f"/proc/{pid}")

if __name__ == "__main__":
    with fork_server_of_this_block():
        first = run()
    print(gone(first))
    second = run()
    with fork_server_of_this_block():
        print(run() == second)
    print(gone(second))
"""


def test_fork_server_of_this_block(tmp_path: Path) -> None:
    """One that the block has started goes with it, and another can be started; one that was there stays."""
    script = tmp_path / "two_blocks.py"
    script.write_text(TWO_BLOCKS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["forked", "True", "forked", "forked", "True", "False"]


def test_every_function_has_its_test() -> None:
    """Each public name of the package is named by a test of this file."""
    modules = (
        dask_internals, http_servers, log_messages, logging_internals, multiprocessing_internals, tls_backend, tls_connections,
    )  # fmt: skip
    text = Path(__file__).read_text()
    assert [name for module in modules for name in module.__all__ if name not in text] == []


def test_what_is_registered_before_the_pools_end_comes_while_they_work():
    """`interpreter_end.before_pools_end`: a pool takes work in it, and the exit code stays."""
    script = (
        "import concurrent.futures, sys\n"
        "from batchlet.dask_backend.compat.interpreter_end import before_pools_end\n"
        "pool = concurrent.futures.ThreadPoolExecutor(1)\n"
        # Python 3.12 starts no thread by then.
        "pool.submit(sum, [1]).result()\n"
        "before_pools_end(lambda: print(pool.submit(sum, [1, 2]).result(5)))\n"
        "sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "3\n", "")


def test_figures_of_workers_and_tasks(cluster: Callable[..., Any]) -> None:
    """Heartbeats bring what was sent, received and spilled; transitions tell of tasks; a Nanny knows its worker's process."""
    seen: list[tuple[Any, ...]] = []

    class Watch(distributed.SchedulerPlugin):  # type: ignore[misc]
        def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
            if (start, finish) == ("processing", "memory"):
                seen.append((key, *figures.done_with(kwargs)))

    def prepare(dask_worker: Any) -> None:
        figures.count_traffic(dask_worker)

    async def use(scheduler: Any, _: Any) -> Any:
        scheduler.add_plugin(Watch())
        async with (
            Nanny(scheduler.address, nthreads=1, host="127.0.0.1", name="one") as one,
            Nanny(scheduler.address, nthreads=1, host="127.0.0.1", name=2) as other,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            await client.run(prepare)
            data = client.submit(bytes, 3_000_000, workers=[one.worker_address], key="data-1")
            await client.submit(len, data, workers=[other.worker_address], key="length-1")
            for _ in range(100):
                found = {str(state.name): figures.figures_of(state) for state in scheduler.workers.values()}
                if found["one"]["sent"] and found["2"]["received"]:
                    break
                await asyncio.sleep(0.1)
            pids = {one.process.pid, other.process.pid}
            return {name: found[name] for name in ("one", "2")}, figures.pids_of([one, other]), pids

    found, named, pids = cluster(use)
    assert set(named) == {"one", "2"}
    assert set(named.values()) == pids
    assert found["one"]["sent"] > 2_900_000 > found["2"]["sent"]
    assert found["2"]["received"] > 2_900_000 > found["one"]["received"]
    assert {one["spilled"] for one in found.values()} == {0}
    assert {one["executing"] for one in found.values()} == {0}
    assert {one["written"] for one in found.values()} == {0}
    told = {key: rest for key, *rest in seen}
    address, seconds, transfer, first, last, size = told["length-1"]
    assert address.startswith("tcp://127.0.0.1:")
    assert last - first == pytest.approx(seconds)
    assert transfer > 0
    assert told["data-1"][-1] >= 3_000_000
    assert size > 0


SPILLS = """
import json, time
from distributed import Client, LocalCluster
from batchlet.dask_backend.compat import figures

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="400MB", dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.run(lambda dask_worker: figures.count_traffic(dask_worker))
            held = client.map(lambda one: bytes([one]) * 15_000_000, range(24))
            client.gather(client.map(len, held))
            for _ in range(100):
                [state] = cluster.scheduler.workers.values()
                found = figures.figures_of(state)
                if found["spilled"] and found["written"]:
                    break
                time.sleep(0.1)
            print(json.dumps(found))
"""


def test_what_is_spilled_is_told(tmp_path: Path) -> None:
    """What is on disk now, and what was written in all."""
    script = tmp_path / "spills.py"
    script.write_text(SPILLS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["written"] >= found["spilled"] > 10_000_000, found
