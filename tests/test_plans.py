"""The plans that come with hpcstress: each says what it is, makes sense, and plays on a real server, audit clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcstress.estimate import estimate
from hpcstress.plan import KINDS, Plan, from_toml, shipped
from hpcstress.record import Outcome
from hpcstress.result import Result
from hpcstress.servers.deployment import Deployment
from hpcstress.workloads import MODULES, check
from tests.jobs import play, requests

PLANS = shipped()


def small(plan: Plan) -> Plan:
    """Return a plan that asks for the same, of everything a little; of what varies, the two smallest values."""
    most = {
        "params": 110,
        "metrics": 110,
        "points": 4,
        "tags": 110,
        "artifacts": 3,
        "artifact_size": 10_000,
        "iterations": 2,
        "tenants": 2,
        "prefill_runs": 6,
        "prefill_experiments": 3,
        "max_results": 5,
        "spans": 5,
        "warmup": 1,
        "think_time": 0.0,
        "sleep_time": 0.0,
        "audit": 50,
    }
    options: dict[str, object] = {name: min(getattr(plan, name), value) for name, value in most.items()}
    options["repeats"] = 1
    options["sweep"] = " ".join(_fewer(part, most) for part in plan.sweep.split())
    options["runs"] = [min(2, plan.runs[0])]
    if plan.users:
        options |= {"users": [min(3, plan.users[0])], "rate": min(plan.rate, 20)}
        options["duration"] = min(plan.duration, 1.0)
        options["iterations"] = min(plan.iterations, 2) or (0 if plan.rate else 5)
    return plan.with_options(options)


def _fewer(part: str, most: dict[str, float]) -> str:
    name, _, values = part.partition("=")
    chosen = values.split(",")[:2] if name in most else values.split(",")
    if name in most:
        kind = KINDS[name.replace("-", "_")]
        chosen = list(dict.fromkeys(kind.text(min(kind.read(value), most[name])) for value in chosen))
    return f"{name}={','.join(chosen)}"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_says_in_its_first_line_what_it_is(name: str) -> None:
    first = PLANS[name].split("\n")[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert len(first) < 120


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_makes_sense(name: str) -> None:
    plan = from_toml(PLANS[name])
    check(plan)
    assert estimate(plan).requests > 0


def test_every_workload_has_defaults_of_its_own() -> None:
    # Those of the first workload are the options' own.
    assert set(MODULES) - {Plan().workload} <= set(PLANS)
    assert all(from_toml(PLANS[name]).workload == name for name in set(MODULES) & set(PLANS))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_plays_on_a_real_server_and_nothing_is_lost(
    name: str, mlflow_server: Deployment, tmp_path: Path
) -> None:
    plan = small(from_toml(PLANS[name]))
    assert play(tmp_path / "job", plan, mlflow_server.environment) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, audit = requests(result), result.table("audit")
        assert result.complete
        assert set(rows["outcome"]) <= {Outcome.ok, Outcome.not_supported}
        # Of a step that lasts a second, a busy machine may leave nothing.
        assert result.table("steps")["step"].tolist() == [*range(len(plan.steps))]
        assert len(rows)
        assert audit["checked"].tolist() == audit["intact"].tolist()
        assert not audit["ghosts"].any()
