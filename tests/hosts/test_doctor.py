"""The doctor on four hosts, of which one has no way to the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.network import HOSTS, Network, address
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# In a network of its own, to which hosts need a way: ranks go on to hear each other without one.
PLACE = "10.211.8.2"


def test_a_host_without_a_way_to_the_server_is_named_and_the_others_are_well(
    network: Network, cluster: Cluster, tmp_path: Path
) -> None:
    ways = f"{PLACE} via {address('h2')}"
    network.call("h2", f"ip address add {PLACE}/32 dev lo")
    for name in ("h1", "h4"):
        network.call(name, f"ip route add {ways}")
    try:
        with network.serving("h2", "--host", PLACE) as server:
            words = ["--mpi=pmi2", "-N4", "-n8", "--ntasks-per-node=2", "--", "-m", "hpcstress", "doctor"]
            code, told, complaints = cluster.srun(*words, cwd=tmp_path, **server)
    finally:
        network.call("h2", f"ip address del {PLACE}/32 dev lo")
        for name in ("h1", "h4"):
            network.call(name, f"ip route del {ways}")
    assert code == 1
    assert "Traceback" not in complaints
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in told.splitlines() if "│" in line]
    assert rows == [
        [name, ranks, "no" if name == "h3" else "yes"]
        for name, ranks in zip(HOSTS, ("0-1", "2-3", "4-5", "6-7"), strict=True)
    ]
    troubles = [line for line in told.splitlines() if line[:3] in {f"{name}:" for name in HOSTS}]
    assert len(troubles) == 1
    assert troubles[0].startswith(f"h3: The server {server['MLFLOW_TRACKING_URI']} cannot be reached")
