from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.statistics import Statistics, StepStatistics, by_rung, measure
from hpcstress.plan import Rung
from hpcstress.record import Operation, Outcome
from tests.analysis.results import MS, SECOND, frame_of, rows, steps_of

SIZES, REPEATS = (3, 6, 3), (0, 0, 1)


@st.composite
def attempt(draw: st.DrawFn) -> dict[str, int]:
    step = draw(st.integers(0, len(SIZES) - 1))
    due = draw(st.integers(0, 10**10))
    start = due + draw(st.integers(0, 10**7))
    return {
        "step": step,
        "run": draw(st.integers(0, SIZES[step] - 1)),
        "rank": draw(st.integers(0, 3)),
        "seq": draw(st.integers(0, 5)),
        "op": draw(st.sampled_from([Operation.connect, Operation.create_run, Operation.log_params])),
        "outcome": draw(st.sampled_from([Outcome.ok, Outcome.ok, Outcome.timeout, Outcome.closed])),
        "due": due,
        "start": start,
        "end": start + draw(st.integers(0, 10**10)),
    }


def measured(attempts: np.ndarray) -> Statistics:
    return measure(frame_of(attempts, steps_of(attempts, SIZES, REPEATS)))


def only(attempts: list[dict[str, object]], size: int = 2) -> StepStatistics:
    made = rows(attempts)
    (step,) = measure(frame_of(made, steps_of(made, [size]))).steps
    return step


@settings(deadline=None, max_examples=50)
@given(st.lists(attempt(), max_size=40), st.randoms(use_true_random=False))
def test_it_does_not_matter_which_rank_wrote_what_and_in_which_order(attempts: list[dict[str, int]], random) -> None:
    whole = measured(rows(attempts))

    # The parts are what the ranks hold, gathered in any order.
    parts = [[row for row in attempts if row["rank"] == rank] for rank in range(4)]
    random.shuffle(parts)
    merged = measured(rows([row for part in parts for row in part]))

    # nan is not equal to itself, but reads the same.
    assert repr(merged.steps) == repr(whole.steps)
    assert repr(merged.operations) == repr(whole.operations)
    assert {key: sample.values.tolist() for key, sample in merged.samples.items()} == {
        key: sample.values.tolist() for key, sample in whole.samples.items()
    }


@settings(deadline=None, max_examples=50)
@given(st.lists(attempt(), max_size=40))
def test_every_attempt_is_counted_once(attempts: list[dict[str, int]]) -> None:
    statistics = measured(rows(attempts))

    assert sum(step.requests + step.connect.count for step in statistics.steps) == len(attempts)
    assert sum(row.attempts for row in statistics.operations) == len(attempts)
    failed = sum(row["outcome"] != Outcome.ok for row in attempts)
    assert sum(step.failed for step in statistics.steps) == failed
    assert sum(row.failed for row in statistics.operations) == failed
    by_cause = [
        count
        for step in statistics.steps
        for counts in (step.failed_requests, step.failed_connections)
        for count in counts.values()
    ]
    assert sum(by_cause) == failed


def test_percentiles_include_the_time_that_failures_took() -> None:
    step = only([{"end": 10 * MS}] * 98 + [{"end": 30 * SECOND, "outcome": Outcome.timeout}] * 2)

    assert step.service.p50.value == 0.01
    assert step.service.p99.value == 30.0
    assert step.service.count == 100


def test_a_connection_is_no_request_but_its_failure_is_a_failure() -> None:
    step = only(
        [
            {"op": Operation.connect, "end": 5 * SECOND},
            {"op": Operation.connect, "start": SECOND, "end": 8 * SECOND, "outcome": Outcome.refused, "run": 1},
            {"end": 10 * MS},
        ]
    )

    assert step.requests == 1
    assert step.service.largest == 0.01
    assert step.connect.largest == 7.0
    assert step.failed == 1
    assert step.failed_requests == {}
    assert step.failed_connections == {"refused": 1}


def test_service_time_begins_with_sending_and_response_time_when_it_was_due() -> None:
    step = only([{"due": 100 * MS, "start": 103 * MS, "end": 110 * MS}])

    assert step.service.p50.value == pytest.approx(0.007)
    assert step.response.p50.value == pytest.approx(0.010)
    assert step.lateness.p50.value == pytest.approx(0.003)


def test_the_wait_of_a_runs_first_attempt_is_not_lateness() -> None:
    step = only([{"seq": 0, "start": 500 * MS, "end": 510 * MS}, {"start": 2 * MS, "due": MS, "end": 20 * MS}])

    assert step.lateness.count == 1
    assert step.lateness.largest == 0.001


def test_a_run_lasts_from_its_due_instant_to_the_end_of_its_last_attempt() -> None:
    step = only(
        [
            {"run": 7, "due": 10 * MS, "start": 12 * MS, "end": 20 * MS},
            {"run": 7, "due": 20 * MS, "start": 20 * MS, "end": 50 * MS},
            {"run": 9, "due": 0, "start": 0, "end": 5 * MS},
        ]
    )

    assert step.run_duration.count == 2
    assert step.run_duration.p50.value == 0.005
    assert step.run_duration.largest == 0.04


def test_throughput_counts_good_answers_and_finished_runs() -> None:
    step = only(
        [
            {"end": SECOND},
            {"end": 2 * SECOND},
            {"end": 4 * SECOND, "outcome": Outcome.server_error, "run": 1},
            {"op": Operation.connect, "end": MS},
        ]
    )

    assert step.duration == 4.0
    assert step.requests_per_second == 0.5
    assert step.runs_finished == 1
    assert step.runs_per_second == 0.25


def test_recovery_is_the_time_to_the_first_answer_to_a_request_sent_after_the_first_failure() -> None:
    step = only(
        [
            {"end": 2 * SECOND, "outcome": Outcome.closed},
            {"start": SECOND, "end": 3 * SECOND},
            {"start": 2 * SECOND, "end": 4 * SECOND, "op": Operation.connect},
            {"start": 3 * SECOND, "end": 5 * SECOND, "outcome": Outcome.gateway},
            {"start": 4 * SECOND, "end": 9 * SECOND},
        ]
    )

    assert step.first_failure == 2.0
    assert step.recovery == 7.0


def test_a_request_sent_at_the_instant_of_the_failure_was_sent_after_it() -> None:
    step = only(
        [{"end": 2 * SECOND, "outcome": Outcome.closed}, {"start": 2 * SECOND, "end": 3 * SECOND}],
    )

    assert step.recovery == 1.0


def test_what_took_no_time_has_no_rate() -> None:
    step = only([{"end": 0}])

    assert step.duration == 0.0
    assert math.isnan(step.runs_per_second)


def test_without_failure_there_is_nothing_to_recover_from() -> None:
    step = only([{}])

    assert step.first_failure is None
    assert step.recovery is None


def test_a_server_that_stays_dead_does_not_recover() -> None:
    step = only([{"end": SECOND, "outcome": Outcome.closed}, {"end": MS}])

    assert step.first_failure == 1.0
    assert step.recovery is None


def test_operations_of_all_repeats_of_a_size_stand_together() -> None:
    attempts = rows([{"step": 0, "end": MS}, {"step": 2, "end": 3 * MS, "outcome": Outcome.auth}, {"step": 1}])
    statistics = measured(attempts)

    first = statistics.operations[0]
    assert (first.size, first.operation, first.attempts, first.failed) == (3, "create_run", 2, 1)
    assert first.service.largest == 0.003
    assert [row.size for row in statistics.operations] == [3, 6]
    assert len(statistics.requests(Rung(3, ""))) == 2


def test_what_only_a_newer_hpcstress_knows_is_shown_as_a_number() -> None:
    made = rows([{"op": 77, "outcome": 99}])
    statistics = measure(frame_of(made, steps_of(made, [1])))

    assert statistics.operations[0].operation == "operation 77"
    assert statistics.steps[0].failed_requests == {"outcome 99": 1}


def test_a_step_in_which_nothing_was_sent_has_no_latency() -> None:
    steps = steps_of(rows([]), [5])
    steps["last_done"] = steps["first_done"] = -1

    (step,) = measure(frame_of(rows([]), steps)).steps

    assert step.requests == 0
    assert math.isnan(step.service.p99.value)
    assert math.isnan(step.duration)
    assert math.isnan(step.requests_per_second)


def test_a_step_that_was_cut_off_lasts_to_its_last_attempt() -> None:
    made = rows([{"end": 3 * SECOND}])
    steps = steps_of(made, [5])
    steps["last_done"] = -1

    (step,) = measure(frame_of(made, steps)).steps

    assert step.duration == 3.0


def test_steps_of_a_size_are_found_in_the_order_of_their_repeats() -> None:
    step = only([{}])
    steps = tuple(
        replace(step, step=number, size=size, repeat=repeat)
        for number, (size, repeat) in enumerate(zip(SIZES, REPEATS, strict=True))
    )

    rungs = by_rung(steps, [Rung(3, ""), Rung(6, "")])
    assert {rung.size: [step.step for step in found] for rung, found in rungs.items()} == {3: [0, 2], 6: [1]}
