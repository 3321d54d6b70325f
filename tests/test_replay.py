from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.content import Content, Run
from hpcstress.estimate import estimate
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.replay import Fault, Replay, State, acknowledged_requests, compare, found_state, replay
from hpcstress.workloads.parallel_runs import play as play_run
from tests.jobs import REQUESTS, SMALL

# What has to be on the server, on paper.

plans = st.builds(
    Plan,
    params=st.integers(0, 250),
    metrics=st.integers(0, 1100),
    artifacts=st.integers(0, 3),
    seed=st.integers(0, 3),
)


def a_run(plan: Plan) -> Run:
    return Content(plan, "session").run(0, 3)


def paper(run: Run, acknowledged: int) -> Replay:
    return asyncio.run(replay(play_run, run, acknowledged))


@st.composite
def truths(draw: st.DrawFn) -> tuple[Run, Replay, State]:
    """Draw how far a run was acknowledged, and any state that a truthful server may then be in."""
    plan = draw(plans)
    run = a_run(plan)
    told = paper(run, draw(st.integers(1, estimate(plan).requests // estimate(plan).runs)))
    sure, maybe = told.certain, told.possible
    share = draw(st.sampled_from([0, 1, 2, 3]))
    found = State(
        created=True,
        finished=sure.finished or (maybe.finished and draw(st.booleans())),
        params=sure.params | dict(list(maybe.params.items())[::share] if share else {}),
        metrics=sure.metrics | dict(list(maybe.metrics.items())[::share] if share else {}),
    )
    return run, told, found


@given(truths())
def test_whatever_a_truthful_server_may_hold_is_found_in_order(truth: tuple[Run, Replay, State]) -> None:
    assert compare(*truth) == []


@given(truths(), st.data())
def test_any_single_loss_is_found_as_missing(truth: tuple[Run, Replay, State], data: st.DataObject) -> None:
    run, told, found = truth
    sure = told.certain
    kinds = {"params": [*sure.params], "metrics": [*sure.metrics], "finished": [""] * sure.finished}
    lost = [what for what, keys in kinds.items() if keys]
    if not lost:
        return
    what = data.draw(st.sampled_from(lost))
    key = data.draw(st.sampled_from(kinds[what]))
    if what == "finished":
        found.finished = False
    else:
        del getattr(found, what)[key]
    [finding] = compare(run, told, found)
    assert finding.fault is Fault.missing
    assert finding.sentence.startswith(f"{run.name}: ")
    assert key in finding.sentence


@given(truths(), st.data())
def test_any_single_change_is_found_as_wrong(truth: tuple[Run, Replay, State], data: st.DataObject) -> None:
    run, told, found = truth
    kinds: dict[str, list[Any]] = {
        "params": [("param-9999", "new"), *((key, value + "?") for key, value in found.params.items())],
        "metrics": [("metric-9999", 0.5), ("metric-0", float("nan")), *((key, 2.0) for key in found.metrics)],
    }
    if not (told.certain.finished or told.possible.finished):
        kinds["finished"] = [("FINISHED", True)]
    what = data.draw(st.sampled_from([*kinds]))
    key, value = data.draw(st.sampled_from(kinds[what]))
    if what == "finished":
        found.finished = True
    else:
        getattr(found, what)[key] = value
    faults = [finding.fault for finding in compare(run, told, found)]
    assert faults == [Fault.wrong]
    assert key in compare(run, told, found)[0].sentence


def test_one_fault_is_told_in_the_singular_and_many_in_the_plural() -> None:
    def told(change: State) -> list[str]:
        return [finding.sentence for finding in compare(run, paper(run, REQUESTS), change)]

    run = a_run(SMALL)
    whole = paper(run, REQUESTS).certain
    assert told(replace(whole, params=dict([*whole.params.items()][1:]), metrics=whole.metrics | {"x": 1.0})) == [
        f"{run.name}: 1 acknowledged param is missing: 'param-0'.",
        f"{run.name}: 1 metric holds what nobody has sent: 'x'.",
    ]
    assert told(replace(whole, params=whole.params | {"x": "", "y": ""}, metrics={})) == [
        f"{run.name}: 2 params hold what nobody has sent, first 'x'.",
        f"{run.name}: 3 acknowledged metrics are missing, first 'metric-0'.",
    ]


def test_a_run_that_was_never_acknowledged_need_not_be_there() -> None:
    told = paper(a_run(SMALL), 0)
    assert told.certain == State()
    assert told.possible == State(created=True)


def test_artifacts_are_certain_when_their_upload_was_acknowledged() -> None:
    run = a_run(SMALL)
    upload = 5  # create, params, metrics, get, upload
    assert paper(run, upload - 1).certain.artifacts == {}
    assert paper(run, upload - 1).possible.artifacts == {"artifact-0.bin": run.artifacts[0]}
    assert paper(run, upload).certain.artifacts == {"artifact-0.bin": run.artifacts[0]}


def test_everything_acknowledged_leaves_nothing_possible() -> None:
    told = paper(a_run(SMALL), REQUESTS)
    assert told.certain.finished
    assert told.possible == State()


def test_only_requests_that_were_acknowledged_are_counted() -> None:
    rows = np.zeros(5, RECORD)
    rows["run"] = [0, 0, 0, 2, 2]
    rows["op"] = [Operation.connect, Operation.create_run, Operation.log_params, Operation.create_run, 1]
    rows["outcome"] = [Outcome.ok, Outcome.ok, Outcome.ok, Outcome.timeout, Outcome.ok]
    assert acknowledged_requests(rows, 4).tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"info": []},
        {"info": {"status": "FINISHED"}, "data": {"params": [{}]}},
        {"info": {"status": "FINISHED"}, "data": {"metrics": [{"key": "m", "value": "much"}]}},
        {"info": {"status": "FINISHED"}, "data": {"metrics": [{"key": "m", "value": 10**400}]}},
        {"info": {"status": "FINISHED"}, "data": {"metrics": 5}},
        {"info": {"status": "FINISHED"}, "data": [1]},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no description of a run"):
        found_state(answer)


def test_empty_lists_may_be_left_out_and_numbers_may_be_text() -> None:
    assert found_state({"info": {"status": "RUNNING"}}) == State(created=True)
    told = {"info": {"status": "FINISHED"}, "data": {"params": [{"key": "p"}], "metrics": [{"key": "m", "value": "1"}]}}
    assert found_state(told) == State(created=True, finished=True, params={"p": ""}, metrics={"m": 1.0})
