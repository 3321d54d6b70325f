from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.results import usual


@pytest.fixture(scope="session")
def usual_result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result that most people will see; tests only read it."""
    return usual(tmp_path_factory.mktemp("usual") / "result.h5")
