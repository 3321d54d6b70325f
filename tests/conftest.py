from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcstress import servers
from hpcstress.servers import Server


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[Server]:
    """A real MLflow tracking server with sign-in, the same for all slow tests."""
    with servers.start("mlflow") as server:
        yield server
