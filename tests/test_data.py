from __future__ import annotations

from pathlib import Path

import pytest

from analysis.summary import summary
from hpcstress.plan import from_toml
from hpcstress.result import Result

RESULTS = sorted((Path(__file__).parent.parent / "data" / "results").glob("*.h5"))


def test_there_is_a_real_result_to_look_at() -> None:
    assert RESULTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_that_was_kept_still_explains_itself(path: Path) -> None:
    with Result(path) as result:
        assert from_toml(result.plan_toml).workload == "parallel-runs"
        assert result.facts["server_version"]
        assert len(result.rows(("run",))) == result.length > 0

    told = summary(path)

    assert "parallel runs" in told
    assert "The audit read back" in told
