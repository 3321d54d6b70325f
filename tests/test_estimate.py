from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcstress.clients import Place
from hpcstress.clients.dial import Dialer
from hpcstress.clients.null import Null
from hpcstress.clients.wire import Wire
from hpcstress.content import Content
from hpcstress.errors import UsageRefusal
from hpcstress.estimate import Estimate, estimate
from hpcstress.journal import HEADER_SIZE, Journal
from hpcstress.plan import Plan
from hpcstress.record import RECORD, ROW, Operation
from hpcstress.schedule import steps, warmup
from hpcstress.target import from_environment
from hpcstress.worker import Share, Tally, Worker
from hpcstress.workloads import load
from tests.peers import Peer, Request, http_server, reply
from tests.simulated import simulate

RUN_ID = "0123456789abcdef" * 2
CREATED = b'{"run": {"info": {"run_id": "%s", "artifact_uri": "mlflow-artifacts:/1/%s/artifacts"}}}'

plans = st.builds(
    Plan,
    runs=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    repeats=st.integers(1, 2),
    warmup=st.integers(0, 3),
    params=st.sampled_from([0, 1, 99, 100, 101, 250]),
    metrics=st.sampled_from([0, 1, 1000, 1001]),
    artifacts=st.integers(0, 3),
    artifact_size=st.integers(1, 5000),
)


async def play(plan: Plan, clients: Null | Wire) -> None:
    """Play the runs of a plan, one after the other."""

    async def turns(done: int) -> int | None:
        return 0 if done < plan.iterations else None

    content, play_run = Content(plan, "0" * 12), load(plan.workload)
    for size in (plan.warmup, *plan.steps):
        for run in range(size):
            client = clients.client(run, 0, turns)
            await play_run(content.run(0, run), client)
            client.close()


def rows_of(journal: Journal) -> np.ndarray:
    return np.concatenate([np.zeros(0, RECORD), *journal.rows()])


@settings(max_examples=30)
@given(plan=plans)
def test_the_estimate_is_what_a_client_that_sends_nothing_records(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan
) -> None:
    told = estimate(plan)
    with Journal(tmp_path_factory.mktemp("journal") / "j.rows", 0, {}) as journal:
        uvloop.run(play(plan, Null(journal, 1, 0.0, 0.0)))
        rows = rows_of(journal)
    assert told.runs == plan.warmup + sum(plan.steps)
    assert told.requests == len(rows)
    counted = Counter(Operation(code).name for code in rows["op"].tolist())
    assert {name: told.runs * count for name, count in told.requests_per_run[0].items()} == counted


loads = st.builds(
    Plan,
    workload=st.sampled_from(["create-run", "log-batch", "parallel-runs"]),
    users=st.lists(st.integers(1, 2), max_size=2).map(tuple),
    runs=st.just((1, 3)),
    iterations=st.sampled_from([0, 1, 7, 100, 101]),
    repeats=st.integers(1, 2),
    warmup=st.integers(0, 2),
    params=st.sampled_from([1, 101]),
    metrics=st.just(1),
    sweep=st.sampled_from(["", "params=1,150", "iterations=1,5 metrics=1,1500"]),
)


@settings(max_examples=20)
@given(plan=loads)
def test_the_estimate_is_what_users_and_variations_record(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    told = estimate(plan)
    with Journal(tmp_path_factory.mktemp("journal") / "j.rows", 0, {}) as journal:
        for step in (warmup(plan), *steps(plan)):
            share = Share(step, Content(plan.varied(step.variation), "0" * 12), 0, 1)
            worker = Worker(load(plan.workload), Null(journal, 1, 0.0, 0.0), 60.0)
            simulate(worker.play_step(share, 0, Tally(0), lambda: False))
        rows = rows_of(journal)
    assert told.requests == len(rows)
    assert told.runs == np.count_nonzero(rows["seq"] == 0)


def test_users_with_a_duration_send_at_least_one_iteration_each_and_with_a_rate_what_becomes_due() -> None:
    plan = Plan(workload="create-run", users=(3, 5), repeats=2, warmup=0, duration=60)
    assert estimate(plan).requests == 2 * (3 + 5)
    # Every user's part is rounded up.
    assert estimate(plan.with_options({"rate": 10})).requests == 2 * (3 * 200 + 5 * 120)
    assert estimate(plan.with_options({"rate": 0.01})).requests == 2 * (3 + 5)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(workload="log-batch", runs=(2,), repeats=1, warmup=0, iterations=3, params=5, metrics=7, tags=2),
        Plan(runs=(1, 3), repeats=2, warmup=2, artifact_size=1234),
        Plan(runs=(2,), repeats=1, warmup=0, params=250, metrics=1001, artifacts=3, artifact_size=300_000),
        Plan(runs=(1,), repeats=1, warmup=0, params=0, metrics=0, artifacts=0),
    ],
)
def test_the_bytes_are_what_a_server_receives_up_to_the_width_of_ids_and_times(tmp_path: Path, plan: Plan) -> None:
    async def scene() -> Peer:
        async with http_server(answer) as server:
            target = from_environment(server.uri, {"HOME": "/nonexistent"})
            dialer = Dialer(target)
            await dialer.resolve()
            await play(plan, Wire(dialer, journal, Place("0"), 60.0))
            return server

    def answer(request: Request) -> bytes:
        return reply(CREATED % (RUN_ID.encode(), RUN_ID.encode()))

    told = estimate(plan)
    with Journal(tmp_path / "j.rows", 0, {}) as journal:
        server = uvloop.run(scene())
        length = journal.length
    assert told.requests == len(server.requests)
    assert told.journal_bytes == length * ROW.size == (tmp_path / "j.rows").stat().st_size - HEADER_SIZE - ROW.size
    received = sum(len(request.body) for request in server.requests)
    # Names of runs, steps and metrics may be some characters longer or shorter, in every request.
    assert abs(told.body_bytes - received) <= 4 * told.requests + 4 * told.runs * plan.metrics


def test_everything_that_a_ladder_adds_up_to_is_counted() -> None:
    plan = Plan(runs=(10, 100), repeats=3, warmup=20, params=250, metrics=10, artifacts=2, artifact_size=10**8)
    told = estimate(plan)
    per_run = {"create_run": 1, "log_params": 3, "log_metrics": 1, "get_run": 2, "log_artifact": 2, "finish_run": 1}
    assert told.requests_per_run == (per_run,)
    assert told.runs == 350
    assert told.requests == 350 * 10
    assert told.journal_bytes == 350 * 11 * 64
    assert told.body_bytes == pytest.approx(350 * (2 * 10**8 + 20_000), abs=350 * 20_000)


def test_estimating_makes_no_artifact_however_large() -> None:
    told = estimate(Plan(runs=(10_000,), artifacts=1, artifact_size=10**12))
    assert isinstance(told, Estimate)
    assert told.body_bytes > 2 * 10**16


def test_a_run_with_more_requests_than_a_row_can_number_is_refused() -> None:
    most = Plan(params=0, metrics=0, artifacts=(1 << 15) - 4)
    assert estimate(most).requests_per_run[0]["log_artifact"] == (1 << 15) - 4
    with pytest.raises(UsageRefusal, match=r"sends more than 32768 requests: take fewer params, metrics, artifacts\."):
        estimate(most.with_options({"artifacts": most.artifacts + 1}))
