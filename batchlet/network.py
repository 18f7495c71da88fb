"""The address under which this process can be reached by the other nodes of its run."""

from __future__ import annotations

import socket

from .errors import NetworkError

__all__ = ["LOOPBACK", "reachable_host"]

LOOPBACK = "127.0.0.1"


def reachable_host(node: str, nodes: int, interface: str | None) -> str:
    """Choose this node's address.

    The interface that the user named; else what the node's own name resolves to, since that is how the site wants its
    nodes to be called; else the first interface that is up. Never the route to some address on the internet: compute
    nodes often have none. A run on a single node stays on the loopback.

    Parameters
    ----------
    node : str
        The node's name.
    nodes : int
        Number of nodes of the run.
    interface : str, optional
        Name of a network interface.

    Raises
    ------
    NetworkError
        If there is no such interface, or no address.
    """
    import psutil

    addresses: dict[str, list[str]] = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    if interface is not None:
        if addresses.get(interface):
            return addresses[interface][0]
        found = "has no IPv4 address" if interface in addresses else "does not exist"
        usable = ", ".join(f"{name} ({own[0]})" for name, own in addresses.items() if own)
        raise NetworkError(
            f'interface="{interface}" {found} on node {node}. Choose one of: {usable or "(none is up)"}.'
        )
    if nodes == 1:
        return LOOPBACK
    own = [address for entries in addresses.values() for address in entries if not address.startswith("127.")]
    for name in (node, socket.gethostname()):
        try:
            resolved = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            continue
        # A name may resolve to the loopback (Debian's 127.0.1.1) or to an address that is not this host's own.
        for *_, (address, *_) in resolved:
            if address in own:
                return str(address)
    if own:
        return own[0]
    raise NetworkError(
        f"Node {node} has no network address but the loopback, and the run has {nodes} nodes: "
        "name the network interface with interface= (BATCHLET_DASK_CLUSTER__INTERFACE)."
    )
