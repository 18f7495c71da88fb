"""A real gridengine on one Linux machine, for tests and for people.

The picture, for instance 0 (instance K has its own names and its own subnet)::

    switch (a network namespace)
    +--------+
    |        |----- eth0 198.19.0.254  node g0login: sge_qmaster, and whoever submits jobs
    | bridge |----- eth0 198.19.0.1    node g0n1: sge_execd, jobs
    |        |----- eth0 198.19.0.2    node g0n2: sge_execd, jobs
    +--------+----- ...

Nodes are namespaces as those of the test Slurm (tests/slurm/cluster_slurm.py), and what belongs to the cluster is found in the
same way. The host is none of them: gridengine wants names and addresses that agree in both directions, so everybody who speaks
to it must see the nodes' own ``/etc/hosts``. `enter` gives a command line that runs on the login node.

Nothing of the host's own gridengine is touched, where it has one: root directory, cell, spool and ports are the cluster's own.

Needs root, and the packages gridengine-master, gridengine-exec, gridengine-client and iproute2. Written for 8.1.9 (Debian 12).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster_commands import DAEMON_PATH, ClusterError, last_line, make_directory, run, wait, write
from cluster_network import NODE_ANCHOR, PROBE, SWITCH_ANCHOR, anchor, connect
from cluster_processes import MARKER, locked, processes_of

__all__ = ["ClusterError", "GridEngine"]

PACKAGES = "gridengine-master gridengine-exec gridengine-client iproute2"
TOOLS = ("ip", "mount", "nsenter", "setsid", "unshare", "qsub", "qstat", "qconf", "sge_qmaster", "sge_execd")
INSTALLED = Path("/var/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
PROGRAMS = Path("/usr/lib/gridengine")
# In network namespaces of their own, so the same for all instances.
PORTS = {"SGE_QMASTER_PORT": "6444", "SGE_EXECD_PORT": "6445"}

BOOTSTRAP = """
admin_user          none
default_domain      none
ignore_fqdn         false
spooling_method     classic
spooling_lib        libspoolc
spooling_params     {spooling}
binary_path         /usr/lib/gridengine
qmaster_spool_dir   {state}/spool/qmaster
security_mode       none
listener_threads    1
worker_threads      1
scheduler_threads   1
"""
# $0 the anchor. The directory has to be entered once more: a new mount namespace begins at the root.
ENTER = """
exec nsenter --target="$0" --net --uts --mount sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
"""
# What the test cluster has otherwise than Debian's default.
CONFIGURATION = {
    "execd_spool_dir": "{state}/spool/execd",
    "mailer": "/bin/true",
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:01",
    "execd_params": "INHERIT_ENV=false",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 joblog=false "
    "sharelog=00:00:00",
}
SMP = """
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""


class GridEngine:
    """One gridengine of network-namespace nodes on this machine.

    Parameters
    ----------
    instance
        Number of the cluster on this machine, 0 to 255. Several may be up side by side.
    nodes
        How many nodes run jobs; the login node is another one.
    slots
        Jobs of one slot that a node may have.
    up_timeout
        Seconds within which all nodes must be ready for jobs.
    """

    def __init__(self, instance: int = 0, nodes: int = 2, slots: int = 8, up_timeout: float = 30.0) -> None:
        if not 0 <= instance <= 255:
            raise ValueError(f"instance must be 0 to 255, not {instance}")
        if not 1 <= nodes <= 200:
            raise ValueError(f"nodes must be 1 to 200, not {nodes}")
        self.instance = instance
        self.slots = slots
        self.up_timeout = up_timeout
        self.login_name = f"g{instance}login"
        self.node_names = tuple(f"g{instance}n{i}" for i in range(1, nodes + 1))
        # 198.18.0.0/15 is set aside for tests of networks (RFC 2544): in use nowhere else. The lower half has the test Slurm.
        self.subnet = f"198.19.{instance}"
        self.link = ""
        self.login_address = f"{self.subnet}.254"
        self.node_addresses = {self.login_name: self.login_address} | {
            name: f"{self.subnet}.{i}" for i, name in enumerate(self.node_names, 1)
        }
        volatile = Path("/run")
        self.state_dir = (
            volatile if volatile.is_dir() else Path(tempfile.gettempdir())
        ) / f"gridengine-test-{instance}"
        self.node_local = self.state_dir / "node-local"
        self.root = self.state_dir / "root"
        self.common = self.root / "default" / "common"
        self.log_dir = self.state_dir / "log"
        self._login = self.state_dir / "login"
        self._ready = self.state_dir / "ready"

    # ---------------------------------------------------------------------------------------------- what it is

    @property
    def is_up(self) -> bool:
        """Whether the cluster is built and its master answers, whoever built it."""
        return self._ready.exists() and self._login_node() is not None and self.call("qstat").returncode == 0

    def env(self) -> dict[str, str]:
        """Return the caller's environment, made to speak to this cluster only."""
        foreign = ("SGE_", "JOB_", "PE", "NSLOTS", "NHOSTS", "NQUEUES", "QUEUE")
        cleaned = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return {**cleaned, **self._places()}

    def enter(self, *command: str) -> list[str]:
        """Give the command line that runs a command on the login node, in the directory in which it is started.

        Raises
        ------
        ClusterError
            If there is no such node.
        """
        return self.enter_node(self._login_node(), *command)

    def unavailable_reason(self) -> str | None:
        """Say in one sentence why this machine cannot run such a cluster, or return None."""
        if not sys.platform.startswith("linux"):
            return f"a test gridengine needs Linux, not {sys.platform}"
        if os.geteuid() != 0:
            return "a test gridengine needs root (network namespaces, sge_execd)"
        missing = [tool for tool in TOOLS if shutil.which(tool, path=DAEMON_PATH) is None]
        if missing or not SHARED.is_dir():
            return f"not installed: {' '.join(missing)} (apt-get install --no-install-recommends {PACKAGES})"
        tried = run("unshare", "--net", "--uts", "--mount", "sh", "-c", PROBE)
        if tried.returncode:
            return f"no permission for namespaces, mounts, veth or bridges here: {last_line(tried.stderr)}"
        return None

    # ---------------------------------------------------------------------------------------------- up and down

    def up(self) -> bool:
        """Build the cluster and wait until every node takes jobs.

        What a crashed earlier run of the same instance left behind is removed first.

        Returns
        -------
        bool
            True if the cluster was built, False if it was up already.

        Raises
        ------
        ClusterError
            If the machine cannot, or if the nodes are not ready in time. The message ends with the last lines of the logs;
            nothing is left behind.
        """
        reason = self.unavailable_reason()
        if reason is not None:
            raise ClusterError(reason)
        with self._lock():
            if self.is_up:
                return False
            self._remove()
            try:
                self._build()
            except BaseException as error:
                tails = self._log_tails()
                self._remove()
                if isinstance(error, ClusterError):
                    raise ClusterError(f"{error}\n{tails}") from error
                raise
        return True

    def down(self) -> None:
        """End the cluster's processes and remove every trace of it; does nothing where there is none."""
        if os.geteuid() != 0:
            raise ClusterError("root built the cluster, and only root can remove it")
        with self._lock():
            self._remove()

    def end_jobs(self, seconds: float = 10.0) -> None:
        """Delete all jobs and wait until none is left.

        Raises
        ------
        ClusterError
            If some are left after that time.
        """
        self.call("qdel", "-u", "*")
        wait(lambda: not self.call("qstat", "-u", "*").stdout, seconds, lambda: self.call("qstat", "-u", "*").stdout)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a short command on the login node."""
        # Debian's wrappers find out, each time, where gridengine is.
        return run(*self.enter(*command), env={**self.env(), "PATH": f"{PROGRAMS}:{DAEMON_PATH}"})

    # ---------------------------------------------------------------------------------------------- building

    def _build(self) -> None:
        self._write_files()
        switch = anchor(self._daemon_env(), ["--net"], SWITCH_ANCHOR)
        namespaces = ["--net", "--uts", "--mount", "--propagation", "private"]
        anchors = {
            name: anchor(self._daemon_env(), namespaces, NODE_ANCHOR, name, str(self._hosts), str(self.node_local))
            for name in self.node_addresses
        }
        connect(self, switch, anchors)
        self._login.write_text(str(anchors[self.login_name]))
        self._spool()
        self._daemon(anchors[self.login_name], "sge_qmaster")
        wait(lambda: self.call("qconf", "-sm").returncode == 0, self.up_timeout, lambda: "sge_qmaster does not answer")
        self._asked("qconf", "-ah", ",".join(self.node_names))
        # Each takes a second, most of which it waits.
        with ThreadPoolExecutor() as pool:
            starts = [pool.submit(self._daemon, anchors[name], "sge_execd") for name in self.node_names]
            self._configure()
        for start in starts:
            start.result()
        wait(self._all_ready, self.up_timeout, lambda: f"the nodes are not ready:\n{self.call('qstat', '-f').stdout}")
        self._ready.touch()

    def _write_files(self) -> None:
        for path in (self.state_dir, self.common, self.log_dir, self.state_dir / "spool" / "execd"):
            make_directory(path, 0o755)
        make_directory(self.state_dir / "spool" / "qmaster", 0o755)
        make_directory(self.node_local, 0o1777)
        for source in (INSTALLED / "bin", INSTALLED / "lib", INSTALLED / "utilbin", SHARED / "util"):
            (self.root / source.name).symlink_to(source)
        names = {"localhost": "127.0.0.1", **self.node_addresses}
        write(self._hosts, "".join(f"{address} {name}\n" for name, address in names.items()))
        write(self.common / "bootstrap", BOOTSTRAP.format(state=self.state_dir, spooling=self._spooling).lstrip())
        write(self.common / "act_qmaster", f"{self.login_name}\n")
        write(self.state_dir / "smp", SMP.lstrip())
        lines = []
        for line in (SHARED / "default-configuration").read_text().splitlines():
            name = line.partition(" ")[0]
            lines.append(
                f"{name} {CONFIGURATION[name].format(state=self.state_dir)}" if name in CONFIGURATION else line
            )
        write(self.state_dir / "configuration", "\n".join(lines) + "\n")

    def _spool(self) -> None:
        """Make the master's data base."""
        resources = SHARED / "util" / "resources"
        for command in (
            ("spoolinit", "classic", "libspoolc", self._spooling, "init"),
            ("spooldefaults", "configuration", str(self.state_dir / "configuration")),
            ("spooldefaults", "complexes", str(resources / "centry")),
            ("spooldefaults", "usersets", str(resources / "usersets")),
            ("spooldefaults", "managers", "root"),
            ("spooldefaults", "operators", "root"),
        ):
            done = run(*self.enter(str(PROGRAMS / command[0]), *command[1:]), env=self._daemon_env())
            if done.returncode:
                raise ClusterError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")

    def _configure(self) -> None:
        hosts = " ".join(self.node_names)
        write(self.state_dir / "hostgroup", f"group_name @allhosts\nhostlist {hosts}\n")
        queue = self._asked("qconf", "-sq").replace("\\\n", " ")
        changes = {"qname": "all.q", "hostlist": "@allhosts", "slots": str(self.slots), "pe_list": "smp", "shell": "/bin/sh",
                   "rerun": "FALSE", "load_thresholds": "NONE", "tmpdir": "/tmp"}  # fmt: skip
        write(self.state_dir / "queue", changed(queue, changes))
        scheduler = self._asked("qconf", "-ssconf")
        changes = {
            "schedule_interval": "0:0:1",
            "flush_submit_sec": "1",
            "flush_finish_sec": "1",
            "schedd_job_info": "true",
        }
        write(self.state_dir / "scheduler", changed(scheduler, changes))
        self._asked("qconf", "-as", ",".join(self.node_addresses))
        for option, name in (("-Ahgrp", "hostgroup"), ("-Ap", "smp"), ("-Aq", "queue"), ("-Msconf", "scheduler")):
            self._asked("qconf", option, str(self.state_dir / name))

    def _asked(self, *command: str) -> str:
        done = self.call(*command)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def _all_ready(self) -> bool:
        """Whether each node's queue has no letter for a state that it cannot work in."""
        rows = [line.split() for line in self.call("qstat", "-f").stdout.splitlines() if line.startswith("all.q@")]
        # Name, type, slots, load, architecture; with a state there is a sixth column, without a load it is -NA-.
        return len(rows) == len(self.node_names) and all(len(row) == 5 and row[3] != "-NA-" for row in rows)

    def _daemon(self, anchor_pid: int, *command: str) -> None:
        """Run, on a node, a command that puts itself into the background."""
        with (self.log_dir / "start.log").open("ab") as log:
            done = subprocess.run(
                self.enter_node(anchor_pid, *command),
                env=self._daemon_env(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=60,
                check=False,
            )
        if done.returncode:
            raise ClusterError(f"{' '.join(command)} failed with exit code {done.returncode}")

    def enter_node(self, anchor_pid: int | None, *command: str) -> list[str]:
        """Give the command line that runs a command on the node with that anchor."""
        if anchor_pid is None:
            raise ClusterError(f"gridengine instance {self.instance} is down")
        return ["sh", "-c", ENTER, str(anchor_pid), *command]

    def _login_node(self) -> int | None:
        """Give the process that holds the login node's namespaces; `None` where it is gone."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._login.read_text())
            if f"{MARKER}={self.state_dir}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
        return None

    def _places(self) -> dict[str, str]:
        return {"SGE_ROOT": str(self.root), "SGE_CELL": "default", "SGE_CLUSTER_NAME": f"test{self.instance}", **PORTS}

    def _daemon_env(self) -> dict[str, str]:
        return {"PATH": DAEMON_PATH, "LANG": "C.UTF-8", MARKER: str(self.state_dir), **self._places()}

    @property
    def _spooling(self) -> str:
        return f"{self.common};{self.state_dir}/spool/qmaster"

    @property
    def _hosts(self) -> Path:
        return self.state_dir / "hosts"

    def _log_tails(self, lines: int = 15) -> str:
        paths: Sequence[Path] = sorted([*self.log_dir.glob("*.log"), *self.state_dir.glob("spool/**/messages")])
        tails = []
        for path in paths:
            tails += [
                f"--- {path.relative_to(self.state_dir)}",
                *path.read_text(errors="replace").splitlines()[-lines:],
            ]
        return "\n".join(tails)

    # ---------------------------------------------------------------------------------------------- removing

    def _remove(self) -> None:
        """End the processes, then remove the files, however much of a cluster is left."""
        wait(
            lambda: not self._kill_all(),
            20,
            lambda: f"processes do not end: {sorted(processes_of(str(self.state_dir)))}",
        )
        shutil.rmtree(self.state_dir, ignore_errors=True)
        if self.state_dir.exists():
            raise ClusterError(f"could not remove {self.state_dir}")

    def _kill_all(self) -> set[int]:
        found = processes_of(str(self.state_dir))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        doing = f"another process is building or removing gridengine instance {self.instance}"
        return locked(str(self.state_dir), 120, doing)


def changed(text: str, values: dict[str, str]) -> str:
    """Replace values of a configuration as qconf prints and reads it: a name and its value in each line."""
    for name, value in values.items():
        text = re.sub(rf"(?m)^{name}\s.*$", f"{name} {value}", text)
    return text
