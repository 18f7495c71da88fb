"""The address under which this process can be reached by the other nodes of its run."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from .errors import NetworkError

__all__ = ["LOOPBACK", "in_url", "reachable_host"]

LOOPBACK = "127.0.0.1"


def in_url(host: str) -> str:
    """Write an address as URLs have it, and Dask's own addresses and options: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def reachable_host(node: str, nodes: int, interface: str | None) -> str:
    """Choose this node's address.

    The interface that the user named; else what the node's own name resolves to, since that is how the site wants its
    nodes to be called; else the first interface that is up. Never the route to some address on the internet: compute
    nodes often have none. A run on a single node stays on the loopback.

    Of the same interface or name an IPv4 address comes before a global or unique-local one of IPv6. Link-local ones of IPv6
    are never used: they mean nothing without the name of an interface, which differs from node to node.

    Parameters
    ----------
    node : str
        The node's name.
    nodes : int
        Number of nodes of the run.
    interface : str, optional
        Name of a network interface.

    Returns
    -------
    str
        The address, of IPv6 without brackets (see `in_url`).

    Raises
    ------
    NetworkError
        If there is no such interface, or no address.
    """
    import psutil

    every = psutil.net_if_addrs()
    addresses = {name: _usable(entries) for name, entries in every.items()}
    if interface is not None:
        if addresses.get(interface):
            return addresses[interface][0]
        if interface not in addresses:
            found = "does not exist"
        elif any(entry.family == socket.AF_INET6 for entry in every[interface]):
            found = "has no IPv4 address, and none of IPv6 that is more than link-local,"
        else:
            found = "has no IPv4 address"
        usable = ", ".join(f"{name} ({own[0]})" for name, own in addresses.items() if own)
        raise NetworkError(
            f'interface="{interface}" {found} on node {node}. Choose one of: {usable or "(none is up)"}.'
        )
    if nodes == 1:
        return LOOPBACK
    own = [
        address
        for entries in addresses.values()
        for address in entries
        if not ipaddress.ip_address(address).is_loopback
    ]
    for name in (node, socket.gethostname()):
        for family in (socket.AF_INET, socket.AF_INET6):
            # A name may resolve to the loopback (Debian's 127.0.1.1) or to an address that is not this host's own.
            for address in _resolved(name, family):
                if address in own:
                    return address
    if own:
        return min(own, key=_is_ipv6)
    raise NetworkError(
        f"Node {node} has no network address but the loopback, and the run has {nodes} nodes: "
        "name the network interface with interface= (BATCHLET_DASK_CLUSTER__INTERFACE)."
    )


def _usable(entries: Iterable[Any]) -> list[str]:
    """Give the addresses of an interface that can be told to other nodes, those of IPv4 first."""
    found = [entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)]
    return sorted((address for address in found if not _is_link_local(address)), key=_is_ipv6)


def _is_ipv6(address: str) -> bool:
    return ":" in address


def _is_link_local(address: str) -> bool:
    # The system adds a zone to such an address, the interface: "%eth0".
    return _is_ipv6(address) and ipaddress.ip_address(address.partition("%")[0]).is_link_local


def _resolved(name: str, family: socket.AddressFamily) -> list[str]:
    try:
        return [str(place[0]) for *_, place in socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)]
    except OSError:
        return []
