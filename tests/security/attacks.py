"""Attacks on all that a run listens on, from wherever another user may be, and what came back."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from listening import Listening
from strangers import LOOPBACK, Standpoint, as_nobody, here

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Attack:
    """One attack and what came back."""

    standpoint: str
    target: str
    where: str
    how: str
    size: int
    answer: str
    end: str

    @property
    def status(self) -> int:
        """The status of an HTTP answer, or 0."""
        match = re.match(r"HTTP/1\.[01] (\d+) ", self.answer)
        return int(match[1]) if match else 0

    def __str__(self) -> str:
        return f"from {self.standpoint} at {self.where}: {self.how}: {self.size} bytes {self.answer[:150]!r} {self.end}"


class Loot:
    """A directory into which only the run's own user can write: a file there means that the attacker's code ran as them."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "loot"
        self.directory.mkdir(exist_ok=True, mode=0o755)

    def found(self) -> dict[str, int]:
        """Names of the files, and who wrote them."""
        return {path.name: path.stat().st_uid for path in self.directory.iterdir()}

    def clear(self) -> None:
        for path in self.directory.iterdir():
            path.unlink()


def attack_ports(
    sockets: Sequence[Listening],
    points: Sequence[Standpoint],
    loot: Loot,
    *,
    own: str = "",
    paths: Sequence[str] | None = None,
    elsewhere: Sequence[str] | None = None,
    standing: int | None = None,
    patience: float | None = None,
) -> list[Attack]:
    """Try everything on all TCP ports from all standpoints, or the first few; what is robbed is called after their numbers.

    Of HTTP these paths are tried, or all; other ones than from the first standpoint from elsewhere if that is given.
    With a `patience` it is HTTP alone that is tried, and an answer may take so many seconds.
    """
    address_of = {point.namespace: point.address for point in points}
    targets = [one for one in sockets if one.family.startswith("tcp")]
    words = dask_words(loot.directory)
    orders = {
        "dask": {} if patience else {kind: base64.b64encode(each).decode() for kind, each in words.items()},
        "patience": patience,
        "foreign": foreign_certificate(),
        "own": own,
        "websockets": [
            f"{front}/{name}"
            for front in ("", "/x", "/" + "0" * 32)
            for name in ("status/ws", "individual-task-stream/ws", "eventstream")
        ],
    }

    def attack(place: int) -> list[Attack]:
        point = points[place]
        named = {}
        for number, one in enumerate(targets):
            # From elsewhere, a socket on the loopback is tried under its node's own address.
            local = one.namespace == point.namespace
            hosts = {LOOPBACK, address_of[one.namespace]} if local else {address_of[one.namespace]}
            for host in hosts:
                name = f"{number:02}{'l' if host == LOOPBACK else 'n'}{place:03}"
                named[name] = (host, one.port, one)
        asked = elsewhere if place and elsewhere is not None else http_paths() if paths is None else paths
        told = {
            **orders,
            "paths": list(asked),
            "targets": [[host, port, name] for name, (host, port, _) in named.items()],
        }
        done = as_nobody(point, stdin=json.dumps(told), code=(HERE / "attacker.py").read_text())
        assert done.returncode == 0, done.stderr
        found = []
        for each in json.loads(done.stdout):
            host, port, one = named[each["target"]]
            where = f"{host}:{port} ({one.address} of {one.who})"
            found.append(Attack(standpoint=point.name, where=where, **each))
        return found

    with ThreadPoolExecutor(len(points)) as pool:
        return [one for part in pool.map(attack, range(len(points))[:standing]) for one in part]


UNIX = r"""
import json, os, pickle, socket, sys
orders = json.load(sys.stdin)

class Robber:
    def __reduce__(self):
        return os.system, ("touch " + orders["loot"],)

order = pickle.dumps(Robber())
hello = {"op": "hello", "name": "2", "role": "client", "node": "n1", "challenge": "00", "proof": "00" * 32}
words = [b"", json.dumps(hello).encode() + b"\n", b"GET / HTTP/1.0\r\n\r\n", os.urandom(3000)]
words += [len(order).to_bytes(size, end) + order for size, end in ((8, "big"), (8, "little"), (4, "big"), (4, "little"))]
found = []
for name in orders["names"]:
    address = "\0" + name[1:] if name.startswith("@") else name
    for kind in ("SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"):
        for number, said in enumerate(words):
            answer = ""
            try:
                with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as connection:
                    connection.settimeout(0.5)
                    connection.bind("")  # where an answer to a datagram would come
                    connection.connect(address)
                    try:
                        connection.sendall(said)
                    except OSError:
                        pass  # who hangs up may have said something before
                    answer = connection.recv(65536).decode("latin-1")
                    end = "answered" if answer else "end"
            except OSError as error:
                end = type(error).__name__
            found.append([name, f"{kind} {number}", answer, end])
            if end in ("PermissionError", "ConnectionRefusedError") or kind == "SOCK_STREAM" and end == "OSError":
                break
json.dump(found, sys.stdout)
"""


def attack_unix(sockets: Sequence[Listening], points: Sequence[Standpoint], loot: Loot) -> list[Attack]:
    """Try to talk to all Unix sockets that have a name, each from its own node: abstract ones are of a network namespace."""
    found = []
    for point in points:
        names = {one.address: one for one in sockets if one.family == "unix" and one.namespace == point.namespace}
        names.pop("", None)
        if names:
            told = {"names": list(names), "loot": f"{loot.directory}/unix"}
            done = as_nobody(point, stdin=json.dumps(told), code=UNIX)
            assert done.returncode == 0, done.stderr
            for name, how, answer, end in json.loads(done.stdout):
                where = f"{name} of {names[name].who}"
                found.append(Attack(point.name, name, where, how, len(answer), answer, end))
    return found


@contextlib.contextmanager
def decoys(directory: Path) -> Iterator[list[Listening]]:
    """Unix sockets that answer everybody, for `attack_unix` to show that it would hear an answer."""
    path = directory / "decoy"
    names = [f"@decoy-{os.getpid()}-{directory.name}", str(path)]
    with contextlib.ExitStack() as stack:
        for name in names:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind("\0" + name[1:] if name.startswith("@") else name)
            server.listen()
            threading.Thread(target=_answer, args=(server,), daemon=True).start()
        path.chmod(0o777)
        yield [Listening("unix", here().namespace, name, 0, "the test") for name in names]


def _answer(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"who is there?")


def dask_words(directory: Path) -> dict[str, bytes]:
    """What a Dask client says to have its code run by a scheduler, and by a worker or a nanny.

    The code touches a file called after the target and the way in: ``@NAME@-@HOW@``.
    """
    from distributed.protocol.core import dumps
    from distributed.protocol.pickle import dumps as pickled
    from distributed.protocol.utils import pack_frames_prelude

    def said(message: dict[str, Any]) -> bytes:
        frames = dumps(message)
        body = pack_frames_prelude(frames) + b"".join(bytes(frame) for frame in frames)
        return struct.pack("Q", len(body)) + body

    hello = said({"compression": None, "python": tuple(sys.version_info)[:3], "pickle-protocol": 4})
    code = {
        "function": pickled(os.system),
        "args": pickled((f"touch {directory}/@NAME@-@HOW@",)),
        "kwargs": pickled({}),
        "wait": True,
        "reply": True,
    }
    words = {
        "run_function": hello + said({"op": "run_function", **code}),
        "run": hello + said({"op": "run", **code}),
    }
    for text in words.values():
        # Replaced by something of the same length, six and five bytes.
        assert text.count(b"@NAME@-@HOW@") == 1
    return words


@functools.cache
def foreign_certificate() -> str:
    """A certificate that looks exactly like that of a run, of somebody else."""
    from batchlet.security import Credentials

    other = Credentials.generate()
    return other.certificate + other.key


@functools.cache
def http_paths() -> tuple[str, ...]:
    """All routes that Dask's scheduler and worker can serve, those of the dashboard included, and some tricks."""
    import dask.config
    import distributed

    distributed.Scheduler, distributed.Worker  # noqa: B018 - their defaults are loaded with them
    modules = [
        *dask.config.get("distributed.scheduler.http.routes"),
        *dask.config.get("distributed.worker.http.routes"),
        "distributed.http.scheduler.api",
    ]
    paths = {"/", "/metrics", "/health", "/info", "/status", "/json", "/sitemap.json", "/individual-plots.json"}
    for module in modules:
        for pattern, *_ in importlib.import_module(module).routes:
            paths.add("/" + re.sub(r"\([^)]*\)", "x", pattern).replace("\\", "").lstrip("/"))
    with contextlib.suppress(ImportError):
        from distributed.dashboard.scheduler import applications

        paths |= set(applications)
    with contextlib.suppress(ImportError):
        from distributed.dashboard.worker import applications as of_worker

        paths |= set(of_worker)
    paths |= {
        "/statics/css/status.css", "/statics/js/../../../../etc/passwd", "/static/js/bokeh.min.js",
        "/proxy/8787/localhost/status",
        "//status", "/./status", "/../status", "/%2e%2e/status", "/;/status", "/?/status", "http://localhost/status",
        "/" + "0" * 32 + "/status", "/" + "0" * 32, "/./" + "0" * 32 + "/../status", "/x/status/", "/[0-9a-f]*/status", "*",
        "/favicon.ico", "/autoload.js", "/status/autoload.js", "/sysmon",
    }  # fmt: skip
    return tuple(sorted(paths))


def intrusions(attacks: Sequence[Attack]) -> list[str]:
    """Those that got anything but a refusal: the end of the connection, a TLS alert, or the error of an HTTP server.

    Rank 0's coordinator has nothing but a challenge for those who have not proved that they know the secret.
    """
    got = []
    for attack in attacks:
        if attack.size == 0:
            continue
        alert = re.match(r"\x15\x03[\x00-\x04]", attack.answer) is not None and attack.size < 64
        refused = attack.status in (400, 403, 404, 405, 501)
        challenged = re.fullmatch(r'\{"op":"challenge","challenge":"[0-9a-f]{32}"\}\n', attack.answer) is not None
        if not (alert or refused or challenged):
            got.append(str(attack))
    return got


PRETENDER = """
import json, socket, ssl, sys
host, port = sys.argv[1], int(sys.argv[2])
for secure in (False, True):
    try:
        connection = socket.create_connection((host, port), 5)
        connection.settimeout(5)
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        hello = {"op": "hello", "name": "2", "role": "client", "node": "n1", "local_ranks": [], "brings": [],
                 "versions": {}, "challenge": "00", "proof": "00" * 32}
        connection.sendall(json.dumps(hello).encode() + b"\\n")
        connection.sendall(json.dumps({"op": "failed", "kind": "PlanError", "message": "by the attacker"}).encode() + b"\\n")
        while data := connection.recv(65536):
            print(secure, data)
        print(secure, "end")
    except OSError as error:
        print(secure, type(error).__name__)
"""


def pretend(points: Sequence[Standpoint], host: str, port: int) -> None:
    """Have somebody without the secret say, in Batchlet's own words, that they belong to the run; fail if they are heard."""
    # The challenge, which says nothing, is all there is to see.
    allowed = ("b'\\x15\\x03", 'b\'{"op":"challenge"')
    for point in points:
        done = as_nobody(point, host, str(port), code=PRETENDER)
        said = [line.split(" ", 1)[1] for line in done.stdout.splitlines()]
        assert said, done
        for text in said:
            assert text == "end" or text.endswith(("Error", "Alert")) or text.startswith(allowed), (text, done)
