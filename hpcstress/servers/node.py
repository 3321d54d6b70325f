"""This node of a cluster: by which address the other nodes reach it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import ip_address

from hpcstress.errors import Refusal

# The network that the ranks were told to take, by MPICH's variable.
_NETWORK = "FI_TCP_IFACE"


def address(environment: Mapping[str, str]) -> str:
    """Return the IPv4 address of this node that others reach; refuse where there is none.

    It is that of the network which the ranks were told to take, else the one that the node's name leads to, else the
    first one of a network that is up.
    """
    networks = _networks()
    if (wanted := environment.get(_NETWORK)) and wanted not in networks:
        # Another network may be open to more people than the ranks.
        raise Refusal(
            f"{_NETWORK} names the network {wanted}, which is not up on this node: take one of {', '.join(networks)}."
        )
    known = [one for own in networks.values() for one in own]
    for one in (*networks.get(wanted or "", []), *(one for one in _of_name() if one in known), *known):
        if not ip_address(one).is_loopback:
            return one
    raise Refusal(
        "This node has no address that the others could reach a server at: start it on another machine, "
        "and give its address with --uri."
    )


def _networks() -> dict[str, list[str]]:
    """Return the IPv4 addresses of every network that is up."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: [one.address for one in own if one.family == socket.AF_INET]
        for name, own in psutil.net_if_addrs().items()
        if name in up
    }


def _of_name() -> list[str]:
    try:
        return socket.gethostbyname_ex(socket.gethostname())[2]
    except OSError:
        return []
