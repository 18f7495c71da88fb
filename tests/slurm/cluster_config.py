"""The configuration files of the test cluster."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cluster_commands import run

if TYPE_CHECKING:
    from cluster_slurm import SlurmCluster

TASK_PLUGINS = {
    "none": "task/none",
    "cgroup": "task/cgroup",
    "affinity": "task/affinity,task/cgroup",
}


def slurm_conf(cluster: SlurmCluster) -> str:
    """Write slurm.conf."""
    count = len(cluster.node_names)
    numbers = f"[1-{count}]" if count > 1 else "1"
    topology = f"CPUs={cluster.cpus}"
    if cluster.task_plugin == "affinity":
        # Binding needs the machine's real sockets, cores and threads; slurmd prints them in slurm.conf's words.
        found = run("slurmd", "-C").stdout
        topology = " ".join(re.findall(r"\b(?:CPUs|Boards|\w+PerBoard|\w+PerSocket|\w+PerCore)=\d+", found))
    settings = {
        "ClusterName": f"test{cluster.instance}",
        "SlurmctldHost": f"{cluster.login_name}({cluster.login_address})",
        "SlurmctldPort": cluster.controller_port,
        "SlurmdPort": 6818,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # cred_expire is also how long a requeued job must wait (by default 120 s).
        "AuthInfo": f"socket={cluster.munge_dir / 'socket'},cred_expire=10",
        "StateSaveLocation": cluster.state_dir / "slurmctld",
        "SlurmdSpoolDir": cluster.state_dir / "spool" / "%n",
        "SlurmctldPidFile": cluster.state_dir / "slurmctld.pid",
        "SlurmdPidFile": cluster.state_dir / "spool" / "%n.pid",
        "SlurmctldLogFile": cluster.log_paths["slurmctld"],
        "SlurmdLogFile": cluster.log_dir / "%n.log",
        # Nodes are what slurm.conf says, whatever the machine has.
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/cgroup",
        "TaskPlugin": TASK_PLUGINS[cluster.task_plugin],
        "JobAcctGatherType": "jobacct_gather/cgroup",
        "JobAcctGatherFrequency": "task=0",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory" if cluster.task_plugin == "affinity" else "CR_CPU_Memory",
        "DefMemPerCPU": max(1, cluster.memory_mib // cluster.cpus),
        "PropagateResourceLimits": "NONE",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "ReturnToService": 2,
        "JobRequeue": 1,
        "KillWait": cluster.kill_wait,
        # A job in partition "high" takes the nodes of those in "low", which are requeued, and in "cheap", cancelled.
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        # A loaded test machine is slow, not broken.
        "MessageTimeout": 30,
        # Backfill, so that a job which must wait does not block the ones behind it; and do not dawdle.
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
    }
    if cluster.gpus:
        settings["GresTypes"] = "gpu"
    lines = [f"{key}={value}" for key, value in settings.items()]
    rest = f"{topology} RealMemory={cluster.memory_mib} State=UNKNOWN"
    if cluster.gpus:
        # Each node has GPUs of its own.
        for number, (name, gpus) in enumerate(zip(cluster.node_names, cluster.gpus, strict=True), 1):
            kind, count, _ = gpus.split(":")
            gres = f"Gres=gpu:{kind}:{count} " if int(count) else ""
            lines.append(f"NodeName={name} NodeAddr=198.18.{cluster.instance}.{number} {gres}{rest}")
    else:
        lines.append(f"NodeName={cluster.node_prefix}{numbers} NodeAddr=198.18.{cluster.instance}.{numbers} {rest}")
    lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF")
    lines.append("PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PreemptMode=REQUEUE")
    lines.append("PartitionName=cheap Nodes=ALL MaxTime=INFINITE State=UP PreemptMode=CANCEL")
    lines.append("PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PreemptMode=OFF PriorityTier=10")
    lines.extend(cluster.extra_conf.splitlines())
    return "\n".join(lines) + "\n"


def gres_conf(cluster: SlurmCluster) -> str:
    """Write gres.conf: GPUs that are device files made for the purpose, which nothing drives."""
    lines = ["AutoDetect=off"]
    for name, gpus in zip(cluster.node_names, cluster.gpus, strict=True):
        kind, count, flags = gpus.split(":")
        if int(count):
            files = f"{cluster.devices}/{kind}-[0-{int(count) - 1}]"
            lines.append(f"NodeName={name} Name=gpu Type={kind} File={files}" + (f" Flags={flags}" if flags else ""))
    return "\n".join(lines) + "\n"


def cgroup_conf(cluster: SlurmCluster) -> str:
    """Write cgroup.conf."""

    def yes(condition: bool) -> str:
        return "yes" if condition else "no"

    settings = {
        **cluster.cgroups.slurm_settings,
        "ConstrainRAMSpace": yes(cluster.memory_enforced),
        "ConstrainSwapSpace": yes(cluster.memory_enforced and cluster.cgroups.has_swap),
        "AllowedSwapSpace": 0,
        "ConstrainCores": yes(cluster.task_plugin == "affinity"),
        "ConstrainDevices": yes(cluster.devices_constrained),
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())
