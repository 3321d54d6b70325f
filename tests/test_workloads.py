from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest

from hpcstress.clients import Client, Lacking, Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.content import Content
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from hpcstress.workloads import MODULES, check, describe, leaves_runs_open, load, shares_a_run


class Recorder(Client):
    """Write down what a workload asks for; fail at one request."""

    def __init__(self, fails_at: int = -1, turns: int = 1) -> None:
        async def turn(done: int) -> int | None:
            return 0 if done < turns else None

        super().__init__(Place("0"), Lacking(), turn=turn)
        self.requests: list[tuple[Operation, Any]] = []
        self._fails_at = fails_at

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        self.requests.append((operation, payload))
        if len(self.requests) - 1 == self._fails_at:
            raise Failed(Answer(Outcome.server_error, 500, 0, 0, 0, b""))
        return ()

    def close(self) -> None: ...


def played(plan: Plan, fails_at: int = -1, turns: int = 1) -> list[tuple[Operation, Any]]:
    client = Recorder(fails_at, turns)
    run = Content(plan, "session", 10).run(0, 5)
    try:
        asyncio.run(load(plan.workload)(run, client))
    except Failed:
        assert fails_at >= 0
    return client.requests


def operations(plan: Plan, turns: int = 1) -> list[str]:
    return [operation.name for operation, _ in played(plan, turns=turns)]


# Which there are.


def test_every_workload_says_in_a_line_what_it_does() -> None:
    told = describe()
    assert list(told) == list(MODULES)
    assert all(line.endswith(".") and len(line) < 120 for line in told.values())


@pytest.mark.parametrize("name", MODULES)
def test_every_workload_can_be_loaded_and_plays_a_run(name: str) -> None:
    asked = operations(Plan(workload=name))
    assert asked
    # Who creates runs finishes the last one, but for mlflow-go's benchmark, which leaves them as they are.
    assert name == "create-run" or "create_run" not in asked or asked[-1] == "finish_run"


def test_an_unknown_workload_is_refused_and_near_ones_are_offered() -> None:
    with pytest.raises(UsageRefusal, match=r"^There is no workload 'paralel-runs'\. Did you mean parallel-runs"):
        load("paralel-runs")


# parallel-runs.


def test_a_parallel_run_logs_everything_in_the_order_of_a_training_job() -> None:
    assert operations(Plan(params=1, metrics=1, artifacts=2)) == [
        "create_run",
        "log_params",
        "log_metrics",
        "get_run",
        "log_artifact",
        "log_artifact",
        "get_run",
        "finish_run",
    ]


def test_what_there_is_none_of_is_not_sent() -> None:
    assert operations(Plan(params=0, metrics=0, artifacts=0)) == ["create_run", "get_run", "finish_run"]


def test_a_run_logs_its_content_and_nothing_else() -> None:
    plan = Plan(params=3, metrics=2, artifacts=1)
    run = Content(plan, "session").run(0, 5)
    sent = dict(played(plan))
    assert sent[Operation.create_run] == (run.name, run.tags)
    assert sent[Operation.log_params] == run.params[:]
    assert sent[Operation.log_metrics] == run.metrics[:]
    assert sent[Operation.log_artifact] == run.artifacts[0]


@pytest.mark.parametrize(
    ("params", "metrics", "sizes"),
    [
        (250, 0, [100, 100, 50]),
        (100, 0, [100]),
        (101, 0, [100, 1]),
        (0, 2500, [1000, 1000, 500]),
        (0, 1000, [1000]),
    ],
)
def test_what_is_more_than_a_request_may_hold_is_split_as_the_stock_client_splits_it(
    params: int, metrics: int, sizes: list[int]
) -> None:
    sent = played(Plan(params=params, metrics=metrics, artifacts=0))
    pieces = [payload for operation, payload in sent if operation.name.startswith("log")]
    assert [len(piece) for piece in pieces] == sizes
    run = Content(Plan(params=params, metrics=metrics), "session").run(0, 5)
    assert [item for piece in pieces for item in piece] == run.params[:] + run.metrics[:]


def test_a_failed_operation_ends_the_run() -> None:
    plan = Plan(params=1, metrics=1, artifacts=1)
    whole = played(plan)
    for number in range(len(whole)):
        assert played(plan, fails_at=number) == whole[: number + 1]


# log-batch and create-run, of which users play one iteration after the other.

LOGGING = Plan(workload="log-batch", params=2, metrics=3, tags=1)


def test_a_user_creates_a_run_logs_a_batch_in_each_iteration_and_finishes_the_run() -> None:
    assert operations(LOGGING, turns=3) == ["create_run", *["log_batch"] * 3, "get_run", "finish_run"]


def test_each_iteration_logs_the_runs_next_batch() -> None:
    run = Content(LOGGING, "session").run(0, 5)
    sent = [payload for operation, payload in played(LOGGING, turns=4) if operation is Operation.log_batch]
    assert sent == [run.batch(number) for number in range(4)]


def test_a_run_that_has_a_hundred_batches_is_finished_though_the_user_goes_on() -> None:
    assert operations(LOGGING, turns=1000).count("log_batch") == 100
    assert operations(LOGGING, turns=1000)[-1] == "finish_run"


def test_a_user_that_only_creates_runs_has_a_run_for_each_iteration() -> None:
    assert operations(Plan(workload="create-run"), turns=7) == ["create_run"]


# What a workload module says of itself.


@pytest.mark.parametrize("workload", MODULES)
def test_a_workload_that_leaves_runs_open_says_so(workload: str) -> None:
    done = Counter(operations(Plan(workload=workload, users=(10,), prefill_runs=1, prefill_experiments=1), turns=2))
    assert (done["create_run"] > done["finish_run"]) is leaves_runs_open(workload)


def test_a_workload_may_refuse_a_plan_and_say_that_all_write_to_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(plan: Plan) -> None:
        raise UsageRefusal(f"--users: {plan.users} are not possible here.")

    assert not shares_a_run("create-run")
    check(Plan(workload="create-run"))
    module = import_module("hpcstress.workloads.create_run")
    monkeypatch.setattr(module, "check", refuse, raising=False)
    monkeypatch.setattr(module, "SHARED", True, raising=False)
    assert shares_a_run("create-run")
    with pytest.raises(UsageRefusal, match=r"^--users: \(3,\) are not possible here\.$"):
        check(Plan(workload="create-run", users=(3,)))
    check(Plan(workload="log-batch"))


@pytest.mark.parametrize("ask", [load, shares_a_run, lambda name: check(Plan(workload=name))])
def test_whatever_is_asked_of_a_workload_that_is_not_there_is_refused(ask: Any) -> None:
    with pytest.raises(UsageRefusal, match="There is no workload 'no-such'"):
        ask("no-such")
