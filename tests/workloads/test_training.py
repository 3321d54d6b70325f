"""A run trains a model: what is sent of it, what is left of it, and that real trainings send the same."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcstress.clients.autologging import autologging
from hpcstress.content import Batch, Content, ModelFile
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.plan import Plan, named
from hpcstress.record import OPTIONAL, Operation, Outcome
from hpcstress.replay import Part, State, compare, replay
from hpcstress.result import Result
from hpcstress.servers.deployment import Deployment
from hpcstress.training import Training
from hpcstress.workloads import MODULES, check, kinds, load
from tests.fake_mlflow import FakeMlflow, Faults, serving
from tests.jobs import SMALL, play
from tests.workloads.paper import Recorder

TRAINING = Plan(workload="training")
# As MLflow 3.17 sends it.
FOREST = [
    *("create_run", "log_batch", "log_inputs", "get_run", "create_logged_model", "log_outputs", "get_run"),
    *("get_logged_model", *["log_model_artifact"] * 5, "finish_logged_model", "get_run", "log_artifact", "log_batch"),
    *("log_inputs", "get_run", "finish_run"),
]
LINEAR = [
    *("create_run", "get_run", "log_batch", "log_inputs", "create_logged_model", "log_outputs", "get_run"),
    *("get_logged_model", *["log_model_artifact"] * 5, "finish_logged_model", "get_run", "log_artifact", "log_batch"),
    *("get_run", "finish_run"),
]


def played(number: int, plan: Plan = TRAINING) -> Recorder:
    client = Recorder()
    asyncio.run(load("training")(Content(plan, "session", 4).run(0, number), client))
    return client


def sent(number: int, plan: Plan = TRAINING) -> list[str]:
    return [operation.name for operation, _ in played(number, plan).requests]


# What is sent.


def test_forests_and_linear_models_are_trained_in_turn() -> None:
    assert [sent(number) for number in range(4)] == [FOREST, LINEAR, FOREST, LINEAR]
    assert kinds(TRAINING, 5) == {0: 3, 1: 2}
    assert kinds(TRAINING, 1) == {0: 1}


def test_one_kind_alone_is_trained_by_its_name() -> None:
    assert [sent(number, replace(TRAINING, method="linear")) for number in range(2)] == [LINEAR, LINEAR]
    with pytest.raises(UsageRefusal, match="training knows forest, linear and all, not log_param"):
        check(replace(TRAINING, method="log_param"))


def test_what_is_logged_has_the_amounts_of_a_real_training() -> None:
    batches = [payload for _, payload in played(0).requests if isinstance(payload, Batch)]
    assert [(len(batch.params), len(batch.tags), len(batch.metrics)) for batch in batches] == [(18, 2, 0), (0, 0, 5)]
    files = {payload.path: payload.size for _, payload in played(0).requests if isinstance(payload, ModelFile)}
    assert files == {
        "requirements.txt": 121,
        "MLmodel": 951,
        "python_env.yaml": 114,
        "conda.yaml": 246,
        "model.pkl": 706_000,
    }


def test_metrics_are_about_the_data_and_the_model() -> None:
    training = Training(Content(TRAINING, "session", 4).run(0, 0), "forest", real=False)
    about = dict(training.measured("m-1").about)
    assert about == {"dataset_name": "dataset", "dataset_digest": training.trained.digest, "model_id": "m-1"}
    assert "model_id" not in dict(training.measured("").about)


def test_another_run_logs_other_values_and_the_same_one_the_same() -> None:
    def training(number: int) -> Training:
        return Training(Content(TRAINING, "session", 4).run(0, number), "forest", real=False)

    assert training(0).measured("m") == training(0).measured("m") != training(2).measured("m")
    assert training(0).trained != training(2).trained


def test_an_estimate_counts_both_kinds() -> None:
    told = estimate(replace(TRAINING, runs=(5,), warmup=0, repeats=1))
    assert told.requests_per_run == (dict(Counter(FOREST)), dict(Counter(LINEAR)))
    assert told.requests == 3 * len(FOREST) + 2 * len(LINEAR)
    assert 3 * 760_000 < told.body_bytes < 3 * 780_000 + 2 * 50_000


def test_the_plan_holds_the_health_rule_of_ten_seconds() -> None:
    assert "run_duration p95 < 10s" in named("training", [*MODULES], []).threshold


# What is left of it.

JOB = replace(SMALL, workload="training", runs=(4,))


def job(folder: Path, server: FakeMlflow) -> tuple[int, Any, dict[str, int]]:
    code = play(folder, JOB, server.environment)
    with Result(folder / "result.h5") as result:
        audit = result.table("audit")
        return code, result.rows(("op", "outcome")), {name: int(audit[name].sum()) for name in audit.dtype.names}


def test_runs_models_and_their_files_are_on_the_server_and_found_intact(tmp_path: Path) -> None:
    with serving() as server:
        code, rows, audit = job(tmp_path / "job", server)
    assert code == 0
    assert set(rows["outcome"]) == {Outcome.ok}
    assert audit["intact"] == audit["checked"] == 4
    assert [model["status"] for model in server.logged_models.values()] == ["LOGGED_MODEL_READY"] * 4
    files = Counter(path.rpartition("/")[2] for path in server.artifacts if "/models/" in path)
    assert files == dict.fromkeys(["requirements.txt", "MLmodel", "python_env.yaml", "conda.yaml", "model.pkl"], 4)
    assert {len(run.logged) for run in server.runs.values()} == {3, 2}


@pytest.mark.parametrize(
    ("lie", "fault"), [("forget_param", "missing"), ("change_metric", "wrong"), ("corrupt_artifact", "wrong")]
)
def test_what_is_lost_or_changed_is_found(tmp_path: Path, lie: str, fault: str) -> None:
    with serving(Faults(**{lie: 1})) as server:
        code, _, audit = job(tmp_path / "job", server)
    assert code == 3
    assert audit[fault] == 4


def test_a_server_without_logged_models_gets_the_rest(tmp_path: Path) -> None:
    with serving() as server:
        server.has_registry = False
        code, rows, audit = job(tmp_path / "job", server)
    assert code == 0
    assert audit["intact"] == audit["checked"] == 4
    lacking = {Operation(op) for op in rows["op"][rows["outcome"] != Outcome.ok]}
    assert lacking == {Operation.create_logged_model}
    assert lacking < OPTIONAL


# A real training.


def part_of(writes: int, finishes: int) -> Part:
    run = Content(replace(TRAINING, client="stock"), "session", 4).run(0, 0)
    [part] = asyncio.run(replay(load("training"), run, writes, finishes)).parts
    return part


def test_of_a_real_training_only_the_run_is_known_and_any_parameters_and_metrics_are_right() -> None:
    whole = part_of(writes=5, finishes=1)
    tags = whole.certain.tags
    found = State(created=True, finished=True, params={"a": "b"}, metrics={"c": 1.0}, tags=tags)
    assert whole.certain.finished
    assert compare("run", whole, found) == []
    assert [finding.fault.name for finding in compare("run", whole, replace(found, finished=False))] == ["missing"]
    assert [finding.fault.name for finding in compare("run", whole, replace(found, tags={}))] == ["missing"]


@pytest.mark.parametrize("finished", [False, True])
def test_a_real_training_that_was_cut_off_may_be_finished_or_not(finished: bool) -> None:
    cut = part_of(writes=3, finishes=0)
    assert not cut.certain.finished
    assert compare("run", cut, State(created=True, finished=finished, tags=cut.certain.tags)) == []


def test_without_scikit_learn_a_real_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(Refusal, match="--client wire, which sends the same"), autologging():
        pass


def told(folder: Path) -> dict[int, list[tuple[str, int]]]:
    """Return the requests of each run of a job with the bytes that were sent."""
    requests = defaultdict(list)
    with Result(folder / "result.h5") as result:
        assert set(result.attempts(["outcome"])["outcome"]) == {Outcome.ok}
        for row in result.rows(("run", "op", "attempt", "sent")):
            if row["attempt"] and row["op"] != Operation.connect:
                requests[int(row["run"])].append((Operation(row["op"]).name, int(row["sent"])))
    return requests


@pytest.mark.slow
def test_the_wire_client_sends_what_a_real_training_sends(tmp_path: Path, mlflow_server: Deployment) -> None:
    plan = replace(JOB, runs=(2,), timeout=60)
    for client in ("stock", "wire"):
        assert play(tmp_path / client, replace(plan, client=client), mlflow_server.environment) == 0
        with Result(tmp_path / client / "result.h5") as result:
            audit = result.table("audit")
            assert (audit["checked"].sum(), audit["intact"].sum()) == (2, 2)
    real, made = told(tmp_path / "stock"), told(tmp_path / "wire")
    for run in (0, 1):
        # The order of what MLflow's threads send is not theirs to promise.
        assert Counter(name for name, _ in real[run]) == Counter(name for name, _ in made[run])
        for name in {name for name, _ in real[run]}:
            ours, theirs = (sum(size for known, size in each[run] if known == name) for each in (made, real))
            # What says where a training was started from differs from machine to machine, and so do forests.
            assert abs(ours - theirs) < 400 * len(made[run]) + 0.05 * theirs
