"""Runs that stand still, their processes and sockets, and attacks on them as another user from wherever that user may be."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_helpers import Place, Result, environ_of

HERE = Path(__file__).parent
HELD = HERE / "workloads" / "held.py"
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
LOOPBACK = "127.0.0.1"
PREFIX = "BATCHLET_DASK_CLUSTER__"
# The launchers' own processes: what they listen on is not ours to guard, and they are guarded by their own means.
LAUNCHERS = (
    "srun", "salloc", "slurmstepd", "mpirun", "prterun", "prted", "orted", "mpiexec", "hydra", "hydra_pmi_proxy",
)  # fmt: skip


@functools.cache
def foreign_python() -> str:
    """A Python that any user can run."""
    for python in ("/usr/bin/python3", "/usr/local/bin/python3", sys.executable):
        if Path(python).exists():
            tried = subprocess.run(
                [*AS_NOBODY, python, "-I", "-c", "import ssl"], check=False, capture_output=True, cwd="/"
            )
            if tried.returncode == 0:
                return python
    pytest.skip("no Python here that other users can run (apt-get install python3)")


def need_root() -> None:
    """Skip where no other user can be played."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("nsenter") is None:
        pytest.skip("to play another user needs root, setpriv and nsenter (apt-get install util-linux)")


# ------------------------------------------------------------------------------------------------------- runs


class Held:
    """A run of workloads/held.py (or another script with these arguments) under way."""

    def __init__(
        self,
        place: Place,
        *launcher: str,
        env: Mapping[str, str] | None = None,
        script: Path = HELD,
        argv: Sequence[str] = (),
    ) -> None:
        self.place = place
        self.base = Path(place.base)
        self.began = time.time()
        self._before = place.files()
        self._told: dict[str, Any] | None = None
        self._jobs: set[str] = set()
        for name in ("told.json", "go-on", "out", "err"):
            (self.base / name).unlink(missing_ok=True)
        with (self.base / "out").open("wb") as out, (self.base / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*launcher, sys.executable, str(script), str(self.base), *argv],
                cwd=place.cwd,
                env={**place.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        return (self.base / "err").read_text()

    @property
    def stdout(self) -> str:
        return (self.base / "out").read_text()

    def told(self, seconds: float = 60) -> dict[str, Any]:
        """What the script says about its run; its file is removed, so that no search finds it."""
        if self._told is None:
            path = self.base / "told.json"
            self.wait(path.exists, seconds, "the run did not come up")
            self._told = json.loads(path.read_text())
            path.unlink()
        return self._told

    def wait(self, condition: Any, seconds: float, what: str) -> None:
        """Wait while the run goes on."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"{what}: {self.result()}")
            time.sleep(0.05)

    def result(self) -> Result:
        return Result(self.process.poll() or 0, self.stdout, self.stderr, time.time() - self.began)

    def finish(self, seconds: float = 30) -> Result:
        """Let the script go on, and see it end well."""
        (self.base / "go-on").touch()
        return self.ended(seconds)

    def ended(self, seconds: float = 30) -> Result:
        """Wait for the end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {seconds} s: {self.result()}") from None
        return self.result()

    def end(self) -> None:
        """End it, whatever it does, and its job: that of a salloc which was killed would go on."""
        self.processes()
        self.place.kill_processes()
        if self._jobs:
            cancel = ["scancel", "--quiet", *self._jobs]
            subprocess.run(cancel, env=self.place.environ, check=False, timeout=30, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        if self.process.poll() is None:
            if self.place._on_timeout is not None:
                self.place._on_timeout()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def processes(self, *, launchers: bool = False) -> list[psutil.Process]:
        """The processes of the run, and those of its launcher if wanted."""
        found = []
        for process in self.place.processes():
            with contextlib.suppress(psutil.Error):
                # Read once: while a process becomes a shell, it has no environment for a moment.
                self._jobs |= {job for job in [environ_of(process).get("SLURM_JOB_ID")] if job}
                if launchers or not process.name().startswith(LAUNCHERS):
                    found.append(process)
        return found

    def sockets(self) -> list[Listening]:
        """All sockets on which the run's processes listen."""
        found: dict[Any, Listening] = {}
        ours = {process.pid for process in self.processes()}
        inherited = set()
        for process in self.processes(launchers=True):
            with contextlib.suppress(OSError, psutil.Error):
                for one in _listening(process):
                    if process.pid in ours:
                        found[one.key] = one
                    else:
                        # salloc leaves what it listens on open in the command that it starts.
                        inherited.add(one.key)
        return [one for key, one in found.items() if key not in inherited]


@dataclass(frozen=True)
class Batch:
    """A batch job that has run."""

    lives: list[dict[str, Any]]
    output: str
    readable: bool
    notes: dict[str, tuple[int, str]]  # the file for the owner alone, during the last life: mode and text
    left: list[str]


def batch(cluster: Any, *, launcher: str, requeue: bool) -> Batch:
    """Run a batch job to its end, and once more."""
    place = Place(cluster.env(), on_timeout=cluster.end_jobs)
    script = place.base / "job.sh"
    script.write_text(f'#!/bin/sh\n{launcher} "$@"\n')
    script.chmod(0o755)
    run = Held(place, "sbatch", "--wait", "--requeue", "--output=../job.out", "-N2", "-n4", str(script))
    output = place.base / "job.out"
    try:
        lives = [run.told()]
        if requeue:
            job = lives[0]["run_id"].rsplit("-", 1)[1].partition(".")[0]
            subprocess.run(["scontrol", "requeue", job], env=place.environ, check=True, timeout=20)
            run._told = None
            lives.append(run.told(90))
        notes = {path: (path.stat().st_mode & 0o777, path.read_text()) for path in place.cwd.glob(".batchlet/*")}
        (run.base / "go-on").touch()
        # `sbatch --wait` itself looks only now and then.
        run.wait(lambda: "batchlet: done" in output.read_text(), 30, "the job did not end well")
        shown = {str(path.relative_to(place.cwd)): note for path, note in notes.items()}
        # The client's last line comes before rank 0 has ended.
        deadline = time.monotonic() + 10
        while (left := [path.name for path in place.cwd.rglob("*")]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return Batch(lives, output.read_text(), bool(output.stat().st_mode & 0o044), shown, left)
    finally:
        run.end()
        place.close()


@dataclass(frozen=True)
class Listening:
    """A socket that somebody listens on."""

    family: str
    namespace: str
    address: str
    port: int
    who: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.family, self.namespace, self.address, self.port


def _listening(process: psutil.Process) -> Iterator[Listening]:
    root = Path("/proc", str(process.pid))
    inodes = set()
    for entry in (root / "fd").iterdir():
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
            if match:
                inodes.add(match[1])
    namespace = str((root / "ns/net").readlink())
    who = " ".join(process.cmdline())[:80]
    for family, listens in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in (root / "net" / family).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and fields[3] == listens:
                host, port = fields[1].split(":")
                address = ".".join(str(byte) for byte in struct.pack("<I", int(host, 16))) if len(host) == 8 else host
                yield Listening(family, namespace, address, int(port, 16), who)
    for line in (root / "net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        # Flag 0x10000: it listens. Type 2: datagrams, which need no connection.
        if fields[6] in inodes and (int(fields[3], 16) & 0x10000 or (fields[4] == "0002" and len(fields) > 7)):
            yield Listening("unix", namespace, fields[7] if len(fields) > 7 else "", 0, who)


# --------------------------------------------------------------------------------------------------- the attacker


@dataclass(frozen=True)
class Standpoint:
    """Where an attacker stands: a network namespace."""

    name: str
    namespace: str
    enter: tuple[str, ...] = ()
    address: str = LOOPBACK


def here() -> Standpoint:
    """This machine itself, the login node of the test cluster."""
    return Standpoint("login", str(Path("/proc/self/ns/net").readlink()))


def standpoints(cluster: Any) -> list[Standpoint]:
    """All nodes of the test cluster, and its login node."""
    found = [Standpoint("login", here().namespace, (), cluster.login_address)]
    pids = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            match = re.search(r"slurmd .*-N (\S+)", " ".join(process.cmdline()))
            if match and process.name() == "slurmd":
                pids[match[1]] = process.pid
    for node, address in cluster.node_addresses.items():
        pid = pids[node]
        found.append(
            Standpoint(
                node, str(Path(f"/proc/{pid}/ns/net").readlink()), ("nsenter", f"--target={pid}", "--net"), address
            )
        )
    return found


def as_nobody(
    standpoint: Standpoint, *arguments: str, stdin: str = "", timeout: float = 240, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, there."""
    source = ["-c", code] if code else list(arguments)
    return subprocess.run(
        [*standpoint.enter, *AS_NOBODY, foreign_python(), "-I", *source, *(arguments if code else ())],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


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
) -> list[Attack]:
    """Try everything on all TCP ports from all standpoints, or the first few; what is robbed is called after their numbers.

    Of HTTP these paths are tried, or all; other ones than from the first standpoint from elsewhere if that is given.
    """
    address_of = {point.namespace: point.address for point in points}
    targets = [one for one in sockets if one.family.startswith("tcp")]
    orders = {
        "dask": {kind: base64.b64encode(said).decode() for kind, said in dask_words(loot.directory).items()},
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

    Rank 0's hub has nothing but a challenge for those who have not proved that they know the secret.
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


# ------------------------------------------------------------------------------------------------------- secrets


def secrets_in(data: bytes, told: dict[str, Any], *names: str) -> list[str]:
    """Names of the run's secrets that are in there, in whatever spelling."""
    wanted = {name: told.get(name) for name in names or ("token", "secret")}
    lines = told.get("key", "").splitlines()
    # The second line of the PEM is all of the key itself.
    wanted["key"] = lines[2] if len(lines) > 2 else None
    found = [name for name, text in wanted.items() if text and text.encode() in data]
    return found + (["a private key"] if b"PRIVATE KEY" in data else [])


def files_with(run: Held, told: dict[str, Any]) -> list[str]:
    """The files that hold the run's private key."""
    needle = told["key"].splitlines()[2].encode()
    found = []
    for top in (run.base, Path("/dev/shm"), Path("/tmp"), Path("/var/tmp")):
        for folder, folders, names in os.walk(top):
            # Of the temporary directories what is new; other people's tests have keys of their own.
            folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink()]
            # No run writes into a virtual environment or a checkout, which have more files than all the rest.
            if "pyvenv.cfg" in names or ".git" in folders or ".git" in names:
                folders[:] = []
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_mtime >= run.began - 1 and status.st_size < 1 << 26:
                        data = path.read_bytes()
                        if needle in data or (top == run.base and b"PRIVATE KEY" in data):
                            found.append(str(path))
    return found
