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
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_helpers import Place, Result

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
                self._jobs |= {process.environ()["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in process.environ() else set()
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
        fields = line.split()
        # Flag 0x10000: it listens.
        if fields[6] in inodes and int(fields[3], 16) & 0x10000:
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
) -> list[Attack]:
    """Try everything on all TCP ports from all standpoints; of HTTP these paths, or all."""
    address_of = {point.namespace: point.address for point in points}
    targets = [one for one in sockets if one.family.startswith("tcp")]
    orders = {
        "dask": {kind: base64.b64encode(said).decode() for kind, said in dask_words(loot.directory).items()},
        "foreign": foreign_certificate(),
        "own": own,
        "paths": list(http_paths() if paths is None else paths),
        "websockets": [
            f"{front}/{name}"
            for front in ("", "/x", "/" + "0" * 32)
            for name in ("status/ws", "individual-task-stream/ws", "eventstream")
        ],
    }
    found = []
    for place, point in enumerate(points):
        named = {}
        for number, one in enumerate(targets):
            # From elsewhere, a socket on the loopback is tried under its node's own address.
            local = one.namespace == point.namespace
            hosts = {LOOPBACK, address_of[one.namespace]} if local else {address_of[one.namespace]}
            for host in hosts:
                name = f"{number:02}{'l' if host == LOOPBACK else 'n'}{place:03}"
                named[name] = (host, one.port, one)
        told = {**orders, "targets": [[host, port, name] for name, (host, port, _) in named.items()]}
        done = as_nobody(point, stdin=json.dumps(told), code=(HERE / "attacker.py").read_text())
        assert done.returncode == 0, done.stderr
        for each in json.loads(done.stdout):
            host, port, one = named[each["target"]]
            where = f"{host}:{port} ({one.address} of {one.who})"
            found.append(Attack(standpoint=point.name, where=where, **each))
    return found


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
    """Those that got anything but a refusal: the end of the connection, a TLS alert, or the error of an HTTP server."""
    got = []
    for attack in attacks:
        if attack.size == 0:
            continue
        alert = re.match(r"\x15\x03[\x00-\x04]", attack.answer) is not None and attack.size < 64
        refused = attack.status in (400, 403, 404, 405, 501)
        if not alert and not refused:
            got.append(str(attack))
    return got
