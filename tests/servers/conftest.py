from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.part import Recipe


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
        **more: Any,
    ) -> Recipe:
        return Recipe(
            command=(sys.executable, "-c", code),
            ready=ready,
            files={"settings.ini": "[little]"},
            environment={**os.environ, "LITTLE_PASSWORD": "correct-horse"},
            secrets=("correct-horse",),
            stamp="little 1",
            **more,
        )

    return make


@pytest.fixture
def deployed() -> Callable[..., Deployment]:
    """Deploy recipes as the parts of a server, as `start` does it."""

    def deploy(*recipes: Recipe, folder: Path | None = None, **options: Any) -> Deployment:
        site = Deployment("little", folder, **options)
        try:
            for number, recipe in enumerate(recipes):
                site.add("tracking" if not number else f"tracking-{number + 1}", recipe)
        except BaseException:
            site.stop()
            raise
        site.front = Front("http://127.0.0.1:1", {"MLFLOW_TRACKING_PASSWORD": "correct-horse"}, {"name": "little"})
        return site

    return deploy


@pytest.fixture
def public() -> Iterator[Path]:
    """Make a folder for temporary files that everybody may enter: PostgreSQL is not root."""
    with tempfile.TemporaryDirectory(prefix="hpcstress-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
