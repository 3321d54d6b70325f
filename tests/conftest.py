from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from hpcstress import servers
from hpcstress.servers import Server

# How long an example takes says something about the machine, and nothing about the law.
settings.register_profile("hpcstress", deadline=None)
settings.load_profile("hpcstress")


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[Server]:
    """A real MLflow tracking server with sign-in, the same for all slow tests."""
    with servers.start("mlflow") as server:
        yield server
