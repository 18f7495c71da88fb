"""Links inside a node: a stranger, and another run of the same user, get nothing by them, and their names are no trap."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from distributed.comm import CommClosedError, connect, listen
from distributed.comm.tcp import TLS
from strangers import foreign_python, here, need_root, stranger

from batchlet.dask_backend.node_links import NodeLinks
from batchlet.dask_backend.tls import RunSecurity
from batchlet.security import Credentials

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="links are for Linux")

# Takes a name, in a manner, and says what it hears; whatever connects is kept.
TRAP = """
import signal, socket, sys
manner, name = sys.argv[1], "\\0" + sys.stdin.read()
server = socket.socket(socket.AF_UNIX)
server.bind(name)
held = []
if manner == "full backlog":
    server.listen(0)
    for _ in range(64):
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].setblocking(False)
        try:
            held[-1].connect(name)
        except BlockingIOError:
            break
    else:
        raise SystemExit("the backlog does not fill up")
elif manner == "listens":
    server.listen(100)
print("ready", flush=True)
while manner != "listens":
    signal.pause()
while True:
    connection, _ = server.accept()
    held.append(connection)
    connection.settimeout(2)
    try:
        print("heard", len(connection.recv(1 << 16)), flush=True)
    except OSError:
        print("heard nothing", flush=True)
"""
# Says something to each name, as a run would, and tells what comes back.
KNOCK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(20)
    connection.connect("\\0" + sys.stdin.read())
    try:
        connection.sendall(bytes(32))
        print("got", len(connection.recv(1 << 16)))
    except OSError as error:
        print("got", 0)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def name_of(security: RunSecurity, port: int) -> str:
    return NodeLinks(security.credentials)._name("127.0.0.1", port).decode().removeprefix("\0")


@contextlib.asynccontextmanager
async def listening(security: RunSecurity, port: int = 0) -> Any:
    """Have somebody echo what is said; gives the address, and what has come in so far."""
    seen: list[Any] = []

    async def echo(comm: Any) -> None:
        seen.append(comm)
        with contextlib.suppress(CommClosedError):
            while True:
                await comm.write(await comm.read())

    listener = listen(f"tls://127.0.0.1:{port}", echo, **security.get_listen_args("worker"))
    async with listener:
        yield listener.contact_address, seen


async def echoed(security: RunSecurity, address: str, timeout: float = 20) -> type:
    """Say something and hear it again; gives the kind of connection."""
    comm = await connect(address, timeout=timeout, **security.get_connection_args("worker"))
    try:
        await comm.write({"secret": b"x" * 100_000})
        assert (await asyncio.wait_for(comm.read(), timeout))["secret"] == b"x" * 100_000
        return type(comm)
    finally:
        comm.abort()


def heard(process: subprocess.Popen[str], seconds: float = 10) -> str:
    """The next line that a trap says; nothing if it has none."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline().strip() if ready else ""


@pytest.mark.parametrize("manner", ["never listens", "full backlog", "listens"])
def test_another_user_who_has_the_name_hears_nothing_and_costs_nothing(manner: str) -> None:
    """The connection is by TLS then, at once; who has answered in the run's place has not been told one byte."""
    need_root()
    security, port = RunSecurity(Credentials.generate()), free_port()

    async def main(trap: subprocess.Popen[str]) -> None:
        async with listening(security, port) as (address, seen):
            began = time.monotonic()
            assert await echoed(security, address) is TLS
            assert time.monotonic() - began < 3
            assert [type(each) for each in seen] == [TLS]

    with stranger(here(), manner, code=TRAP, stdin=name_of(security, port)) as trap:
        asyncio.run(main(trap))
        if manner == "listens":
            # It was asked, and left when the kernel had said whose it was.
            assert heard(trap) == "heard 0"


def test_control_the_trap_hears_its_own_user() -> None:
    """The same trap of the user's own does hear something, the number that begins a proof, and no more; then there is TLS."""
    security, port = RunSecurity(Credentials.generate()), free_port()

    async def main(trap: subprocess.Popen[str]) -> None:
        async with listening(security, port) as (address, _):
            assert await echoed(security, address) is TLS

    with subprocess.Popen(
        [sys.executable, "-c", TRAP, "listens"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trap:
        assert trap.stdin is not None
        try:
            trap.stdin.write(name_of(security, port))
            trap.stdin.close()
            assert heard(trap) == "ready"
            asyncio.run(main(trap))
            assert heard(trap) == "heard 32"
        finally:
            trap.kill()


def test_nobody_enters_by_a_link_but_the_user_with_the_runs_key() -> None:
    """Another user is hung up on without a byte; another run of the same user gets no further than the proof."""
    need_root()
    security, other = RunSecurity(Credentials.generate()), RunSecurity(Credentials.generate())

    async def knock(name: str, *before: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *before, foreign_python(), "-I", "-c", KNOCK,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd="/",
        )  # fmt: skip
        said, _ = await asyncio.wait_for(process.communicate(name.encode()), 40)
        return said.decode().strip()

    async def main() -> None:
        async with listening(security) as (address, seen):
            port = int(address.rpartition(":")[2])
            name = name_of(security, port)
            assert await knock(name, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") == "got 0"
            # Control: the same, of this user.
            assert await knock(name) == "got 64"
            # Another run that looks at the very same name.
            wrong = NodeLinks(other.credentials)
            wrong._name = lambda *_: b"\0" + name.encode()  # type: ignore[method-assign]
            reader, writer = await asyncio.open_unix_connection(sock=wrong.connect("127.0.0.1", port))
            writer.write(bytes(32))
            answer = await reader.readexactly(64)
            writer.write(wrong._proof(b"connects", bytes(32), answer[:32]))
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            assert seen == []
            assert (await echoed(security, address)).__name__ == "NodeLink"
            assert [type(each).__name__ for each in seen] == ["NodeLink"]

    asyncio.run(main())


def test_a_name_has_the_key_in_it_and_goes_with_the_listener() -> None:
    """Nobody can take it beforehand; another run, another port and another host have other names; nothing stays."""
    security = RunSecurity(Credentials.generate())
    links, other = NodeLinks(security.credentials), NodeLinks(Credentials.generate())
    names = {one._name(host, port) for one in (links, other) for host in ("127.0.0.1", "::1") for port in (1, 2)}
    assert len(names) == 8
    assert all(len(name) <= 108 and not security.credentials.key.encode().count(name[15:]) for name in names)

    async def main() -> str:
        async with listening(security) as (address, _):
            assert (await echoed(security, address)).__name__ == "NodeLink"
            return name_of(security, int(address.rpartition(":")[2]))

    name = asyncio.run(main())
    with open("/proc/net/unix") as table:  # noqa: PTH123
        assert name not in table.read()
