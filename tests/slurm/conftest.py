from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mpi.conftest import _nothing_is_left_of_killed_jobs  # noqa: F401 (a fixture)
from tests.slurm.cluster import Cluster, missing
from tests.slurm.cluster import cluster as started


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Slurm of four nodes, the same for all tests."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with started(tmp_path_factory.mktemp("slurm")) as running:
        yield running
