from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

from hpcstress import servers
from hpcstress.servers.deployment import Deployment

# How long an example takes says something about the machine, and nothing about the law.
settings.register_profile("hpcstress", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=30)
settings.load_profile("hpcstress")


def pytest_collection_finish() -> None:
    """Let the garbage collector, which runs at the beginning of every step, not look at all of pytest each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def mlflow_server() -> Iterator[Deployment]:
    """A real MLflow tracking server with sign-in, the same for all slow tests."""
    with servers.start("mlflow-sqlite") as server:
        yield server


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this machine's clock on a wall in Tokyo."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()
