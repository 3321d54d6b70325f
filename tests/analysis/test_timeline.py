from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.timeline import timeline
from hpcstress.record import Operation, Outcome
from tests.analysis.results import MS, SECOND, frame_of, rows, steps_of

attempt = st.fixed_dictionaries(
    {
        "run": st.integers(0, 5),
        "start": st.integers(0, 3 * SECOND),
        "op": st.sampled_from([Operation.connect, Operation.create_run]),
        "outcome": st.sampled_from([Outcome.ok, Outcome.timeout, Outcome.closed]),
    }
).flatmap(lambda row: st.integers(row["start"], 4 * SECOND).map(lambda end: {**row, "end": end}))


@settings(deadline=None, max_examples=50)
@given(st.lists(attempt, min_size=1, max_size=30))
def test_nothing_falls_out_of_the_slices(attempts: list[dict[str, int]]) -> None:
    made = rows(attempts)
    (span,) = timeline(frame_of(made, steps_of(made, [6]))).spans

    good = [row for row in attempts if row["outcome"] == Outcome.ok and row["op"] != Operation.connect]
    assert sum(span.answers) * span.width == pytest.approx(len(good))
    failed = sum(row["outcome"] != Outcome.ok for row in attempts)
    assert sum(counts.sum() for counts in span.failures.values()) == failed
    assert len(span.in_flight) <= 61
    assert span.in_flight.max() <= len({row["run"] for row in attempts})
    assert span.in_flight.min() >= 0


def test_a_run_is_in_flight_in_every_slice_that_it_touches() -> None:
    made = rows(
        [
            {"run": 0, "start": 0, "end": 10 * SECOND},
            {"run": 1, "start": SECOND, "end": 2 * SECOND},
            {"run": 1, "start": 4 * SECOND, "end": 5 * SECOND},
        ]
    )
    (span,) = timeline(frame_of(made, steps_of(made, [2]))).spans

    assert span.width == 0.2
    seconds = np.arange(len(span.in_flight)) * span.width
    expected = 1 + ((seconds >= 1.0) & (seconds <= 5.0))
    assert span.in_flight.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("milliseconds", "width"), [(0, 1e-5), (500, 0.01), (900, 0.02), (2500, 0.05), (5000, 0.1), (50_000, 1.0)]
)
def test_slices_are_as_wide_as_a_round_number(milliseconds: int, width: float) -> None:
    made = rows([{"end": milliseconds * MS}])

    (span,) = timeline(frame_of(made, steps_of(made, [1]))).spans

    assert span.width == width


def test_steps_stand_where_they_began() -> None:
    made = rows([{"step": 0, "end": 2 * SECOND}, {"step": 1, "end": SECOND}])
    steps = steps_of(made, [3, 5])

    first, second = timeline(frame_of(made, steps)).spans

    assert (first.name, first.begin, first.end) == ("3", 0.0, 2.0)
    assert (second.name, second.begin, second.end) == ("5", 3.0, 4.0)


def test_a_step_of_which_the_beginning_is_not_known_is_left_out() -> None:
    made = rows([{"step": 0}, {"step": 1}])
    steps = steps_of(made, [3, 5])
    steps["began"][0] = np.nan

    line = timeline(frame_of(made, steps))

    assert [span.name for span in line.spans] == ["5"]
    assert line.spans[0].begin == 0.0


def test_the_times_of_a_slice_are_those_of_the_requests_that_ended_in_it() -> None:
    made = rows(
        [
            *({"run": run, "end": SECOND, "start": SECOND - (run + 1) * MS} for run in range(100)),
            {"run": 0, "end": 2 * SECOND, "start": SECOND, "outcome": Outcome.timeout},
            {"run": 0, "end": 2 * SECOND, "start": 0, "op": Operation.connect},
            {"run": 0, "end": 5 * SECOND, "start": 5 * SECOND - 7 * MS},
        ]
    )
    (span,) = timeline(frame_of(made, steps_of(made, [100]))).spans

    found = {place: (span.p50[place], span.p99[place]) for place in np.flatnonzero(np.isfinite(span.p50))}
    assert span.width == 0.1
    assert found == {10: (0.05, 0.099), 20: (1.0, 1.0), 50: (0.007, 0.007)}
    assert np.isfinite(span.p99).tolist() == np.isfinite(span.p50).tolist()


def test_slices_are_alike_where_steps_are_to_be_compared_but_for_a_step_shorter_than_one() -> None:
    made = rows([{"step": 0, "end": 500 * MS}, {"step": 1, "end": 100 * SECOND}, {"step": 2, "end": 50 * SECOND}])

    short, long, half = timeline(frame_of(made, steps_of(made, [1, 1, 1])), alike=True).spans

    assert (long.width, half.width) == (2.0, 2.0)
    assert short.width == pytest.approx(0.5)
    assert sum(short.answers) * short.width == pytest.approx(1)
    assert [len(span.answers) for span in (short, long, half)] == [1, 51, 26]


def test_of_an_empty_result_nothing_is_drawn() -> None:
    line = timeline(frame_of(rows([]), steps_of(rows([]), [])))

    assert line.spans == ()


def test_a_step_without_attempts_is_left_out() -> None:
    made = rows([{"step": 1, "end": 5 * MS}])

    assert [span.name for span in timeline(frame_of(made, steps_of(made, [3, 5]))).spans] == ["5"]
