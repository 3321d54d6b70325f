from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest

from hpcstress.servers.port import free_port
from hpcstress.servers.server import Recipe


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something holds; the deadline is there to end a test that fails, not to measure."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.01)

    return wait


@pytest.fixture
def little() -> Callable[..., Recipe]:
    """Make recipes of servers that are a line of Python each, ready as soon as they have said so."""

    def make(
        code: str = "import time; print('ready', flush=True); time.sleep(600)",
        ready: Callable[[str], bool] = lambda log: "ready" in log,
    ) -> Recipe:
        return Recipe(
            command=(sys.executable, "-c", code),
            uri=f"http://127.0.0.1:{free_port()}",
            facts={"name": "little"},
            ready=ready,
            files={"settings.ini": "[little]"},
            environment={**os.environ, "LITTLE_PASSWORD": "correct-horse"},
            client={"MLFLOW_TRACKING_PASSWORD": "correct-horse"},
            secrets=("correct-horse",),
        )

    return make
