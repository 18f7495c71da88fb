"""A real multi-node Slurm on one Linux machine, for tests and for people.

The picture, for instance 0 (instance K has its own names and its own subnet)::

    host = login node          switch (a network namespace)
    slurmctld, munged          +--------+
    slurm0 198.18.0.254 -------| bridge |----- eth0 198.18.0.1  node n1: slurmd, job steps
    srun, sbatch, salloc       |        |----- eth0 198.18.0.2  node n2: slurmd, job steps
                               +--------+----- ...

A node is three namespaces (network, hostname, mounts), held open by one sleeping *anchor* process: own address, own
hostname, own ``/etc/hosts``, a small file system of its own, no default route. PIDs, users and all other files are
shared with the host, as home directories would be. The namespaces have no names and no mounts on the host, so they end
with the processes in them. The bridge sits in a namespace too, so that a firewall or Docker on the host, which may
filter bridged traffic, never sees what the nodes say to each other.

Nodes are entered with ``nsenter``, not with ``ip netns exec``: the latter mounts a fresh ``/sys``, which hides the
cgroups that Slurm needs.

Ownership: every daemon carries a marker in its environment (``MARKER``), and whatever runs in a node's network
namespace or cgroup belongs to that node. That, not a recorded process id which may be somebody else's by now, decides
what ``down`` ends. The marker never reaches a user's shell or a job.

Needs root, and the packages slurmctld, slurmd, slurm-client, munge and iproute2. Written for Slurm 22.05 (Debian 12).
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["MARKER", "ClusterError", "SlurmCluster"]

#: Name of the environment variable by which the cluster's own daemons are known; its value is the state directory.
MARKER = "SLURM_TEST_CLUSTER_STATE"

TASK_PLUGINS = {
    "none": "task/none",
    "cgroup": "task/cgroup",
    "affinity": "task/affinity,task/cgroup",
}

# A node's CPUs. More than the machine has is fine (config_overrides), except with task/affinity.
DEFAULT_CPUS = 8
MAX_NODES = 200

TOOLS = (
    "ip",
    "mount",
    "munged",
    "nsenter",
    "scancel",
    "scontrol",
    "setsid",
    "sinfo",
    "slurmctld",
    "slurmd",
    "squeue",
    "srun",
    "unshare",
)
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"

# The daemons are in sbin, which is not on every root's PATH.
DAEMON_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1 hostname, $2 hosts file, $3 mount point of the node's own file system. The process id goes to stdout, which is
# closed by the last line: a reader who sees the end of the file knows that the node is ready, or that it failed.
NODE_ANCHOR = """
set -e
hostname "$1"
mount -n --bind "$2" /etc/hosts
mount -n -t tmpfs -o mode=1777,size=1g node-local "$3"
echo $$
exec sleep infinity </dev/null >/dev/null 2>&1
"""
SWITCH_ANCHOR = """
echo $$
exec sleep infinity </dev/null >/dev/null 2>&1
"""
# What a cluster needs to be allowed to do, tried in namespaces of its own.
PROBE = """
set -e
hostname probe
mount -n -t tmpfs probe /tmp
ip link add name probe0 type veth peer name probe1
ip link add name probe2 type bridge
"""


class ClusterError(RuntimeError):
    """The cluster could not be built, or not be taken down; the message says what was found."""


class SlurmCluster:
    """One Slurm cluster of network-namespace nodes on this machine.

    Parameters
    ----------
    instance
        Number of the cluster on this machine, 0 to 255. Several may be up side by side.
    nodes
        How many compute nodes.
    cpus
        CPUs per node, by default 8. With ``task_plugin="affinity"`` a node has exactly the machine's CPUs.
    memory_mib
        Memory per node in MiB; jobs that ask for none get their CPUs' share of it.
    task_plugin
        ``"none"``: no limits. ``"cgroup"``: memory limits are enforced. ``"affinity"``: so they are, and tasks are
        bound to CPUs.
    kill_wait
        Slurm's ``KillWait``: seconds between SIGTERM and SIGKILL at a time limit or ``scancel``.
    extra_conf
        Further lines for ``slurm.conf``.
    up_timeout
        Seconds within which all nodes must be idle.

    Attributes
    ----------
    state_dir : pathlib.Path
        Everything the cluster writes; readable for all users but for the secrets. Gone after ``down``.
    node_local : pathlib.Path
        A directory that is a different (tmpfs) file system on each node; world-writable, like ``/tmp``.
    node_names : tuple of str
        ``n1 n2 ...`` for instance 0, ``c7n1 c7n2 ...`` for instance 7.
    memory_enforced : bool
        Whether a job that uses more memory than it was granted is killed.
    log_paths : dict of str to pathlib.Path
        The log file of each daemon, by ``"munged"``, ``"slurmctld"`` and node name.
    """

    def __init__(
        self,
        instance: int = 0,
        nodes: int = 4,
        cpus: int | None = None,
        memory_mib: int = 4096,
        *,
        task_plugin: str = "cgroup",
        kill_wait: int = 30,
        extra_conf: str = "",
        up_timeout: float = 15.0,
    ) -> None:
        if not 0 <= instance <= 255:
            raise ValueError(f"instance must be 0 to 255, not {instance}")
        if not 1 <= nodes <= MAX_NODES:
            raise ValueError(f"nodes must be 1 to {MAX_NODES}, not {nodes}")
        if task_plugin not in TASK_PLUGINS:
            raise ValueError(f"task_plugin must be one of {', '.join(TASK_PLUGINS)}, not {task_plugin!r}")
        machine_cpus = os.cpu_count() or 1
        if task_plugin == "affinity":
            if cpus not in (None, machine_cpus):
                raise ValueError(f"with task/affinity a node has this machine's {machine_cpus} CPUs, not {cpus}")
            cpus = machine_cpus
        self.instance = instance
        self.cpus = DEFAULT_CPUS if cpus is None else cpus
        self.memory_mib = memory_mib
        self.task_plugin = task_plugin
        self.kill_wait = kill_wait
        self.extra_conf = extra_conf
        self.up_timeout = up_timeout

        self.node_prefix = "n" if instance == 0 else f"c{instance}n"
        self.node_names = tuple(f"{self.node_prefix}{i}" for i in range(1, nodes + 1))
        self.login_name = socket.gethostname().partition(".")[0]
        # 198.18.0.0/15 is set aside for tests of networks (RFC 2544): in use nowhere else.
        self.login_address = f"198.18.{instance}.254"
        self.node_addresses = {name: f"198.18.{instance}.{i}" for i, name in enumerate(self.node_names, 1)}
        self.link = f"slurm{instance}"
        # The controller listens on all of the host's addresses, so its port must be free of other instances and of a
        # Slurm that the host may have. (NoCtldInAddrAny would bind it to what the host's own name resolves to.)
        self.controller_port = 26817 + instance

        run = Path("/run")
        self.state_dir = (run if run.is_dir() else Path(tempfile.gettempdir())) / f"slurm-test-{instance}"
        self.node_local = self.state_dir / "node-local"
        self.conf_path = self.state_dir / "etc" / "slurm.conf"
        self._logs = self.state_dir / "log"
        self._munge = self.state_dir / "munge"
        self._secret = self.state_dir / "secret"
        self._ready = self.state_dir / "ready"
        self.log_paths = {
            "munged": self._logs / "munged.log",
            "slurmctld": self._logs / "slurmctld.log",
            **{name: self._logs / f"{name}.log" for name in self.node_names},
        }
        self._cgroups = _Cgroups()

    # ---------------------------------------------------------------------------------------------- what it is

    @property
    def memory_enforced(self) -> bool:
        """Whether Slurm kills a job that uses more memory than it was granted."""
        return self.task_plugin != "none" and self._cgroups.has_memory

    @property
    def is_up(self) -> bool:
        """Whether the cluster is built and its controller answers, whoever built it."""
        # First the quick signs: scontrol takes its time over a controller that is gone.
        cable = Path("/sys/class/net", self.link)
        if not (self._ready.exists() and cable.exists() and self._controller_listens()):
            return False
        return self._call("scontrol", "ping").returncode == 0

    def env(self) -> dict[str, str]:
        """Return the caller's environment, made to speak to this cluster only.

        Variables of Slurm (an allocation's, or defaults such as ``SBATCH_PARTITION``) that the caller has are left out.
        """
        foreign = ("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SCANCEL_", "SINFO_", "SQUEUE_")
        cleaned = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return {**cleaned, "SLURM_CONF": str(self.conf_path)}

    def unavailable_reason(self) -> str | None:
        """Say in one sentence why this machine cannot run such a cluster, or return None."""
        if not sys.platform.startswith("linux"):
            return f"a test Slurm needs Linux, not {sys.platform}"
        if os.geteuid() != 0:
            return "a test Slurm needs root (network namespaces, slurmd)"
        missing = [tool for tool in TOOLS if shutil.which(tool, path=DAEMON_PATH) is None]
        if missing:
            return f"not installed: {' '.join(missing)} (apt-get install --no-install-recommends {PACKAGES})"
        if self._node_pattern.fullmatch(self.login_name):
            return f"this host is called {self.login_name!r}, like a node of the test Slurm"
        tried = _run("unshare", "--net", "--uts", "--mount", "sh", "-c", PROBE)
        if tried.returncode:
            return f"no permission for namespaces, mounts, veth or bridges here: {_last_line(tried.stderr)}"
        return self._cgroups.unavailable_reason()

    # ---------------------------------------------------------------------------------------------- up and down

    def up(self) -> bool:
        """Build the cluster and wait until every node is idle.

        What a crashed earlier run of the same instance left behind is removed first.

        Returns
        -------
        bool
            True if the cluster was built, False if the very same one was up already.

        Raises
        ------
        ClusterError
            If the machine cannot, if the instance is up with other parameters, or if the nodes are not idle in time.
            The message ends with the last lines of the logs; nothing is left behind.
        """
        reason = self.unavailable_reason()
        if reason is not None:
            raise ClusterError(reason)
        with self._lock():
            if self.is_up:
                if self.conf_path.read_text() == self._slurm_conf():
                    return False
                raise ClusterError(f"instance {self.instance} is up with other parameters: take it down or use another")
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
            if self.is_up:
                # The polite half, for the sake of an srun that waits. No harm if it fails: what follows does not ask.
                with contextlib.suppress(ClusterError):
                    self.end_jobs(seconds=3)
            self._remove()

    def end_jobs(self, seconds: float = 10.0) -> None:
        """Kill all jobs by way of Slurm, so that every srun that waits for one ends too; wait for idle nodes.

        Raises
        ------
        ClusterError
            If the nodes are not idle in time.
        """
        jobs = self._call("squeue", "--noheader", "--format=%A").stdout.split()
        if jobs:
            self._call("scancel", "--full", "--signal=KILL", *jobs)
            self._call("scancel", *jobs)
        self._wait_idle(seconds)

    # ---------------------------------------------------------------------------------------------- building

    def _build(self) -> None:
        self._write_files()
        switch = self._anchor(["--net"], SWITCH_ANCHOR)
        namespaces = ["--net", "--uts", "--mount", "--propagation", "private"]
        anchors = {
            name: self._anchor(namespaces, NODE_ANCHOR, name, str(self._hosts), str(self.node_local))
            for name in self.node_names
        }
        self._connect(switch, anchors)

        munge = {
            "key-file": self._secret / "munge.key",
            "seed-file": self._secret / "munge.seed",
            "socket": self._munge / "socket",
            "pid-file": self._munge / "munged.pid",
            "log-file": self.log_paths["munged"],
        }
        # --force: munged dislikes to run as root and to log into a directory that is not its own user's.
        self._daemon("munged", "--force", *(f"--{key}={value}" for key, value in munge.items()))
        # -c: no state of an earlier cluster.
        self._daemon("slurmctld", "-c", "-f", str(self.conf_path))
        # A slurmd that finds nobody there tries again only a second later.
        _wait(self._controller_listens, self.up_timeout, lambda: "slurmctld does not listen")
        for name, pid in anchors.items():
            enter = ["nsenter", f"--target={pid}", "--net", "--uts", "--mount"]
            self._daemon(*enter, "slurmd", "-f", str(self.conf_path), "-N", name)

        self._wait_idle(self.up_timeout)
        self._ready.touch()

    def _write_files(self) -> None:
        # Other users read slurm.conf and reach munge's socket; slurmd hands them their batch scripts in the spool.
        for path in (self.state_dir, self.conf_path.parent, self._logs, self._munge, self.state_dir / "spool"):
            _mkdir(path, 0o755)
        for path in (self._secret, self.state_dir / "slurmctld"):
            _mkdir(path, 0o700)
        _mkdir(self.node_local, 0o1777)

        key = self._secret / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        names = {"localhost": "127.0.0.1", self.login_name: self.login_address, **self.node_addresses}
        _write(self._hosts, "".join(f"{address} {name}\n" for name, address in names.items()))
        _write(self.conf_path, self._slurm_conf())
        _write(self.conf_path.with_name("cgroup.conf"), self._cgroup_conf())

    def _slurm_conf(self) -> str:
        count = len(self.node_names)
        numbers = f"[1-{count}]" if count > 1 else "1"
        topology = f"CPUs={self.cpus}"
        if self.task_plugin == "affinity":
            # Binding needs the machine's real sockets, cores and threads; slurmd prints them in slurm.conf's words.
            found = _run("slurmd", "-C").stdout
            topology = " ".join(re.findall(r"\b(?:CPUs|Boards|\w+PerBoard|\w+PerSocket|\w+PerCore)=\d+", found))
        settings = {
            "ClusterName": f"test{self.instance}",
            "SlurmctldHost": f"{self.login_name}({self.login_address})",
            "SlurmctldPort": self.controller_port,
            "SlurmdPort": 6818,
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # cred_expire is also how long a requeued job must wait (by default 120 s).
            "AuthInfo": f"socket={self._munge / 'socket'},cred_expire=10",
            "StateSaveLocation": self.state_dir / "slurmctld",
            "SlurmdSpoolDir": self.state_dir / "spool" / "%n",
            "SlurmctldPidFile": self.state_dir / "slurmctld.pid",
            "SlurmdPidFile": self.state_dir / "spool" / "%n.pid",
            "SlurmctldLogFile": self.log_paths["slurmctld"],
            "SlurmdLogFile": self._logs / "%n.log",
            # Nodes are what slurm.conf says, whatever the machine has.
            "SlurmdParameters": "config_overrides",
            "ProctrackType": "proctrack/cgroup",
            "TaskPlugin": TASK_PLUGINS[self.task_plugin],
            "JobAcctGatherType": "jobacct_gather/cgroup",
            "JobAcctGatherFrequency": "task=0",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory" if self.task_plugin == "affinity" else "CR_CPU_Memory",
            "DefMemPerCPU": max(1, self.memory_mib // self.cpus),
            "PropagateResourceLimits": "NONE",
            "MpiDefault": "none",
            "MailProg": "/bin/true",
            "ReturnToService": 2,
            "JobRequeue": 1,
            "KillWait": self.kill_wait,
            # A loaded test machine is slow, not broken.
            "MessageTimeout": 30,
            # Backfill, so that a job which must wait does not block the ones behind it; and do not dawdle.
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
        }
        nodes = f"NodeName={self.node_prefix}{numbers} NodeAddr=198.18.{self.instance}.{numbers}"
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines.append(f"{nodes} {topology} RealMemory={self.memory_mib} State=UNKNOWN")
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        lines.extend(self.extra_conf.splitlines())
        return "\n".join(lines) + "\n"

    def _cgroup_conf(self) -> str:
        def yes(condition: bool) -> str:
            return "yes" if condition else "no"

        settings = {
            **self._cgroups.slurm_settings,
            "ConstrainRAMSpace": yes(self.memory_enforced),
            "ConstrainSwapSpace": yes(self.memory_enforced and self._cgroups.has_swap),
            "AllowedSwapSpace": 0,
            "ConstrainCores": yes(self.task_plugin == "affinity"),
            "ConstrainDevices": "no",
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _anchor(self, namespaces: Sequence[str], script: str, *arguments: str) -> int:
        """Start a process that holds new namespaces open, and return its process id once they are set up."""
        command = ["setsid", "--fork", "unshare", *namespaces, "sh", "-c", script, "anchor", *arguments]
        started = _run(*command, env=self._daemon_env())
        if not started.stdout.strip().isdigit():
            raise ClusterError(f"could not make a namespace: {_last_line(started.stderr)}")
        return int(started.stdout)

    def _connect(self, switch: int, anchors: dict[str, int]) -> None:
        """Lay the cables: the host and each node to the bridge in the switch."""
        taken = _run("ip", "-4", "route", "show", "root", f"198.18.{self.instance}.0/24").stdout
        if taken:
            raise ClusterError(f"the subnet of instance {self.instance} is in use: {taken.strip()}")
        _ip(
            None,
            f"link add name {self.link} type veth peer name login netns {switch}",
            f"address add {self.login_address}/24 dev {self.link}",
            f"link set {self.link} up",
        )
        ports = ["link add name bridge type bridge", "link set bridge up", "link set login master bridge up"]
        for name, pid in anchors.items():
            ports += [
                f"link add name {name} type veth peer name eth0 netns {pid}",
                f"link set {name} master bridge up",
            ]
        _ip(switch, *ports)
        for name, pid in anchors.items():
            _ip(
                pid,
                "link set lo up",
                f"address add {self.node_addresses[name]}/24 dev eth0",
                "link set eth0 up",
            )

    def _daemon(self, *command: str) -> None:
        """Run a command that puts itself into the background."""
        with (self._logs / "start.log").open("ab") as log:
            done = subprocess.run(
                command,
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

    def _daemon_env(self) -> dict[str, str]:
        # A clean environment: what the caller has must not reach the jobs by way of slurmd.
        return {"PATH": DAEMON_PATH, "LANG": "C.UTF-8", MARKER: str(self.state_dir)}

    # ---------------------------------------------------------------------------------------------- asking Slurm

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return _run(*command, env={**self.env(), "PATH": DAEMON_PATH})

    def _node_states(self) -> str:
        """Return one line per node, ``name state``, or sinfo's complaint."""
        answer = self._call("sinfo", "--noheader", "--Node", "--format=%N %T")
        return answer.stdout or answer.stderr

    def _controller_listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((self.login_address, self.controller_port), timeout=1).close()
            return True
        return False

    def _wait_idle(self, seconds: float) -> None:
        def all_idle() -> bool:
            # All nodes of the cluster that is up, which whoever takes it down may not know the shape of.
            states = [line.split()[1:] for line in self._node_states().splitlines()]
            return bool(states) and all(state == ["idle"] for state in states)

        _wait(all_idle, seconds, lambda: f"the nodes are not idle:\n{self._node_states()}")

    def _log_tails(self, lines: int = 15) -> str:
        tails = []
        for path in sorted(self._logs.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            tails += [f"--- {path.name}", *tail]
        return "\n".join(tails)

    # ---------------------------------------------------------------------------------------------- removing

    def _remove(self) -> None:
        """End the processes, then remove the link, the cgroups and the files, however much of a cluster is left."""
        nodes = self._node_pattern
        groups = self._cgroups
        _wait(lambda: not self._kill_all(), 20, lambda: f"processes do not end: {sorted(self._own_processes())}")
        if _run("ip", "link", "show", self.link).returncode == 0:
            _run("ip", "link", "delete", self.link)
        _wait(lambda: not groups.remove(nodes), 10, lambda: f"cgroups are in use: {groups.of(nodes)}")
        shutil.rmtree(self.state_dir, ignore_errors=True)
        if self.state_dir.exists():
            raise ClusterError(f"could not remove {self.state_dir}")

    def _kill_all(self) -> set[int]:
        """Send SIGKILL to every process of the cluster; return those that were still there."""
        # A suspended job is frozen, and a frozen process does not die.
        self._cgroups.thaw(self._node_pattern)
        found = self._own_processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def _own_processes(self) -> set[int]:
        """Find the daemons by their marker, and the rest by the namespace or the cgroup that they are in."""
        mark = f"{MARKER}={self.state_dir}".encode()
        namespace_of: dict[int, Path] = {}
        marked: set[int] = set()
        for process in Path("/proc").glob("[0-9]*"):
            pid = int(process.name)
            with contextlib.suppress(OSError):
                # A zombie has no namespaces any more: it drops out here.
                namespace_of[pid] = (process / "ns/net").readlink()
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    marked.add(pid)
        ours = {namespace_of[pid] for pid in marked} - {Path("/proc/self/ns/net").readlink()}
        inside = {pid for pid, namespace in namespace_of.items() if namespace in ours}
        return marked | inside | (self._cgroups.processes(self._node_pattern) & set(namespace_of))

    @property
    def _node_pattern(self) -> re.Pattern[str]:
        # Any number of nodes: an earlier cluster may have had more of them.
        return re.compile(re.escape(self.node_prefix) + r"\d+")

    @property
    def _hosts(self) -> Path:
        return self.conf_path.with_name("hosts")

    @contextlib.contextmanager
    def _lock(self, seconds: float = 120.0) -> Iterator[None]:
        """Let one process at a time build or remove this instance.

        The lock is the name of an abstract socket: no file to leave behind, and the kernel takes it back from the dead.
        """
        name = f"\0{self.state_dir}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:

            def taken() -> bool:
                try:
                    holder.bind(name)
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    return False
                return True

            _wait(taken, seconds, lambda: f"another process is building or removing instance {self.instance}")
            yield


class _Cgroups:
    """The machine's control groups, version 1 or 2, as far as Slurm and the clean-up need them."""

    def __init__(self) -> None:
        self.v1: dict[str, Path] = {}
        self.v2: Path | None = None
        mounts = Path("/proc/self/mountinfo")
        for line in mounts.read_text().splitlines() if mounts.exists() else []:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(maxsplit=2)
            mount_point = Path(left.split()[4])
            if kind == "cgroup":
                self.v1.update((option, mount_point) for option in options.split(","))
            elif kind == "cgroup2" and self.v2 is None:
                self.v2 = mount_point
        # A machine may have both; the one that holds the memory controller counts.
        self.is_v1 = "memory" in self.v1

    @property
    def has_memory(self) -> bool:
        return self.is_v1 or (self.v2 is not None and "memory" in self._v2_controllers())

    @property
    def has_swap(self) -> bool:
        """Whether swap can be limited too."""
        if self.is_v1:
            return (self.v1["memory"] / "memory.memsw.limit_in_bytes").exists()
        return self.has_memory

    @property
    def slurm_settings(self) -> dict[str, object]:
        if self.is_v1:
            return {"CgroupPlugin": "cgroup/v1", "CgroupMountpoint": self.v1["memory"].parent}
        # The scopes are made by hand: there may be no systemd, and a test cluster should not be one of its units.
        return {"CgroupPlugin": "cgroup/v2", "IgnoreSystemd": "yes", "EnableControllers": "yes"}

    def unavailable_reason(self) -> str | None:
        names = ("freezer", "memory", "cpuset", "cpuacct")
        for root in [self.v1.get(name) for name in names] if self.is_v1 else [self.v2]:
            if root is None:
                return f"no cgroup hierarchy is mounted for each of {', '.join(names)}"
            probe = root / f"slurm-test-probe-{os.getpid()}"
            try:
                probe.mkdir()
                probe.rmdir()
            except OSError as error:
                return f"the cgroups under {root} cannot be written: {error.strerror}"
        return None

    def of(self, nodes: re.Pattern[str]) -> list[Path]:
        """List the topmost cgroups of the slurmd whose node names match."""
        found = [
            path
            for root in sorted(set(self.v1.values()))
            for path in root.glob("slurm_*")
            if nodes.fullmatch(path.name.removeprefix("slurm_"))
        ]
        if self.v2 is not None:
            found += [
                path
                for path in self.v2.glob("system.slice/*_slurmstepd.scope")
                if nodes.fullmatch(path.name.removesuffix("_slurmstepd.scope"))
            ]
        return found

    def processes(self, nodes: re.Pattern[str]) -> set[int]:
        pids: set[int] = set()
        for top in self.of(nodes):
            for path in top.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    pids.update(map(int, path.read_text().split()))
        # 0 stands for a process outside our PID namespace: not ours to end.
        return pids - {0}

    def thaw(self, nodes: re.Pattern[str]) -> None:
        for top in self.of(nodes):
            for name, state in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                for path in top.rglob(name):
                    with contextlib.suppress(OSError):
                        path.write_text(state)

    def remove(self, nodes: re.Pattern[str]) -> list[Path]:
        """Remove the cgroups; return those that are still there."""
        for top in self.of(nodes):
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        return self.of(nodes)

    def _v2_controllers(self) -> list[str]:
        assert self.v2 is not None
        return (self.v2 / "cgroup.controllers").read_text().split()


def _run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a short command; one that is missing or hangs fails like any other, with a shell's exit codes for that."""
    environment = {**os.environ, "PATH": DAEMON_PATH} if env is None else env
    try:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 124, "", str(error))


def _ip(namespace_of: int | None, *commands: str) -> None:
    """Run ``ip`` commands in one go, on the host or in the network namespace of a process."""
    enter = [] if namespace_of is None else ["nsenter", f"--target={namespace_of}", "--net"]
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"],
        env={**os.environ, "PATH": DAEMON_PATH},
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"ip failed: {done.stderr.strip()}")


def _wait(condition: Callable[[], bool], seconds: float, message: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"after {seconds:g} s {message()}")
        time.sleep(0.03)


def _mkdir(path: Path, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)  # mkdir's own mode is subject to the caller's umask


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "(no message)"
