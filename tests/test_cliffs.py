"""The cliffs of a real MLflow: found by their names, and gone with the setting that the report names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.frame import read
from analysis.sign_in import cost_of_sign_in, cpu_per_request
from analysis.statistics import measure
from analysis.summary import summary
from hpcstress.folder import RunFolder
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from hpcstress.result import Result
from tests.jobs import play

# Forty users with batches for one run that all of them share: forty log-batches at once, and twice, because whether
# fifteen of them hold a connection while they ask for another is a matter of luck.
BATCHES = Plan(
    workload="shared-run", users=(40,), iterations=2, params=20, metrics=10, repeats=1, warmup=0, sleep_time=0
)
RUNS = Plan(users=(4,), duration=6, params=5, artifacts=0, repeats=1, warmup=8, sleep_time=0)


def told(folder: Path, plan: Plan) -> str:
    play(folder, plan, {})
    return summary(RunFolder(folder).result)


def outcomes(folder: Path) -> set[str]:
    with Result(RunFolder(folder).result) as result:
        found = result.rows(("op", "outcome"))
    return {Outcome(code).name for code in found["outcome"][found["op"] == Operation.log_batch]}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_forty_batches_at_once_exhaust_the_pool_that_mlflow_ships_with(tmp_path: Path) -> None:
    said = told(tmp_path / "shipped", replace(BATCHES, server="mlflow-sqlite,workers=1,auth=none"))
    assert "pool_exhausted" in outcomes(tmp_path / "shipped")
    assert "the server's connection pool was exhausted" in said
    assert "raise MLFLOW_SQLALCHEMYSTORE_POOL_SIZE" in said
    assert "pool=80" in said
    said = told(tmp_path / "raised", replace(BATCHES, server="mlflow-sqlite,workers=1,auth=none,pool=80"))
    assert outcomes(tmp_path / "raised") == {"ok"}
    assert "pool" not in said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_password_that_is_hashed_for_every_request_costs_a_server_its_cpu(tmp_path: Path) -> None:
    spent = {}
    for auth in ("uncached", "basic"):
        said = told(tmp_path / auth, replace(RUNS, server=f"mlflow-sqlite,workers=2,pool=80,auth={auth}"))
        frame = read(RunFolder(tmp_path / auth).result)
        assert bool(cost_of_sign_in(frame, measure(frame).steps)) == (auth == "uncached")
        assert ("auth_cache_ttl_seconds = 60" in said) == (auth == "uncached")
        (step,) = measure(frame).steps
        spent[auth] = cpu_per_request(frame, step)
    assert spent["uncached"] > 2 * spent["basic"] > 0
