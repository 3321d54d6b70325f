"""By which address other nodes reach this one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from hpcstress.errors import Refusal
from hpcstress.servers import node

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Be a machine of these networks, whose name leads to these addresses; a network in `down` is not up."""

    def be(networks: dict[str, list[str]], name: list[str], down: str = "") -> None:
        shown = {
            network: [
                SimpleNamespace(family=socket.AF_INET6, address="fe80::1%eth0"),
                *(SimpleNamespace(family=socket.AF_INET, address=one) for one in own),
            ]
            for network, own in networks.items()
        }
        monkeypatch.setattr(psutil, "net_if_addrs", lambda: shown)
        up = {network: SimpleNamespace(isup=network != down) for network in networks}
        monkeypatch.setattr(psutil, "net_if_stats", lambda: up)
        monkeypatch.setattr(socket, "gethostbyname_ex", lambda _: ("node", [], name))

    return be


NETWORKS = {"lo": ["127.0.0.1"], "eth0": ["10.1.0.7"], "ib0": ["10.2.0.7"]}


def test_it_is_in_the_network_of_the_ranks(machine: Machine) -> None:
    machine(NETWORKS, ["10.1.0.7"])
    assert node.address({"FI_TCP_IFACE": "ib0"}) == "10.2.0.7"


@pytest.mark.parametrize("told", [{}, {"FI_TCP_IFACE": "lo"}])
def test_else_the_nodes_name_leads_to_it(machine: Machine, told: dict[str, str]) -> None:
    machine(NETWORKS, ["10.2.0.7"])
    assert node.address(told) == "10.2.0.7"


@pytest.mark.parametrize("down", ["", "ib0"])
def test_a_network_that_the_ranks_were_told_to_take_and_that_is_not_there_is_refused(
    machine: Machine, down: str
) -> None:
    machine({"lo": ["127.0.0.1"], "eth0": ["10.1.0.7"]} if not down else NETWORKS, ["10.1.0.7"], down=down)
    with pytest.raises(Refusal, match="names the network ib0, which is not up on this node: take one of lo, eth0"):
        node.address({"FI_TCP_IFACE": "ib0"})


@pytest.mark.parametrize("name", [["127.0.1.1"], ["192.0.2.1"], []])
def test_a_name_that_leads_nowhere_does_not_matter(machine: Machine, name: list[str]) -> None:
    machine(NETWORKS, name)
    assert node.address({}) == "10.1.0.7"


def test_what_is_down_is_not_there(machine: Machine) -> None:
    machine(NETWORKS, [], down="eth0")
    assert node.address({}) == "10.2.0.7"


def test_a_node_that_nobody_reaches_is_refused(machine: Machine) -> None:
    machine({"lo": ["127.0.0.1"]}, ["127.0.1.1"])
    with pytest.raises(Refusal, match="has no address that the others could reach a server at"):
        node.address({})
