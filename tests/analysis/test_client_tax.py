from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.client_tax import Tax, calls_of, compare, pairs_of, same_load
from analysis.frame import Frame, read
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from tests.analysis.results import MS, rows, table, write

FOLDER = Path()
NUMBERS = count()

# A call as a test tells it: its operation, and how often each of its requests was sent before it was answered.
Call = tuple[Operation, list[int]]

CALLS = st.lists(
    st.tuples(
        st.sampled_from([Operation.log_params, Operation.log_artifact, Operation.finish_run]),
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=5,
)
RUNS = st.dictionaries(st.integers(0, 5), CALLS, min_size=1, max_size=4)
FEW = settings(max_examples=25)


class Told:
    """Write the rows of one run, and remember what they mean. Everything takes whole milliseconds."""

    def __init__(self, run: int, step: int = 0) -> None:
        self.run, self.step, self.now, self.seq = run, step, 0, 0
        self.rows: list[dict[str, Any]] = []

    def row(self, op: Operation, took: int, attempt: int = 1, start: int | None = None, **more: Any) -> None:
        begun = self.now if start is None else start
        self.rows.append(
            {
                "step": self.step,
                "run": self.run,
                "seq": self.seq,
                "op": op,
                "attempt": attempt,
                "start": begun * MS,
                "end": (begun + took) * MS if start is None else self.now * MS,
                **more,
            }
        )
        self.seq += 1
        if start is None:
            self.now += took

    def request(self, op: Operation, times: int) -> None:
        """Send a request so often; the second time it has to connect, and it waits for 100 ms."""
        for attempt in range(1, times + 1):
            if attempt > 1:
                self.now += 100
            if attempt == 2 or not self.seq:
                self.row(Operation.connect, 3, attempt)
            outcome = Outcome.ok if attempt == times else Outcome.gateway
            self.row(op, 10, attempt, outcome=outcome)


def by_stock(run: int, calls: list[Call], besides: bool = False) -> Told:
    """Play a run as MLflow's client would: 5 ms of its own at the beginning and the end of each call."""
    told = Told(run)
    for op, requests in calls:
        begun = told.now
        told.now += 5
        if besides:
            told.request(Operation.server_info, 1)
        for times in requests:
            told.request(op, times)
        told.now += 5
        told.row(op, 0, 0, start=begun)
    return told


def by_wire(run: int, calls: list[Call]) -> Told:
    """Play a run as the wire client would: no time of its own, no calls, no connection but the first."""
    told = Told(run)
    for op, requests in calls:
        for _ in requests:
            if not told.seq:
                told.row(Operation.connect, 3)
            told.row(op, 7)
    return told


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the results of this module a place; a property makes many of them."""
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("results")


def frame(told: Iterable[Told], client: str, **options: Any) -> Frame:
    """Return what is read of a file with these runs."""
    health = [{"cpu_seconds": 3.0, "max_rss": 5000}, {"cpu_seconds": 4.0, "max_rss": 4000}]
    # Ranks write at the same time: their rows come in any order, but those of a run in its own.
    attempts = rows(row for run in reversed([*told]) for row in run.rows)
    path = write(
        FOLDER / f"{next(NUMBERS)}.h5",
        attempts,
        {"health": table("health", health), "audit": table("audit", [{"ghosts": 2}])},
        plan=Plan().with_options({"client": client, **options}).to_toml(),
    )
    return read(path)


# What one result of MLflow's client says.


@FEW
@given(RUNS, st.booleans())
def test_calls_are_told_apart_by_what_they_consisted_of(runs: dict[int, list[Call]], besides: bool) -> None:
    told = calls_of(frame([by_stock(run, calls, besides) for run, calls in runs.items()], "stock"))

    every = [call for calls in runs.values() for call in calls]
    assert {each.operation for each in told} == {op.name for op, _ in every}
    for each in told:
        mine = [requests for op, requests in every if op.name == each.operation]
        sent = [times for requests in mine for times in requests]
        assert each.calls == len(mine)
        assert each.requests == len(sent) + len(mine) * besides
        assert each.attempts == sum(sent) + len(mine) * besides
        assert each.repeated == sum(sent) - len(sent)
        assert each.most == max(sent)
        assert each.paused == pytest.approx(0.1 * each.repeated)
        assert each.own == pytest.approx(0.01 * len(mine))
        whole = each.waited + each.paused + each.own
        assert whole == pytest.approx(_total(runs, each.operation, besides))


def _total(runs: dict[int, list[Call]], operation: str, besides: bool) -> float:
    told = [row for run, calls in runs.items() for row in by_stock(run, calls, besides).rows if not row["attempt"]]
    return sum((row["end"] - row["start"]) / 1e9 for row in told if row["op"].name == operation)


def test_a_result_of_the_wire_client_has_no_calls() -> None:
    assert calls_of(frame([by_wire(3, [(Operation.log_params, [1])])], "wire")) == ()


def test_attempts_whose_call_was_cut_off_belong_to_no_call() -> None:
    cut_off, whole = by_stock(0, [(Operation.log_params, [2])]), by_stock(1, [(Operation.log_params, [1])])
    del cut_off.rows[-1]
    [told] = calls_of(frame([cut_off, whole], "stock"))
    assert (told.calls, told.requests, told.attempts, told.most) == (1, 1, 1, 1)


def test_a_request_that_got_no_further_than_connecting_at_first_is_one_request() -> None:
    told = Told(0)
    told.row(Operation.connect, 3, 1, outcome=Outcome.refused)
    told.now += 100
    told.row(Operation.connect, 3, 2)
    told.row(Operation.create_run, 10, 2)
    told.row(Operation.create_run, 0, 0, start=0)
    [calls] = calls_of(frame([told], "stock"))
    assert (calls.requests, calls.attempts, calls.most) == (1, 1, 2)
    assert calls.paused == pytest.approx(0.1)
    assert calls.own == pytest.approx(0)


def test_calls_that_failed_are_counted_and_timed_too() -> None:
    told = by_stock(0, [(Operation.log_params, [1])])
    told.rows[-1]["outcome"] = Outcome.gateway
    [calls] = calls_of(frame([told], "stock"))
    assert (calls.calls, calls.failed, calls.time.count) == (1, 1, 1)


def test_that_a_server_lacks_what_not_every_server_has_is_no_failure() -> None:
    told = by_stock(0, [(Operation.log_params, [1])])
    for row in told.rows[-2:]:
        row |= {"op": Operation.search_prompts, "outcome": Outcome.not_supported}
    stock = frame([told], "stock")
    [calls] = calls_of(stock)
    assert (calls.operation, calls.calls, calls.failed) == ("search_prompts", 1, 0)
    assert compare(stock, stock).stock.failed == 0


# Both clients on one plan.


def compared(stock: dict[int, list[Call]], wire: dict[int, list[Call]], besides: bool = False) -> Tax:
    return compare(
        frame([by_wire(run, calls) for run, calls in wire.items()], "wire"),
        frame([by_stock(run, calls, besides) for run, calls in stock.items()], "stock"),
    )


@FEW
@given(RUNS, st.booleans())
def test_a_call_is_compared_with_the_requests_at_its_place_in_its_run(
    runs: dict[int, list[Call]], besides: bool
) -> None:
    tax = compared(runs, runs, besides)

    every = [call for calls in runs.values() for call in calls]
    assert sum(pair.calls for pair in tax.pairs) == len(every)
    for pair in tax.pairs:
        mine = [requests for op, requests in every if op.name == pair.operation]
        # The first call of a run has to connect.
        connects = sum(calls[0][0].name == pair.operation for calls in runs.values())
        by_itself = (sum(map(len, mine)) * 0.007 + connects * 0.003) / len(mine)
        assert pair.wire_mean == pytest.approx(by_itself)
        assert pair.stock_mean == pytest.approx(_total(runs, pair.operation, besides) / len(mine))
        assert pair.factor == pytest.approx(pair.stock_mean / pair.wire_mean)
        assert pair.wire.count == pair.stock.count == len(mine)


@FEW
@given(RUNS, st.integers(0, 4))
def test_only_what_both_have_played_is_compared(runs: dict[int, list[Call]], played: int) -> None:
    shorter = {run: calls[:played] for run, calls in runs.items()}
    tax = compared(runs, shorter)
    assert sum(pair.calls for pair in tax.pairs) == sum(map(len, shorter.values()))


@FEW
@given(RUNS)
def test_the_whole_job_is_counted_in_calls_of_the_same_size(runs: dict[int, list[Call]]) -> None:
    tax = compared(runs, runs)
    calls = sum(map(len, runs.values()))
    requests = sum(len(requests) for of_run in runs.values() for _, requests in of_run)
    assert (tax.wire.calls, tax.stock.calls) == (calls, calls)
    assert (tax.wire.requests, tax.stock.requests) == (requests, requests)
    assert tax.wire.attempts == requests
    assert tax.stock.attempts == sum(sum(requests) for of_run in runs.values() for _, requests in of_run)
    assert tax.stock.failed == tax.stock.attempts - requests
    assert tax.stock.cpu_per_call == pytest.approx(7.0 / calls)
    assert tax.stock.attempts_per_call == pytest.approx(tax.stock.attempts / calls)
    assert (tax.stock.memory, tax.stock.ghosts) == (5000, 2)


def test_of_jobs_without_a_call_nothing_is_known() -> None:
    tax = compared({0: []}, {0: []})
    assert tax.pairs == ()
    assert math.isnan(tax.wire.cpu_per_call)
    assert math.isnan(tax.stock.attempts_per_call)


# Which results are compared.


def test_results_are_compared_that_have_sent_the_same_wherever_to() -> None:
    wire = frame([], "wire", params=9, uri="http://here", timeout=5, retries="none")
    stock = frame([], "stock", params=9, uri="http://there", timeout=60)
    other = frame([], "wire", params=7)
    assert same_load(wire, stock)
    assert not same_load(other, stock)
    assert pairs_of([other, stock, wire]) == [(wire, stock)]
    assert pairs_of([wire, other]) == []
    assert pairs_of([stock, other]) == []


def test_rows_of_calls_are_no_attempts_of_a_frame() -> None:
    told = by_stock(0, [(Operation.log_params, [2, 1]), (Operation.finish_run, [1])])
    read_back = frame([told], "stock")
    expected = [row["op"] for row in told.rows if row["attempt"]]
    assert read_back.length == len(expected)
    assert np.array_equal(read_back.attempts["op"], expected)
