"""search-runs, search-experiments and retrieval: what they ask, and what has to be there for that."""

from __future__ import annotations

import asyncio

import pytest

from hpcstress.clients import Search
from hpcstress.content import PREFILL_TAG, Content
from hpcstress.errors import UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.plan import Plan
from hpcstress.record import READS, ROW, Operation
from hpcstress.workloads import Prefill, check, prefilled
from tests.workloads.paper import Recorder, names, played

SEARCH_RUNS = Plan(workload="search-runs", prefill_runs=30, max_results=10, metrics=2, params=3, tags=4)
SEARCH_EXPERIMENTS = Plan(workload="search-experiments", prefill_experiments=5, max_results=1000)
RETRIEVAL = Plan(
    workload="retrieval", prefill_runs=4, prefill_experiments=3, max_results=10, metrics=2, points=4, params=1
)
SEARCHES = [SEARCH_RUNS, SEARCH_EXPERIMENTS, RETRIEVAL]


def searches(client: Recorder) -> list[Search]:
    return [payload for _, payload in client.requests if isinstance(payload, Search)]


def test_runs_are_searched_where_they_are_there_before() -> None:
    client = played(SEARCH_RUNS, turns=3)
    assert names(client) == ["search_runs"] * 3
    assert client.experiments == ["1", "7"]
    assert searches(client) == [Search(max_results=10, least=10)] * 3


def test_experiments_are_listed() -> None:
    client = played(SEARCH_EXPERIMENTS, turns=2)
    assert searches(client) == [Search(max_results=1000, least=5)] * 2


def test_retrieval_searches_runs_and_experiments_and_reads_the_history_of_a_run_that_it_has_found() -> None:
    client = played(RETRIEVAL, turns=2)
    assert names(client) == ["search_runs", "search_experiments", "get_metric_history"] * 2
    assert client.experiments == ["1", "7"]
    assert client.runs == ["0", "0"]
    runs, experiments = searches(client)[:2]
    assert (runs.least, experiments.least) == (4, 3)
    assert client.requests[2] == (Operation.get_metric_history, ("metric-0", ""))


@pytest.mark.parametrize("plan", SEARCHES, ids=lambda plan: plan.workload)
def test_searches_leave_nothing_on_the_server(plan: Plan) -> None:
    assert {operation for operation, _ in played(plan, turns=2).requests} <= READS


@pytest.mark.parametrize("plan", SEARCHES, ids=lambda plan: plan.workload)
def test_a_search_that_fails_ends_the_iteration(plan: Plan) -> None:
    client = played(plan, turns=2, fails_at=0)
    assert len(client.requests) == client.turns == 1


@pytest.mark.parametrize(
    "plan",
    [
        SEARCH_RUNS.with_options({"prefill_runs": 0}),
        RETRIEVAL.with_options({"prefill_runs": 0}),
        RETRIEVAL.with_options({"metrics": 0}),
    ],
)
def test_to_search_where_nothing_can_be_found_is_refused(plan: Plan) -> None:
    with pytest.raises(UsageRefusal, match="--prefill-runs"):
        check(plan)


# What has to be there before.


def wanted(plan: Plan) -> Prefill:
    prefill = prefilled(plan)
    assert prefill is not None
    return prefill


def unit(plan: Plan, number: int) -> Recorder:
    client, prefill = Recorder(), wanted(plan)
    asyncio.run(prefill.play(Content(plan, "session").unit(number, prefill.holds), client))
    return client


def test_there_are_as_many_runs_and_experiments_before_as_the_plan_says() -> None:
    assert wanted(RETRIEVAL).units == 7
    kinds = [names(unit(RETRIEVAL, number))[0] for number in range(7)]
    assert kinds == ["create_run"] * 4 + ["create_experiment"] * 3


def test_a_run_that_is_there_before_has_all_its_points_parameters_and_tags() -> None:
    (created, _), (_, batch) = unit(RETRIEVAL, 1).requests
    assert created is Operation.create_run
    assert [(metric.key, metric.step) for metric in batch.metrics] == [
        (f"metric-{key}", step) for step in range(4) for key in range(2)
    ]
    assert all(0 <= metric.value < 1 for metric in batch.metrics)
    [_, (_, batch)] = unit(SEARCH_RUNS, 1).requests
    assert (len(batch.metrics), len(batch.params), len(batch.tags)) == (2, 3, 4)


def test_a_run_that_logs_nothing_takes_a_single_request() -> None:
    assert names(unit(SEARCH_RUNS.with_options({"metrics": 0, "params": 0, "tags": 0}), 0)) == ["create_run"]


def test_the_name_of_what_is_there_tells_everything_that_makes_a_difference() -> None:
    plan = SEARCH_RUNS
    changed = [
        {"prefill_runs": 31},
        {"prefill_experiments": 1},
        {"metrics": 3},
        {"points": 2},
        {"params": 4},
        {"tags": 5},
        {"seed": 2},
    ]
    told = {wanted(plan.with_options(options)).holds for options in [{}, *changed]}
    assert len(told) == 8
    same = [{"max_results": 20}, {"users": [3]}, {"workload": "retrieval"}]
    assert {wanted(plan.with_options(options)).holds for options in [{}, *same]} == {wanted(plan).holds}


def test_what_is_there_belongs_to_no_job() -> None:
    prefill = wanted(SEARCH_RUNS)
    one, other = (Content(SEARCH_RUNS, session).unit(3, prefill.holds) for session in ("one", "other"))
    assert one.tags == other.tags
    assert one.tags[0] == (PREFILL_TAG, prefill.holds)
    assert one.unique_name == other.unique_name


def test_what_has_to_be_made_is_estimated_and_has_room_in_the_journals() -> None:
    told = estimate(RETRIEVAL)
    assert told.prefill == 7 * 2
    empty = estimate(RETRIEVAL.with_options({"prefill_runs": 0, "prefill_experiments": 0}))
    # A row for each request, and one for the connection of each unit.
    assert told.journal_bytes - empty.journal_bytes >= (told.prefill + 7) * ROW.size


def test_a_workload_that_searches_nothing_wants_nothing_to_be_there() -> None:
    assert prefilled(Plan(prefill_runs=5)) is None
    assert prefilled(SEARCH_EXPERIMENTS.with_options({"prefill_experiments": 0})) is None
