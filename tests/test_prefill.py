"""What has to be on the server before the load: made once, found again, continued where it was interrupted."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcstress.clean import clean
from hpcstress.clients import Client, Place
from hpcstress.clients.api import Api
from hpcstress.clients.dial import way_to
from hpcstress.content import PREFILL_TAG, RUN_TAG, Content
from hpcstress.content import Run as Described
from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.pace import Supply
from hpcstress.plan import Plan
from hpcstress.prefill import find, look
from hpcstress.record import Operation
from hpcstress.recover import recover
from hpcstress.result import Result
from hpcstress.schedule import PREFILL, WARMUP, Step
from hpcstress.worker import Filling
from hpcstress.workloads import Prefill, prefilled
from tests.fake_mlflow import Experiment, FakeMlflow, Faults, Run, serving
from tests.jobs import SMALL, Heard, play, requests

PLAN = replace(
    SMALL,
    workload="retrieval",
    users=(2,),
    iterations=2,
    prefill_runs=12,
    prefill_experiments=5,
    metrics=2,
    points=4,
    params=3,
    max_results=10,
)


def wanted(plan: Plan = PLAN) -> Prefill:
    prefill = prefilled(plan)
    assert prefill is not None
    return prefill


def made(server: FakeMlflow, holds: str = "") -> tuple[list[Run], list[Experiment]]:
    """Return the runs and experiments that are there before the load, without what was deleted."""
    holds = holds or wanted().holds
    runs = [run for run in server.runs.values() if run.stage == "active" and run.tags.get(PREFILL_TAG) == holds]
    experiments = [
        experiment
        for experiment in server.experiments.values()
        if experiment.stage == "active" and experiment.tags.get(PREFILL_TAG) == holds and RUN_TAG in experiment.tags
    ]
    return runs, experiments


def units(found: list[Any]) -> list[int]:
    return sorted(int(one.tags[RUN_TAG]) for one in found)


def whole(server: FakeMlflow) -> bool:
    runs, experiments = made(server)
    # Also: nothing twice.
    return units(runs) == [*range(12)] and units(experiments) == [*range(12, 17)]


def writes(server: FakeMlflow) -> Counter[str]:
    return Counter(seen.path.rpartition("mlflow/")[2] for seen in server.requests if seen.method == "POST")


def test_what_has_to_be_there_is_made_before_the_load(tmp_path: Path) -> None:
    with serving() as server:
        assert play(tmp_path / "job", PLAN, server.environment) == 0
        assert whole(server)
        for run in made(server)[0]:
            unit = Content(PLAN, "any").unit(int(run.tags[RUN_TAG]), wanted().holds)
            assert run.params == dict(unit.batch(0).params)
            assert [(point["key"], point["step"], point["value"]) for point in run.history] == [
                (metric.key, metric.step, metric.value) for metric in unit.batch(0).metrics
            ]
        assert {server.experiments[run.experiment_id].name for run in made(server)[0]} == {
            f"hpcstress-prefill-{wanted().holds}"
        }
        # Of what is not there at all, nothing is asked for one by one: only for the job's experiment and this one.
        assert sum(seen.path.endswith("get-by-name") for seen in server.requests) == 2


def test_it_is_in_no_row_of_the_result(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "job", replace(PLAN, warmup=2), server.environment)
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = requests(result)
        assert {Operation(code).name for code in rows["op"]} == {
            "search_runs",
            "search_experiments",
            "get_metric_history",
        }
        assert set(rows["step"]) == {0}
        assert result.facts["prefill"]["holds"] == wanted().holds
        assert result.facts["prefill"]["made"] == 17


def test_the_next_job_uses_it_and_looks_through_nothing(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "one", PLAN, server.environment)
        before = len(server.requests)
        heard = Heard()
        assert play(tmp_path / "two", PLAN, server.environment, heard) == 0
        new = [seen for seen in server.requests[before:] if seen.method == "POST"]
        assert not [seen for seen in new if not seen.path.endswith("/search")]
        # One to sign in, those of 2 users with 2 iterations, one of the audit.
        assert len(new) == 1 + 2 * 2 * 2 + 1
        assert not [sentence for sentence in heard.sentences if "prefill" in sentence]


def test_another_amount_is_something_else(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "one", PLAN, server.environment)
        play(tmp_path / "two", replace(PLAN, prefill_runs=13), server.environment)
        assert whole(server)
        assert len(made(server, wanted(replace(PLAN, prefill_runs=13)).holds)[0]) == 13


def test_one_that_was_interrupted_is_continued(tmp_path: Path) -> None:
    # Gone in the middle, and with it whatever had been acknowledged of the unit that was under way.
    with serving(Faults(at="runs/log-batch", unavailable=1)) as server:
        with pytest.raises(Refusal, match=r"cannot be made: of 17 units that were sent, 12 are not on the server"):
            play(tmp_path / "one", PLAN, server.environment)
        assert units(made(server)[1]) == [*range(12, 17)]
        server.faults.unavailable = 0
        before = writes(server)
        assert play(tmp_path / "two", PLAN, server.environment) == 0
        assert whole(server)
        # Only what was missing.
        assert (writes(server) - before)["runs/create"] == 12
        assert (writes(server) - before)["experiments/create"] == 0


def test_what_is_left_of_a_unit_that_is_not_whole_is_removed_and_the_unit_made_anew(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "one", PLAN, server.environment)
        runs, experiments = made(server)
        ground = server.experiments[runs[0].experiment_id]
        del ground.tags["hpcstress.prefill-is-whole"]
        runs[3].params.popitem()
        runs[5].metrics["metric-0"]["value"] = 7.0
        server.runs.pop(runs[7].id)
        experiments[1].stage = "deleted"
        experiments[1].name = "something else"
        twice = replace(runs[9], id="twice")
        server.runs[twice.id] = twice
        before = writes(server)
        assert play(tmp_path / "two", PLAN, server.environment) == 0
        assert whole(server)
        assert (writes(server) - before)["runs/create"] == 3
        assert (writes(server) - before)["runs/delete"] == 3
        assert (writes(server) - before)["experiments/create"] == 1


def test_a_server_that_fails_now_and_then_is_asked_again_until_everything_is_there(tmp_path: Path) -> None:
    with serving(Faults(at="runs/log-batch", throttled=5)) as server:
        assert play(tmp_path / "job", PLAN, server.environment) == 0
        assert whole(server)
        assert sum(seen.status == 429 for seen in server.requests) > 1


@pytest.mark.parametrize(
    ("switch", "every"),
    [("forget_param", 1), ("change_param", 1), ("forget_metric", 1), ("change_metric", 1), ("forget_experiment", 1)],
)
def test_a_server_that_acknowledges_and_forgets_is_found_out_before_the_load(
    tmp_path: Path, switch: str, every: int
) -> None:
    plan = replace(PLAN, prefill_experiments=40 if switch == "forget_experiment" else 5)
    with serving() as server:
        # It is honest about the experiments that jobs need for themselves.
        play(tmp_path / "one", replace(SMALL, runs=(1,)), server.environment)
        asyncio.run(_ground(server, plan))
        setattr(server.faults, switch, every)
        with pytest.raises(Refusal, match=r"What has to be there before the load cannot be made: of \d+ units"):
            play(tmp_path / "two", plan, server.environment)


async def _ground(server: FakeMlflow, plan: Plan) -> None:
    async with Api(await way_to("", server.environment), 5) as api:
        holds = wanted(plan).holds
        tags = [{"key": PREFILL_TAG, "value": holds}]
        await api.post("experiments/create", {"name": f"hpcstress-prefill-{holds}", "tags": tags})


def test_a_search_that_finds_less_than_is_there_is_a_failure(tmp_path: Path) -> None:
    with serving() as server:
        assert play(tmp_path / "one", PLAN, server.environment) == 0
        server.faults.find_nothing = 1
        play(tmp_path / "two", PLAN, server.environment)
    with Result(tmp_path / "two" / "result.h5") as result:
        rows = requests(result)
        assert {(Operation(row["op"]).name, int(row["status"])) for row in rows} == {("search_runs", 200)}
        assert {int(code) for code in rows["outcome"]} == {14}
        # The iteration ends, the user goes on with the next.
        assert len(rows) == 4
        assert "First failure by missing: the server said '0 were found, at least 10 have to be there'." in result.notes


def test_an_experiment_of_that_name_that_is_somebody_s_is_left_alone(tmp_path: Path) -> None:
    with serving() as server:
        server.experiments["5"] = Experiment("5", f"hpcstress-prefill-{wanted().holds}")
        with pytest.raises(Refusal, match="was not made by hpcstress"):
            play(tmp_path / "job", PLAN, server.environment)
        assert not server.runs


def test_a_server_that_takes_no_notice_of_filters_loses_nothing_of_others(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "one", replace(SMALL, runs=(3,)), server.environment)
        asyncio.run(_ground(server, PLAN))
        ground = next(one for one in server.experiments.values() if PREFILL_TAG in one.tags)
        mine = [run for run in server.runs.values() if run.stage == "active"]
        # Somebody's run in that place, and somebody's experiment that looks like a unit of another kind.
        mine[0].experiment_id = ground.id
        other = server.experiments["99"] = Experiment("99", "other", tags={PREFILL_TAG: "other", RUN_TAG: "13"})
        server.faults.list_all = 1
        assert play(tmp_path / "two", PLAN, server.environment) == 0
        assert whole(server)
        assert cleaned(server, tmp_path / "two" / "result.h5", prefill=True).prefill == 12
        assert all(run.stage == "active" for run in mine)
        assert other.stage == "active"


# Units of several kinds of things.


async def both(run: Described, client: Client) -> None:
    """Make an experiment, and a run in two parts."""
    await client.create_experiment(run.unique_name, run.tags)
    await client.enter_experiment(client.place.experiment_id)
    for number in range(2):
        await client.create_run(*run.part(number))
        await client.log_params(run.params)


def test_a_unit_is_whole_when_all_its_parts_are_and_what_is_left_of_it_stands_in_nobodys_way() -> None:
    prefill = Prefill(1, "both", both)
    unit = Content(PLAN, "").unit(0, "both")

    async def scene(server: FakeMlflow) -> None:
        async with Api(await way_to("", server.environment), 5) as api:
            ground = (await find(api, PLAN, prefill)).experiment_id

            async def missing() -> list[int]:
                server.experiments[ground].tags.pop("hpcstress.prefill-is-whole", None)
                return (await look(api, PLAN, prefill, Place(ground, prefilled=ground))).missing

            async def make(parts: int) -> None:
                tags = [{"key": key, "value": value} for key, value in unit.tags]
                await api.post("experiments/create", {"name": unit.unique_name, "tags": tags})
                for number in range(parts):
                    name, pairs = unit.part(number)
                    told = [{"key": key, "value": value} for key, value in pairs]
                    run = await api.post(
                        "runs/create", {"experiment_id": ground, "run_name": name, "tags": told, "start_time": 1}
                    )
                    params = [{"key": key, "value": value} for key, value in unit.params]
                    await api.post("runs/log-batch", {"run_id": run["run"]["info"]["run_id"], "params": params})

            assert await missing() == [0]
            await make(parts=1)
            assert await missing() == [0]
            # The name is free again, and the one part is gone.
            assert made(server, "both") == ([], [])
            await make(parts=2)
            assert await missing() == []
            assert len(made(server, "both")[0]) == 2
            made(server, "both")[1][0].stage = "deleted"
            assert await missing() == [0]

    with serving() as server:
        asyncio.run(scene(server))


# Ranks.


def test_users_begin_while_there_is_something_left_and_each_thing_once() -> None:
    left = [1]
    supply = Supply(left)
    assert asyncio.run(supply.turn(0)) is not None
    assert asyncio.run(supply.turn(0, 1)) is None
    left.clear()
    assert asyncio.run(supply.turn(1)) is None


@pytest.mark.parametrize("ranks", [1, 3, 8, 20])
def test_all_ranks_together_are_few_users_and_every_rank_is_at_least_one(ranks: int) -> None:
    shares = [Filling(Step(PREFILL, 0, 17), Content(PLAN, "any"), rank, ranks, deque()) for rank in range(ranks)]
    assert all(len(share.places) == share.users >= 1 for share in shares)
    assert sum(share.users for share in shares) <= max(8, ranks)


def test_the_numbers_of_what_is_not_measured_are_no_steps_numbers() -> None:
    assert len({PREFILL, WARMUP}) == 2
    most = Plan(runs=(1,), repeats=min(PREFILL, WARMUP))
    assert len(most.steps) == PREFILL


def test_recovering_leaves_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "remove_journals", lambda _: None)
    folder = RunFolder(tmp_path / "job")
    with serving() as server:
        play(folder.path, replace(PLAN, warmup=2), server.environment)
    with Result(folder.result) as result:
        gathered = len(requests(result))
    folder.result.unlink()
    recover(folder)
    with Result(folder.result) as result:
        assert len(requests(result)) == gathered
        assert set(result.rows(["step"])["step"]) == {0}


# Cleaning.


def cleaned(server: FakeMlflow, path: Path, *, prefill: bool) -> Any:
    async def act() -> Any:
        with Result(path) as result:
            facts = result.facts
        async with Api(await way_to(facts["uri"], server.environment), 5) as api:
            return await clean(api, facts, lambda _: None, prefill=prefill)

    return asyncio.run(act())


def test_it_is_removed_only_when_that_is_asked_for(tmp_path: Path) -> None:
    with serving() as server:
        play(tmp_path / "one", PLAN, server.environment)
        assert cleaned(server, tmp_path / "one" / "result.h5", prefill=False).prefill == 0
        assert whole(server)
        assert cleaned(server, tmp_path / "one" / "result.h5", prefill=True).prefill == 12
        assert made(server) == ([], [])
        # And can be made again.
        assert play(tmp_path / "two", PLAN, server.environment) == 0
        assert whole(server)


def test_cleaning_on_many_pages_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstress.clients.api.PAGE", 3)
    with serving() as server:
        assert play(tmp_path / "one", PLAN, server.environment) == 0
        assert whole(server)
        assert cleaned(server, tmp_path / "one" / "result.h5", prefill=True).prefill == 12
        assert made(server) == ([], [])
