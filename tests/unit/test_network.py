"""The address under which the other nodes reach this one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import psutil
import pytest

from batchlet.errors import NetworkError
from batchlet.network import LOOPBACK, in_url, reachable_host

# But for those of test clusters, which come and go.
IPV4 = {
    name: [entry.address for entry in entries if entry.family == socket.AF_INET]
    for name, entries in psutil.net_if_addrs().items()
    if not name.startswith("slurm")
}
OUTSIDE = [address for addresses in IPV4.values() for address in addresses if not address.startswith("127.")]
needs_network = pytest.mark.skipif(not OUTSIDE, reason="this machine has no network but the loopback")


def test_a_run_on_one_node_stays_on_the_loopback():
    assert reachable_host(socket.gethostname(), 1, None) == LOOPBACK == "127.0.0.1"


@pytest.mark.parametrize("name", [name for name, addresses in IPV4.items() if addresses])
@pytest.mark.parametrize("nodes", [1, 2])
def test_an_interface_that_was_named_is_used_and_nothing_else(name, nodes):
    assert reachable_host("n1", nodes, name) == IPV4[name][0]


@pytest.mark.parametrize("name", ["ib99", "", "lo:no"])
def test_an_interface_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(NetworkError) as caught:
        reachable_host("n1", 2, name)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    assert f'interface="{name}" does not exist on node n1' in message
    for known, addresses in IPV4.items():
        if addresses:
            assert f"{known} ({addresses[0]})" in message


@needs_network
@pytest.mark.parametrize("node", [socket.gethostname(), "localhost", "no-such-node.invalid"])
def test_a_run_on_several_nodes_uses_an_address_of_this_node_that_others_can_reach(node):
    assert reachable_host(node, 2, None) in OUTSIDE


@needs_network
def test_the_address_that_was_chosen_can_be_listened_on():
    address = (reachable_host(socket.gethostname(), 2, None), 0)
    with (
        socket.create_server(address) as server,
        socket.create_connection(server.getsockname(), timeout=5) as connection,
    ):
        assert connection.getpeername() == server.getsockname()


def without_network(nodes: int, interface: str | None, setup: str = "", node: str = "n1") -> tuple[int, str]:
    """What happens on a node that has no network but what `setup` makes: exit code and message."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a network namespace of one's own needs root and unshare")
    if setup and shutil.which("ip") is None:
        pytest.skip("a network interface of one's own needs ip")
    code = f"""
from batchlet.errors import BatchletError
from batchlet.network import reachable_host
try:
    print(reachable_host({node!r}, {nodes}, {interface!r}))
except BatchletError as error:
    print(error)
    raise
"""
    command = ["unshare", "--net", "--mount", "sh", "-e", "-c", f'{setup}\nexec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def interface(name: str, *addresses: str) -> str:
    """Shell lines that make a network interface with these addresses; IPv6 gives it a link-local one by itself."""
    lines = [f"ip link add {name} type veth peer name {name}p", f"ip link set {name}p up", f"ip link set {name} up"]
    lines += [f"ip addr add {address} dev {name} {'nodad' if ':' in address else ''}" for address in addresses]
    return "\n".join(lines)


@pytest.mark.parametrize("address", ["fd00:77::1", "2001:db8:77::1"], ids=["unique-local", "global"])
@pytest.mark.parametrize("named", ["ib0", None])
def test_a_node_with_ipv6_alone_is_reached_by_that(address, named):
    assert without_network(2, named, interface("ib0", f"{address}/64")) == (0, f"{address}\n")


@pytest.mark.parametrize("named", ["ib0", None])
def test_an_address_of_ipv4_comes_first_where_there_are_both(named):
    both = interface("ib0", "fd00:77::1/64", "10.77.0.1/24")
    assert without_network(2, named, both) == (0, "10.77.0.1\n")


def test_an_interface_that_was_named_is_used_though_another_one_has_ipv4():
    setup = interface("eth9", "10.77.0.1/24") + "\n" + interface("ib0", "fd00:77::1/64")
    assert without_network(2, "ib0", setup) == (0, "fd00:77::1\n")
    assert without_network(2, None, setup) == (0, "10.77.0.1\n")


def test_the_nodes_own_name_decides_among_addresses_of_ipv6(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("fd00:88::1 n7\n")
    setup = interface("ib0", "fd00:77::1/64") + "\n" + interface("ib1", "fd00:88::1/64")
    setup += f"\nmount --bind {hosts} /etc/hosts"
    assert without_network(2, None, setup, node="n7") == (0, "fd00:88::1\n")
    assert without_network(2, None, setup, node="n8") == (0, "fd00:77::1\n")


def test_a_link_local_address_is_none():
    code, message = without_network(2, "ib0", interface("ib0"))
    assert code == 2
    assert 'interface="ib0" has no IPv4 address, and none of IPv6 that is more than link-local, on node n1.' in message
    code, message = without_network(2, None, interface("ib0"))
    assert code == 2
    assert "Node n1 has no network address but the loopback, and the run has 2 nodes" in message


def test_a_run_on_one_node_stays_on_the_loopback_of_ipv4():
    assert without_network(1, None, interface("ib0", "fd00:77::1/64")) == (0, "127.0.0.1\n")


def test_an_address_of_ipv6_has_brackets_where_a_port_follows():
    assert [in_url(host) for host in ("fd00::1", "10.0.0.1", "n1")] == ["[fd00::1]", "10.0.0.1", "n1"]


def test_a_node_without_any_network_is_told_what_to_set():
    code, message = without_network(2, None)
    assert code == 2
    assert "Node n1 has no network address but the loopback, and the run has 2 nodes" in message
    assert "BATCHLET_DASK_CLUSTER__INTERFACE" in message


def test_an_interface_without_an_address_is_told_apart_from_one_that_does_not_exist():
    code, message = without_network(2, "lo")
    assert code == 2
    assert 'interface="lo" has no IPv4 address on node n1. Choose one of: (none is up).' in message


def test_a_run_on_one_node_needs_no_network():
    assert without_network(1, None) == (0, "127.0.0.1\n")
