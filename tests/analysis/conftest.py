from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from analysis.__main__ import main
from tests.analysis.results import usual


@pytest.fixture(scope="session")
def usual_result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result that most people will see; tests only read it."""
    return usual(tmp_path_factory.mktemp("usual") / "result.h5")


class Told(NamedTuple):
    """What a command has said, and its exit code."""

    code: int
    words: str


@pytest.fixture(scope="session")
def usual_report(usual_result: Path) -> Told:
    """What `python -m analysis report` says of it; the page lies beside it."""
    words = StringIO()
    with redirect_stdout(words):
        code = main(["report", str(usual_result)])
    return Told(code, words.getvalue())
