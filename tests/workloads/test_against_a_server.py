"""Each workload against a server in memory: what is there afterwards is its content, and no lie stays unfound."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcstress.audit import audit_result
from hpcstress.content import Content
from hpcstress.plan import Plan
from hpcstress.ranks import World
from hpcstress.record import READS, Operation, Outcome
from hpcstress.result import Result
from tests.fake_mlflow import FakeMlflow, Faults, Run, serving
from tests.jobs import SMALL, play, requests

PLANS = {
    "parameters": replace(SMALL, workload="parameters", runs=(2,), params=120, metrics=0),
    "artifacts": replace(SMALL, workload="artifacts", runs=(2,), artifacts=3, params=0, metrics=0),
    "artifacts, at once": replace(SMALL, workload="artifacts", runs=(2,), artifacts=5, uploads=3),
    "log-batch": replace(SMALL, workload="log-batch", users=(2,), iterations=3, params=4, metrics=3, points=2, tags=2),
    "create-run": replace(SMALL, workload="create-run", users=(2,), iterations=3),
    "logging": replace(SMALL, workload="logging", users=(2,), iterations=2),
    "parallel-runs": replace(SMALL, runs=(3,)),
}
READING = {
    "search-runs": replace(SMALL, workload="search-runs", users=(2,), iterations=3, prefill_runs=5),
    "search-experiments": replace(
        SMALL, workload="search-experiments", users=(2,), iterations=3, prefill_experiments=3
    ),
    "retrieval": replace(
        SMALL, workload="retrieval", users=(2,), iterations=3, prefill_runs=5, prefill_experiments=2, points=4
    ),
}


def job(folder: Path, plan: Plan, faults: Faults | None = None) -> tuple[int, FakeMlflow, dict[str, int], Any]:
    """Play a plan; return exit code, the server, the audit's counts, the attempts."""
    with serving(faults) as server:
        code = play(folder, plan, server.environment)
    with Result(folder / "result.h5") as result:
        audit = result.table("audit")
        counts = {name: int(audit[name].sum()) for name in audit.dtype.names}
        return code, server, counts, requests(result)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_everything_that_is_acknowledged_is_there_and_found_intact(tmp_path: Path, plan: Plan) -> None:
    code, server, audit, rows = job(tmp_path / "job", plan)
    assert code == 0
    assert set(rows["outcome"]) == {Outcome.ok}
    created = int((rows["op"] == Operation.create_run).sum())
    assert audit["intact"] == audit["checked"] == created == len(server.runs)
    assert audit["ghosts"] == 0


@pytest.mark.parametrize("plan", READING.values(), ids=READING)
def test_what_only_reads_leaves_nothing(tmp_path: Path, plan: Plan) -> None:
    code, server, audit, rows = job(tmp_path / "job", plan)
    assert code == 0
    assert set(rows["outcome"]) == {Outcome.ok}
    assert {Operation(code) for code in rows["op"]} <= READS
    assert audit["checked"] == 0
    assert len(server.runs) == plan.prefill_runs


# The state on the server is the content.


def of(server: FakeMlflow, run: int, part: int = 0) -> Run:
    name = f"hpcstress-0-{run}" + (f".{part}" if part else "")
    [found] = [one for one in server.runs.values() if one.name == name]
    return found


def content(plan: Plan, number: int) -> Any:
    return Content(plan, "any").run(0, number)


def test_all_parameters_are_there_by_each_method(tmp_path: Path) -> None:
    plan = PLANS["parameters"]
    _, server, _, rows = job(tmp_path / "job", plan)
    for run in range(2):
        for part in range(3):
            assert of(server, run, part).params == dict(content(plan, run).params)
            assert of(server, run, part).status == "FINISHED"
    assert Counter(Operation(code).name for code in rows["op"]) == {
        "create_run": 6,
        "log_param": 240,
        "log_params": 4,
        "log_batch": 4,
        "get_run": 6,
        "finish_run": 6,
    }


@pytest.mark.parametrize("name", ["artifacts", "artifacts, at once"])
def test_all_files_are_there_with_their_bytes(tmp_path: Path, name: str) -> None:
    plan = PLANS[name]
    _, server, _, _ = job(tmp_path / "job", plan)
    for run in range(2):
        for part in range(2):
            folder = of(server, run, part).folder
            for artifact in content(plan, run).artifacts:
                assert server.artifacts[f"{folder}/{artifact.path}"] == b"".join(artifact.chunks())
    assert len(server.artifacts) == 4 * plan.artifacts


def test_a_folder_of_ones_own_is_there_with_its_bytes_and_audited(tmp_path: Path) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "deep" / "with space.bin").write_bytes(b"one")
    (tmp_path / "mine" / "empty.txt").write_bytes(b"")
    plan = replace(PLANS["artifacts"], artifact_folder=str(tmp_path / "mine"), runs=(1,))
    code, server, audit, _ = job(tmp_path / "job", plan)
    assert (code, audit["intact"]) == (0, 2)
    folder = of(server, 0).folder
    assert server.artifacts[f"{folder}/deep/with space.bin"] == b"one"
    assert server.artifacts[f"{folder}/empty.txt"] == b""
    code, _, audit, _ = job(
        tmp_path / "lie", replace(plan, method="log_artifact"), Faults(corrupt_artifact=1, at="deep")
    )
    assert (code, audit["wrong"]) == (3, 1)


def test_the_last_points_of_all_metrics_the_parameters_and_the_tags_of_all_batches_are_there(tmp_path: Path) -> None:
    plan = PLANS["log-batch"]
    _, server, _, _ = job(tmp_path / "job", plan)
    for run in range(2):
        batches = [content(plan, run).batch(number) for number in range(3)]
        found = of(server, run)
        assert found.params == {key: value for batch in batches for key, value in batch.params}
        assert {key: point["value"] for key, point in found.metrics.items()} == {
            metric.key: metric.value for metric in batches[-1].metrics
        }
        assert {tag: found.tags[tag] for tag, _ in batches[-1].tags} == dict(batches[-1].tags)
        assert len(found.history) == 3 * 3 * 2


def test_every_iteration_of_logging_leaves_a_finished_run_with_all_points_and_parameters(tmp_path: Path) -> None:
    _, server, _, rows = job(tmp_path / "job", PLANS["logging"])
    assert len(rows) == 2 * 2 * 8
    for run in range(2):
        for part in range(2):
            found = of(server, run, part)
            assert (found.status, len(found.history), len(found.params)) == ("FINISHED", 1441, 110)


# Lies.

LIES = [
    ("parameters", "forget_param", 300, "missing"),
    ("parameters", "change_param", 300, "wrong"),
    ("parameters", "ignore_finish", 4, "missing"),
    ("artifacts", "forget_artifact", 5, "missing"),
    ("artifacts", "corrupt_artifact", 5, "wrong"),
    ("artifacts, at once", "forget_artifact", 9, "missing"),
    ("artifacts, at once", "corrupt_artifact", 9, "wrong"),
    ("log-batch", "forget_param", 20, "missing"),
    ("log-batch", "change_metric", 36, "wrong"),
    ("log-batch", "forget_tag", 12, "wrong"),
    ("log-batch", "change_tag", 12, "wrong"),
    ("log-batch", "forget_run", 2, "missing"),
    ("create-run", "create_twice", 6, "ghosts"),
    ("logging", "forget_param", 120, "missing"),
    ("logging", "change_metric", 5764, "wrong"),
    ("logging", "ignore_finish", 4, "missing"),
    ("logging", "forget_run", 4, "missing"),
]


@pytest.mark.parametrize(("name", "switch", "every", "kind"), LIES, ids=[f"{one[0]}, {one[1]}" for one in LIES])
def test_a_lie_is_found_in_the_mlflow_run_that_it_struck(
    tmp_path: Path, name: str, switch: str, every: int, kind: str
) -> None:
    code, server, audit, _ = job(tmp_path / "job", PLANS[name], Faults(**{switch: every}))
    struck = len(server.lied(switch))
    assert 0 < struck < len(server.runs) or switch == "forget_run"
    assert audit[kind] == struck
    assert code == (0 if kind == "ghosts" else 3)


# What was not acknowledged may be there or not.


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("fault", ["hang_up", "throttled"])
def test_what_was_not_acknowledged_is_no_finding_whether_it_is_there_or_not(
    tmp_path: Path, plan: Plan, fault: str
) -> None:
    # Only requests that write, and none of the audit's or of the job's own.
    at = "mlflow-artifacts" if plan.workload == "artifacts" else "runs/"
    for every in (2, 3, 5, 7):
        faults = Faults(**{fault: every}, at=at)
        plan = replace(plan, audit=0)
        with serving(faults) as server:
            play(tmp_path / f"job {every}", plan, server.environment)
            setattr(faults, fault, 0)
            said: list[str] = []
            path = tmp_path / f"job {every}" / "result.h5"
            assert audit_result(World(), path, server.environment, said.append), said


def test_as_many_mlflow_runs_are_read_back_as_the_plan_says_also_where_each_user_makes_many(tmp_path: Path) -> None:
    plan = replace(PLANS["logging"], iterations=15, audit=6)
    with serving() as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        with Result(tmp_path / "job" / "result.h5") as result:
            [row] = result.table("audit")
        assert 6 <= row["checked"] == row["intact"] <= 8
        # Among them always the last one of each user, where a failure would have left something half done.
        del server.runs[of(server, 0, 14).id]
        said: list[str] = []
        assert not audit_result(World(), tmp_path / "job" / "result.h5", server.environment, said.append)
    assert "hpcstress-0-0.14: its creation was acknowledged" in said[1]


def test_users_keep_their_connection_from_run_to_run_also_after_a_failure(tmp_path: Path) -> None:
    plan = replace(PLANS["create-run"], iterations=20)
    with serving(Faults(throttled=5, at="runs/create")) as server:
        play(tmp_path / "job", plan, server.environment)
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = result.rows(("run", "op", "status"))
    assert len(set(rows["run"])) == 40
    assert (rows["op"] == Operation.connect).sum() == 2
    assert (rows["status"] == 429).sum() == 8


def test_runs_that_begin_at_once_have_a_connection_each(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "job", PLANS["parallel-runs"], server.environment)
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = result.rows(("run", "op"))
    assert sorted(rows["run"][rows["op"] == Operation.connect].tolist()) == [0, 1, 2]
