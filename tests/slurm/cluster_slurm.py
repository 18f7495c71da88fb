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
Standard library only. What it is made of: cluster_config, cluster_network, cluster_cgroups, cluster_processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster_cgroups import Cgroups
from cluster_commands import DAEMON_PATH, ClusterError, last_line, make_directory, run, wait, write
from cluster_config import TASK_PLUGINS, cgroup_conf, gres_conf, slurm_conf
from cluster_network import NODE_ANCHOR, PROBE, SWITCH_ANCHOR, anchor, connect
from cluster_processes import MARKER, locked, processes_of

__all__ = ["MARKER", "ClusterError", "SlurmCluster"]

# A node's CPUs. More than the machine has is fine (config_overrides), except with task/affinity.
DEFAULT_CPUS = 8
MAX_NODES = 200

TOOLS = (
    "ip", "mount", "munged", "nsenter", "scancel", "scontrol", "setsid", "sinfo", "slurmctld", "slurmd", "squeue", "srun",
    "unshare",
)  # fmt: skip
PACKAGES = "slurmctld slurmd slurm-client munge iproute2"


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
    gpus
        The GPUs of each node, as ``"kind:count:flags"``, the flags those of ``gres.conf``: which variables Slurm sets; without
        any it sets all that it knows. Nobody has GPUs by default.
    devices_constrained
        ``ConstrainDevices``: a task can open its own GPUs only, and their numbers begin at 0 for each.
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
        gpus: Sequence[str] = (),
        devices_constrained: bool = False,
        extra_conf: str = "",
        up_timeout: float = 15.0,
    ) -> None:
        if not 0 <= instance <= 255:
            raise ValueError(f"instance must be 0 to 255, not {instance}")
        if not 1 <= nodes <= MAX_NODES:
            raise ValueError(f"nodes must be 1 to {MAX_NODES}, not {nodes}")
        if task_plugin not in TASK_PLUGINS:
            raise ValueError(f"task_plugin must be one of {', '.join(TASK_PLUGINS)}, not {task_plugin!r}")
        if gpus and (len(gpus) != nodes or not all(re.fullmatch(r"\w+:\d:[\w,]*", each) for each in gpus)):
            raise ValueError(
                f"gpus must name those of each of the {nodes} nodes, such as a100:4:, not {' '.join(gpus)}"
            )
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
        self.gpus = tuple(gpus)
        self.devices_constrained = devices_constrained
        self.extra_conf = extra_conf
        self.up_timeout = up_timeout

        self.node_prefix = "n" if instance == 0 else f"c{instance}n"
        self.node_names = tuple(f"{self.node_prefix}{i}" for i in range(1, nodes + 1))
        self.login_name = socket.gethostname().partition(".")[0]
        # 198.18.0.0/15 is set aside for tests of networks (RFC 2544): in use nowhere else.
        self.subnet = f"198.18.{instance}"
        self.login_address = f"{self.subnet}.254"
        self.node_addresses = {name: f"{self.subnet}.{i}" for i, name in enumerate(self.node_names, 1)}
        self.link = f"slurm{instance}"
        # The controller listens on all of the host's addresses, so its port must be free of other instances and of a
        # Slurm that the host may have. (NoCtldInAddrAny would bind it to what the host's own name resolves to.)
        self.controller_port = 26817 + instance

        volatile = Path("/run")
        self.state_dir = (volatile if volatile.is_dir() else Path(tempfile.gettempdir())) / f"slurm-test-{instance}"
        self.node_local = self.state_dir / "node-local"
        self.conf_path = self.state_dir / "etc" / "slurm.conf"
        self.log_dir = self.state_dir / "log"
        self.munge_dir = self.state_dir / "munge"
        self.devices = self.state_dir / "devices"
        self._secret = self.state_dir / "secret"
        self._ready = self.state_dir / "ready"
        self.log_paths = {
            "munged": self.log_dir / "munged.log",
            "slurmctld": self.log_dir / "slurmctld.log",
            **{name: self.log_dir / f"{name}.log" for name in self.node_names},
        }
        self.cgroups = Cgroups()

    # ---------------------------------------------------------------------------------------------- what it is

    @property
    def memory_enforced(self) -> bool:
        """Whether Slurm kills a job that uses more memory than it was granted."""
        return self.task_plugin != "none" and self.cgroups.has_memory

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
        tried = run("unshare", "--net", "--uts", "--mount", "sh", "-c", PROBE)
        if tried.returncode:
            return f"no permission for namespaces, mounts, veth or bridges here: {last_line(tried.stderr)}"
        return self.cgroups.unavailable_reason()

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
                if self.conf_path.read_text() == slurm_conf(self):
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
        switch = anchor(self._daemon_env(), ["--net"], SWITCH_ANCHOR)
        namespaces = ["--net", "--uts", "--mount", "--propagation", "private"]
        anchors = {
            name: anchor(self._daemon_env(), namespaces, NODE_ANCHOR, name, str(self._hosts), str(self.node_local))
            for name in self.node_names
        }
        connect(self, switch, anchors)

        munge = {
            "key-file": self._secret / "munge.key",
            "seed-file": self._secret / "munge.seed",
            "socket": self.munge_dir / "socket",
            "pid-file": self.munge_dir / "munged.pid",
            "log-file": self.log_paths["munged"],
        }
        # --force: munged dislikes to run as root and to log into a directory that is not its own user's.
        self._daemon("munged", "--force", *(f"--{key}={value}" for key, value in munge.items()))
        # -c: no state of an earlier cluster.
        self._daemon("slurmctld", "-c", "-f", str(self.conf_path))
        # A slurmd that finds nobody there tries again only a second later.
        wait(self._controller_listens, self.up_timeout, lambda: "slurmctld does not listen")
        for name, pid in anchors.items():
            enter = ["nsenter", f"--target={pid}", "--net", "--uts", "--mount"]
            self._daemon(*enter, "slurmd", "-f", str(self.conf_path), "-N", name)

        self._wait_idle(self.up_timeout)
        self._ready.touch()

    def _write_files(self) -> None:
        # Other users read slurm.conf and reach munge's socket; slurmd hands them their batch scripts in the spool.
        for path in (self.state_dir, self.conf_path.parent, self.log_dir, self.munge_dir, self.state_dir / "spool"):
            make_directory(path, 0o755)
        for path in (self._secret, self.state_dir / "slurmctld"):
            make_directory(path, 0o700)
        make_directory(self.node_local, 0o1777)

        key = self._secret / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        names = {"localhost": "127.0.0.1", self.login_name: self.login_address, **self.node_addresses}
        write(self._hosts, "".join(f"{address} {name}\n" for name, address in names.items()))
        write(self.conf_path, slurm_conf(self))
        write(self.conf_path.with_name("cgroup.conf"), cgroup_conf(self))
        if self.gpus:
            write(self.conf_path.with_name("gres.conf"), gres_conf(self))
            make_directory(self.devices, 0o755)
            for kind, count in {(gpus.split(":")[0], int(gpus.split(":")[1])) for gpus in self.gpus}:
                for number in range(count):
                    device = self.devices / f"{kind}-{number}"
                    if not device.exists():
                        # NVIDIA's major number: nothing else is forbidden with them.
                        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(195, number))

    def _daemon(self, *command: str) -> None:
        """Run a command that puts itself into the background."""
        with (self.log_dir / "start.log").open("ab") as log:
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
        return run(*command, env={**self.env(), "PATH": DAEMON_PATH})

    def _node_states(self) -> str:
        """Return one line per node, ``name state``, or sinfo's complaint."""
        answer = self._call("sinfo", "--partition=main", "--noheader", "--Node", "--format=%N %T")
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

        wait(all_idle, seconds, lambda: f"the nodes are not idle:\n{self._node_states()}")

    def _log_tails(self, lines: int = 15) -> str:
        tails = []
        for path in sorted(self.log_dir.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            tails += [f"--- {path.name}", *tail]
        return "\n".join(tails)

    # ---------------------------------------------------------------------------------------------- removing

    def _remove(self) -> None:
        """End the processes, then remove the link, the cgroups and the files, however much of a cluster is left."""
        nodes = self._node_pattern
        groups = self.cgroups
        wait(lambda: not self._kill_all(), 20, lambda: f"processes do not end: {sorted(self._own_processes())}")
        if run("ip", "link", "show", self.link).returncode == 0:
            run("ip", "link", "delete", self.link)
        wait(lambda: not groups.remove(nodes), 10, lambda: f"cgroups are in use: {groups.of(nodes)}")
        shutil.rmtree(self.state_dir, ignore_errors=True)
        if self.state_dir.exists():
            raise ClusterError(f"could not remove {self.state_dir}")

    def _kill_all(self) -> set[int]:
        """Send SIGKILL to every process of the cluster; return those that were still there."""
        # A suspended job is frozen, and a frozen process does not die.
        self.cgroups.thaw(self._node_pattern)
        found = self._own_processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def _own_processes(self) -> set[int]:
        return processes_of(str(self.state_dir)) | self.cgroups.processes(self._node_pattern)

    @property
    def _node_pattern(self) -> re.Pattern[str]:
        # Any number of nodes: an earlier cluster may have had more of them.
        return re.compile(re.escape(self.node_prefix) + r"\d+")

    @property
    def _hosts(self) -> Path:
        return self.conf_path.with_name("hosts")

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Let one process at a time build or remove this instance."""
        doing = f"another process is building or removing instance {self.instance}"
        return locked(str(self.state_dir), 120, doing)
