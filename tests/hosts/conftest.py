from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hosts.network import Network, missing
from tests.hosts.network import network as up
from tests.mpi.conftest import _nothing_is_left_of_killed_jobs  # noqa: F401 (a fixture)
from tests.slurm import cluster as slurm


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Four hosts, the same for all tests."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with up(tmp_path_factory.mktemp("hosts")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """A real Slurm whose nodes are the hosts."""
    reason = slurm.missing()
    if reason:
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm"), network) as running:
        yield running
