from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcstress.clean import Cleaned, clean, traces
from hpcstress.clients.api import Api
from hpcstress.clients.dial import Dialer
from hpcstress.content import Content
from hpcstress.errors import Refusal
from hpcstress.plan import Plan
from hpcstress.record import Operation
from hpcstress.result import Result
from hpcstress.schedule import WARMUP
from hpcstress.target import from_environment
from tests.fake_mlflow import FakeMlflow, Faults, Run, serving
from tests.jobs import SMALL, play
from tests.peers import http_server, reply


def job(server: FakeMlflow, folder: Path, plan: Plan = SMALL) -> dict[str, Any]:
    """Play a job and return its facts."""
    play(folder, plan, server.environment)
    with Result(folder / "result.h5") as result:
        return result.facts


def cleaned(
    environment: dict[str, str], facts: dict[str, Any], said: list[str] | None = None, traces: Sequence[str] = ()
) -> Cleaned:
    async def scene() -> Cleaned:
        target = from_environment("", environment)
        dialer = Dialer(target)
        await dialer.resolve()
        async with Api(dialer, 5.0) as api:
            return await clean(api, facts, (said if said is not None else []).append, traces=traces)

    return asyncio.run(scene())


def active(server: FakeMlflow) -> list[Run]:
    return [run for run in server.runs.values() if run.stage == "active"]


def test_all_that_a_job_has_created_is_removed_warm_up_and_ghosts_too(tmp_path: Path) -> None:
    with serving(Faults(create_twice=3), password="correct-horse") as server:
        facts = job(server, tmp_path / "job", replace(SMALL, warmup=3))
        assert cleaned(server.environment, facts) == Cleaned(runs=12, artifacts=9, experiment=True)
        assert active(server) == []
        assert server.artifacts == {}
        assert server.experiments[facts["experiment_id"]].stage == "deleted"


@pytest.mark.parametrize(("workload", "artifacts"), [("models", 0), ("training", 4)])
def test_logged_models_of_a_jobs_runs_are_removed_with_their_files_and_no_others(
    tmp_path: Path, workload: str, artifacts: int
) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job", replace(SMALL, workload=workload, runs=(4,), audit=0))
        mine = set(server.logged_models)
        job(server, tmp_path / "other", replace(SMALL, workload=workload, runs=(2,), audit=0))
        others = {name: server.logged_models[name] for name in server.logged_models.keys() - mine}
        files = [path for path in server.artifacts if any(name in path for name in others)]
        assert (len(mine), len(others)) == (4, 2)
        done = cleaned(server.environment, facts)
        assert (done.runs, done.logged_models, done.artifacts) == (4, 4, artifacts)
        assert server.logged_models == others
        assert [path for path in server.artifacts if "/models/" in path] == files


def test_a_server_without_logged_models_is_cleaned_all_the_same(tmp_path: Path) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job")
        server.has_registry = False
        assert cleaned(server.environment, facts) == Cleaned(runs=6, artifacts=6, experiment=True)


# Traces.

ROWS = np.array(
    [(0, 3, Operation.log_spans), (0, 3, Operation.get_trace), (1, 3, Operation.log_spans), (1, 4, Operation.connect)],
    [("step", "u2"), ("run", "u4"), ("op", "u1")],
)


def test_the_traces_of_a_job_are_those_that_it_has_tried_to_log_and_those_of_its_warm_up() -> None:
    plan = Plan(workload="traces", warmup=2)
    runs = [(0, 3), (1, 3), (WARMUP, 0), (WARMUP, 1)]
    expected = {Content(plan, "mine").run(*run).trace(0).trace_id for run in runs}
    assert set(traces(plan, "mine", lambda: ROWS)) == expected
    assert len(expected) == 4
    assert expected.isdisjoint(traces(plan, "another", lambda: ROWS))
    assert traces(replace(plan, workload="models"), "mine", lambda: ROWS) == []


def test_traces_are_deleted_by_the_hundred_and_no_others(tmp_path: Path) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job", replace(SMALL, runs=(1,)))
        mine = [f"tr-{number}" for number in range(250)]
        server.traces = dict.fromkeys([*mine[:240], "tr-other"], facts["experiment_id"])
        assert cleaned(server.environment, facts, traces=mine).traces == 240
        assert list(server.traces) == ["tr-other"]
        sizes = [seen.path for seen in server.requests if seen.path.endswith("delete-traces")]
        assert len(sizes) == 3


def test_a_server_that_cannot_delete_traces_is_told_apart_from_one_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job", replace(SMALL, runs=(1,)))
        assert cleaned(server.environment, facts, traces=["tr-0"]).traces == 0
        monkeypatch.setattr(
            server, "_routes", {key: act for key, act in server._routes.items() if "delete-traces" not in key[1]}
        )
        assert cleaned(server.environment, facts, traces=["tr-0"]).traces is None


def test_after_cleaning_the_same_job_can_be_played_again(tmp_path: Path) -> None:
    with serving() as server:
        cleaned(server.environment, job(server, tmp_path / "first"))
        facts = job(server, tmp_path / "second")
        assert facts["experiment_created"]
        assert len(active(server)) == 6


def test_what_another_job_has_created_stays_and_the_experiment_with_it(tmp_path: Path) -> None:
    with serving() as server:
        first, second = job(server, tmp_path / "first"), job(server, tmp_path / "second")
        assert cleaned(server.environment, first) == Cleaned(runs=6, artifacts=6, experiment=False)
        assert {run.tags["hpcstress.session"] for run in active(server)} == {second["session"]}
        assert len(server.artifacts) == 6
        assert server.experiments[first["experiment_id"]].stage == "active"
        # The second did not create the experiment.
        assert cleaned(server.environment, second) == Cleaned(runs=6, artifacts=6, experiment=False)


def test_an_experiment_that_was_there_before_stays(tmp_path: Path) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job", replace(SMALL, experiment="Default"))
        assert cleaned(server.environment, facts) == Cleaned(runs=6, artifacts=6, experiment=False)
        assert server.experiments["0"].stage == "active"


def test_cleaning_again_finds_nothing_more(tmp_path: Path) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job", replace(SMALL, experiment="Default"))
        cleaned(server.environment, facts)
        assert cleaned(server.environment, facts) == Cleaned(runs=0, artifacts=0, experiment=False)


def test_runs_on_several_pages_are_all_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstress.clients.api.PAGE", 4)
    with serving() as server:
        assert cleaned(server.environment, job(server, tmp_path / "job")).runs == 6


def test_every_hundred_runs_a_word_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with serving() as server:
        cleaned(server.environment, job(server, tmp_path / "job", replace(SMALL, runs=(120,), artifacts=0)), said)
    assert said == ["100 of 120 runs deleted"]


def test_a_server_that_lists_too_much_loses_nothing_of_others(tmp_path: Path) -> None:
    with serving(Faults(list_all=True)) as server:
        facts = job(server, tmp_path / "mine", replace(SMALL, audit=0))
        other = job(server, tmp_path / "other", replace(SMALL, audit=0))
        server.runs["bare"] = Run("bare", facts["experiment_id"], "bare", 0, {})
        assert cleaned(server.environment, facts) == Cleaned(runs=6, artifacts=6, experiment=False)
        assert {run.tags.get("hpcstress.session") for run in active(server)} == {other["session"], None}
        assert len(server.artifacts) == 6


def test_artifacts_that_do_not_lie_in_a_folder_of_the_run_are_left_alone(tmp_path: Path) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job")
        server.faults.artifact_uri = f"mlflow-artifacts:/{facts['experiment_id']}"
        assert cleaned(server.environment, facts) == Cleaned(runs=6, artifacts=0, experiment=True)
        assert len(server.artifacts) == 6


def test_a_server_that_fails_is_told_with_what_is_done_already(tmp_path: Path) -> None:
    with serving() as server:
        facts = job(server, tmp_path / "job")
        server.faults.at, server.faults.throttled = "runs/delete", 3
        with pytest.raises(Refusal, match=r"answered 429 \(cleaning up, 2 runs done\)"):
            cleaned(server.environment, facts)
        assert len(active(server)) == 4
        server.faults.throttled = 0
        assert cleaned(server.environment, facts).runs == 4


@pytest.mark.parametrize("run", [b"{}", b'{"info": 5}', b'{"info": {"run_id": "x"}, "data": {"tags": [{}]}}'])
def test_nonsense_is_refused_and_nothing_is_deleted(run: bytes) -> None:
    async def scene() -> None:
        async with http_server(reply(b'{"runs": [%s]}' % run)) as server:
            environment = {"MLFLOW_TRACKING_URI": server.uri, "HOME": "/nonexistent"}
            with pytest.raises(Refusal, match="something that is not MLflow's JSON"):
                await asyncio.to_thread(cleaned, environment, {"experiment_id": "1", "session": "s"})
            assert {request.target.rpartition("/")[2] for request in server.requests} == {"search"}

    asyncio.run(scene())
