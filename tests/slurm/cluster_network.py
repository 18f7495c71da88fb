"""The nodes of the test cluster as namespaces, and the network between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from cluster_commands import ClusterError, ip, last_line, run

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


class Cables(Protocol):
    """What is to be connected; a `SlurmCluster`, or another test cluster.

    ``subnet`` is the first three numbers of all addresses; ``link`` is the host's end of its cable, empty for a host that is
    not connected.
    """

    instance: int
    subnet: str
    link: str
    login_address: str
    node_addresses: dict[str, str]


def anchor(environ: dict[str, str], namespaces: Sequence[str], script: str, *arguments: str) -> int:
    """Start a process that holds new namespaces open, and return its process id once they are set up."""
    command = ["setsid", "--fork", "unshare", *namespaces, "sh", "-c", script, "anchor", *arguments]
    started = run(*command, env=environ)
    if not started.stdout.strip().isdigit():
        raise ClusterError(f"could not make a namespace: {last_line(started.stderr)}")
    return int(started.stdout)


def connect(cables: Cables, switch: int, anchors: Mapping[str, int]) -> None:
    """Lay the cables: the host and each node to the bridge in the switch."""
    ports = ["link add name bridge type bridge", "link set bridge up"]
    if cables.link:
        taken = run("ip", "-4", "route", "show", "root", f"{cables.subnet}.0/24").stdout
        if taken:
            raise ClusterError(f"the subnet of instance {cables.instance} is in use: {taken.strip()}")
        ip(
            None,
            f"link add name {cables.link} type veth peer name login netns {switch}",
            f"address add {cables.login_address}/24 dev {cables.link}",
            f"link set {cables.link} up",
        )
        ports.append("link set login master bridge up")
    for name, pid in anchors.items():
        ports += [
            f"link add name {name} type veth peer name eth0 netns {pid}",
            f"link set {name} master bridge up",
        ]
    ip(switch, *ports)
    for name, pid in anchors.items():
        ip(
            pid,
            "link set lo up",
            f"address add {cables.node_addresses[name]}/24 dev eth0",
            "link set eth0 up",
        )
