"""Workloads that loop, played on paper up to any acknowledgement: what is certain, what is possible, and no more."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients.answer import Failed
from hpcstress.content import Content
from hpcstress.plan import Plan
from hpcstress.record import READS, Operation
from hpcstress.replay import Fault, Part, Replay, State, compare, replay
from hpcstress.workloads import load
from tests.workloads.paper import Recorder

PLANS = {
    "log-batch": Plan(workload="log-batch", metrics=3, params=2, tags=2),
    "logging": Plan(workload="logging"),
    "create-run": Plan(workload="create-run"),
    "parameters": Plan(workload="parameters", params=3),
    "artifacts": Plan(workload="artifacts", artifacts=3),
}


def writes(plan: Plan, turns: int, most: int) -> list[Operation]:
    """Return the first writes of a run with so many iterations."""
    client = Recorder(turns)
    asyncio.run(load(plan.workload)(Content(plan, "session").run(0, 5), client))
    return [operation for operation, _ in client.requests if operation not in READS][:most]


@given(st.sampled_from([*PLANS]), st.integers(1, 4), st.integers(1, 40))
def test_paper_has_what_was_acknowledged_and_nothing_else(name: str, turns: int, most: int) -> None:
    plan = PLANS[name]
    made = writes(plan, turns, most)
    paper = asyncio.run(
        replay(load(name), Content(plan, "session").run(0, 5), len(made), made.count(Operation.finish_run))
    )
    assert sum(part.certain.created for part in paper.parts) == made.count(Operation.create_run)
    assert sum(part.certain.finished for part in paper.parts) == made.count(Operation.finish_run)
    batches = made.count(Operation.log_batch)
    if name == "log-batch":
        assert sum(len(part.certain.params) for part in paper.parts) == 2 * batches


def test_an_acknowledged_finish_in_an_earlier_iteration_says_nothing_about_the_next() -> None:
    # Eight writes of the first iteration, and the creation of the second run.
    run = Content(PLANS["logging"], "session").run(0, 5)
    paper = asyncio.run(replay(load("logging"), run, 9, finishes=1))
    first, second = paper.parts
    assert first.certain.finished
    assert second.certain.created
    assert not second.certain.finished


# A value that is written again.


def part(sure: float, maybe: float | None) -> Part:
    certain = State(created=True, metrics={"m": sure}, tags={"t": str(sure)})
    possible = State() if maybe is None else State(metrics={"m": maybe}, tags={"t": str(maybe)})
    return Part(certain, possible)


@pytest.mark.parametrize(
    ("found", "maybe", "faults"),
    [
        (1.0, None, []),
        (1.0, 2.0, []),
        (2.0, 2.0, []),
        (2.0, None, [Fault.wrong, Fault.wrong]),
        (3.0, 2.0, [Fault.wrong, Fault.wrong]),
        (None, 2.0, [Fault.missing, Fault.missing]),
    ],
)
def test_it_is_the_acknowledged_one_or_the_one_after(
    found: float | None, maybe: float | None, faults: list[Fault]
) -> None:
    there = State(created=True) if found is None else State(True, False, {}, {"m": found}, {"t": str(found)})
    assert [finding.fault for finding in compare("a run", part(1.0, maybe), there)] == faults


def test_tags_that_nobody_has_sent_are_the_server_s() -> None:
    there = State(True, False, {}, {"m": 1.0}, {"t": "1.0", "mlflow.user": "me"})
    assert compare("a run", part(1.0, None), there) == []


# Several at once.


@pytest.mark.parametrize("acknowledged", range(1, 8))
def test_of_some_of_several_at_once_nobody_knows_which(acknowledged: int) -> None:
    plan = Plan(workload="artifacts", artifacts=5, uploads=3, method="log_artifacts")
    run = Content(plan, "session").run(0, 5)
    paper = asyncio.run(replay(load("artifacts"), run, acknowledged, finishes=acknowledged // 7))
    certain, possible = paper.parts[0].certain, paper.parts[0].possible
    assert len(certain.artifacts) == (5 if acknowledged >= 6 else 0)
    assert len(possible.artifacts) == (0 if acknowledged >= 6 else 5)
    assert certain.finished == (acknowledged == 7)


def test_one_after_the_other_the_first_ones_are_certain() -> None:
    plan = Plan(workload="artifacts", artifacts=5, method="log_artifacts")
    paper = asyncio.run(replay(load("artifacts"), Content(plan, "session").run(0, 5), 3))
    assert [*paper.parts[0].certain.artifacts] == ["artifact-0.bin", "artifact-1.bin"]


# The iterations of a client.


def test_a_run_has_as_many_iterations_as_it_was_allowed() -> None:
    async def scene(allowed: int) -> tuple[int, int]:
        client, had = Recorder(allowed), 0
        while await client.turn():
            had += 1
        return had, client.turns

    assert [asyncio.run(scene(allowed)) for allowed in (1, 2, 7)] == [(1, 1), (2, 2), (7, 7)]


def test_paper_refuses_to_go_beyond_what_was_acknowledged() -> None:
    async def scene() -> None:
        paper = Replay(1)
        await paper.create_run("a run", ())
        with pytest.raises(Failed):
            await paper.create_run("another", ())

    asyncio.run(scene())
