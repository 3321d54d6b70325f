"""Closed and open models: users that play one iteration after the other, as soon as they can or when it is due."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.answer import answer_of, remarks_of
from analysis.frame import Frame
from analysis.statistics import StepStatistics, measure
from analysis.timeline import timeline
from analysis.verdict import Value, judge
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from hpcstress.result import TABLES
from tests.analysis.results import MS, frame_of, rows, steps_of, table


def of(attempts: list[dict[str, Any]], size: int = 2, dropped: int = 0, finished: int = 0, **options: Any) -> Frame:
    """Return a job of users with one step and one rank."""
    made = rows(attempts)
    steps = steps_of(made, [size])
    steps["runs_finished"] = finished
    plan = Plan(users=(size,), **{"duration": 10.0, **options})
    health = table("health", [{"step": 0, "dropped": dropped, "wall_seconds": 10.0}])
    return frame_of(made, steps, plan=plan.as_mapping(), health=health)


def only(frame: Frame) -> StepStatistics:
    (step,) = measure(frame).steps
    return step


def iteration(run: int, due: int, start: int, end: int, **told: Any) -> dict[str, Any]:
    return {"run": run, "seq": 0, "due": due * MS, "start": start * MS, "end": end * MS, **told}


def test_users_began_as_many_runs_as_they_began() -> None:
    step = only(of([iteration(run, 0, 0, 10) for run in range(32)], size=8, finished=32))

    assert (step.size, step.runs, step.runs_finished, step.users) == (8, 32, 32, True)


def test_runs_per_second_are_those_that_ended_while_there_was_load() -> None:
    in_time = [iteration(run, 0, 0, 4_000) for run in range(20)]
    late = [iteration(run, 9_000, 9_000, 30_000) for run in range(20, 25)]
    # One failed after the load: it never came to an end, and takes nothing from those that did in time.
    broken = iteration(25, 9_000, 9_000, 12_000, outcome=Outcome.timeout)
    # One was sent again after the load, and ended well.
    again = [
        iteration(26, 9_000, 9_000, 11_000, outcome=Outcome.server_error),
        {"run": 26, "seq": 1, "due": 11_000 * MS, "start": 11_000 * MS, "end": 12_000 * MS, "attempt": 2},
    ]
    step = only(of([*in_time, *late, broken, *again], size=8, finished=26))

    assert (step.runs_finished, step.load_seconds, step.runs_per_second) == (26, 10.0, 2.0)


def test_a_step_of_users_is_taken_when_all_runs_that_they_began_came_to_an_end() -> None:
    attempts = [iteration(run, 0, 0, 10) for run in range(32)]

    whole = measure(of(attempts, size=8, finished=32)).steps
    broken = measure(of(attempts, size=8, finished=29)).steps

    assert answer_of(whole, 1.0, table("audit", [])) == (
        "Takes at least 8 users, the largest step tried, with a p99 of 10 ms and no errors."
    )
    assert answer_of(broken, 1.0, table("audit", [])) == (
        "Does not take even 8 users, the smallest step tried: 3 of 32 runs did not come to an end."
    )


def test_throughput_is_that_of_the_time_given_to_the_users() -> None:
    attempts = [iteration(0, 0, 0, 1000), iteration(1, 0, 0, 9000), iteration(2, 0, 9900, 40_000)]

    step = only(of(attempts, finished=3))

    assert (step.duration, step.load_seconds, step.timed) == (40.0, 10.0, True)
    assert step.requests_per_second == 0.2
    assert step.service.largest == 30.1


def test_users_that_think_to_the_end_have_load_to_the_end() -> None:
    attempts = [iteration(0, 0, 0, 1000)]

    assert only(of(attempts, finished=1)).load_seconds == 10.0
    assert only(replace(of(attempts, finished=1), complete=False)).load_seconds == 1.0


def test_users_that_were_done_early_had_only_that_much_load() -> None:
    step = only(of([iteration(0, 0, 0, 4000)], iterations=1, finished=1))

    assert step.load_seconds == 4.0
    assert step.requests_per_second == 0.25


def test_without_a_duration_the_load_lasts_until_all_is_done() -> None:
    step = only(of([iteration(0, 0, 0, 4000), iteration(1, 0, 0, 8000)], duration=0.0, iterations=1, finished=2))

    assert (step.load_seconds, step.timed) == (8.0, False)
    assert step.requests_per_second == 0.25


def test_operations_count_what_was_answered_while_there_was_load() -> None:
    attempts = [
        iteration(0, 0, 0, 1000),
        iteration(1, 0, 0, 2000, outcome=Outcome.closed),
        iteration(2, 0, 0, 11_000),
        iteration(3, 0, 0, 3000, op=Operation.list_workspaces, outcome=Outcome.not_supported),
    ]
    create, lists = measure(of(attempts)).operations

    assert (create.attempts, create.good, create.failed) == (3, 2, 1)
    assert (create.per_second, create.answers_per_second) == (0.2, 0.1)
    assert (lists.attempts, lists.good, lists.failed) == (1, 0, 0)
    assert create.mean == pytest.approx(14 / 3)


def test_in_a_closed_model_a_runs_first_request_can_be_late_too() -> None:
    step = only(of([iteration(0, 100, 103, 110)]))

    assert step.lateness.largest == 0.003
    assert step.waiting.count == 0


# An open model of two users: 50 iterations a second are due, that is, one every 20 ms.
OPEN = {"rate": 50.0, "arrivals": "constant"}


def test_in_an_open_model_an_iteration_that_was_late_though_a_user_was_free_is_the_generators_fault() -> None:
    step = only(of([iteration(0, 0, 5, 10), iteration(1, 20, 20, 30), iteration(2, 40, 47, 50)], **OPEN))

    assert step.waiting.count == 3
    assert step.waiting.largest == 0.007
    assert step.lateness.largest == 0.007


def test_in_an_open_model_an_iteration_that_was_late_because_its_user_waited_is_not() -> None:
    # Both users wait for a slow server until 500 ms have passed; runs 0, 2, 4 are the first user's.
    attempts = [
        iteration(0, 0, 0, 500),
        iteration(1, 20, 20, 520),
        iteration(2, 40, 501, 900),
        iteration(3, 60, 521, 930),
        iteration(4, 80, 900, 1000),
    ]

    step = only(of(attempts, **OPEN))

    assert step.waiting.largest == 0.82
    assert step.lateness.largest == 0.001
    assert step.response.largest == pytest.approx(0.92)


def test_iterations_within_a_run_are_due_when_they_arrive() -> None:
    # One run of three iterations: the second was due while the first went on, the third long after it.
    attempts = [
        iteration(0, 0, 0, 500),
        iteration(0, 40, 500, 600, seq=1),
        iteration(0, 600, 600, 610, seq=2),
        iteration(0, 2000, 2003, 2010, seq=3),
    ]

    step = only(of(attempts, size=1, **OPEN))

    assert step.waiting.count == 3
    assert step.waiting.largest == 0.46
    assert step.lateness.largest == 0.003


def test_a_pause_between_iterations_is_the_plans() -> None:
    attempts = [iteration(0, 0, 0, 500), iteration(1, 40, 1501, 1600)]

    assert only(of(attempts, size=1, think_time=1.0, **OPEN)).lateness.largest == 0.001
    assert only(of(attempts, size=1, **OPEN)).lateness.largest == 1.001


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2000), st.integers(0, 50)), min_size=1, max_size=20))
def test_the_generator_is_never_later_than_the_iteration(told: list[tuple[int, int, int]]) -> None:
    attempts = [iteration(run, due, due + late, due + late + 5, seq=seq) for seq, (run, due, late) in enumerate(told)]

    step = only(of(attempts, **OPEN))

    assert 0 <= step.lateness.largest <= max(late for _, _, late in told) / 1000
    assert step.lateness.count == len(told)


def test_a_late_generator_is_client_bound_and_a_slow_server_is_not() -> None:
    slow = [iteration(2 * turn + user, turn * 10, turn * 500, turn * 500 + 500) for turn in range(5) for user in (0, 1)]
    late = [iteration(run, run * 20, run * 20 + 15, run * 20 + 25) for run in range(20)]

    for attempts, value in ((slow, Value.VALID), (late, Value.CLIENT_BOUND)):
        frame = of(attempts, **OPEN)
        assert judge(frame, measure(frame).steps).values == {value}


def test_the_objective_of_an_open_model_is_about_the_time_since_requests_were_due() -> None:
    attempts = [iteration(0, 0, 0, 500), iteration(2, 40, 900, 1400)]
    steps = measure(of(attempts, finished=2, **OPEN)).steps

    assert answer_of(steps, 1.0, table("audit", [])) == (
        "Does not take even 2 users at 50 iterations/s, the smallest step tried: "
        "the response p99 is 1.4 s, above the objective of 1 s."
    )
    assert answer_of(steps, 2.0, table("audit", [])) == (
        "Takes at least 2 users at 50 iterations/s, the largest step tried, with a response p99 of 1.4 s and no errors."
    )


def test_dropped_iterations_are_said_and_a_step_with_them_is_not_taken() -> None:
    steps = measure(of([iteration(0, 0, 0, 500), iteration(2, 40, 500, 600)], dropped=3, finished=2, **OPEN)).steps

    assert answer_of(steps, 10.0, table("audit", [])).endswith(
        "3 of 5 iterations that were due were dropped, because every user was waiting for an answer: "
        "the server is too slow for this rate, or the --users are too few for it."
    )
    assert remarks_of(steps, 10.0) == (
        "At 2 users (repeat 1) 3 of 5 iterations that were due were dropped, and the others began up to 0.46 s late.",
    )


def test_what_the_server_does_not_have_is_said_once_and_is_no_failure() -> None:
    attempts = [
        iteration(0, 0, 0, 10),
        iteration(0, 10, 10, 20, seq=1, op=Operation.log_spans, outcome=Outcome.not_supported),
        iteration(1, 0, 0, 10, op=Operation.list_workspaces, outcome=Outcome.not_supported),
    ]
    frame = of(attempts, finished=2)
    steps = measure(frame).steps

    assert steps[0].failed == 0
    assert steps[0].first_failure is None
    assert remarks_of(steps, 1.0) == (
        "The server does not have list workspaces and log spans: once an answer said so, it was left out.",
    )
    assert timeline(frame).spans[0].failures == {}


def test_an_artifact_that_the_server_does_not_take_is_a_failure() -> None:
    step = only(of([iteration(0, 0, 0, 10, op=Operation.log_artifact, outcome=Outcome.not_supported)]))

    assert step.failed_requests == {"not_supported": 1}
    assert step.lacking == ()


def test_an_artifact_that_the_server_leaves_to_its_clients_is_no_failure() -> None:
    # Nothing was sent: it took no time.
    step = only(of([iteration(0, 0, 10, 10, op=Operation.log_artifact, outcome=Outcome.not_supported)]))

    assert step.failed == 0
    assert step.lacking == ("log_artifact",)


def test_of_a_server_that_has_nothing_of_what_was_asked_for_there_is_no_answer() -> None:
    attempts = [iteration(0, 0, 0, 10, op=Operation.log_spans, outcome=Outcome.not_supported)]
    steps = measure(of(attempts)).steps

    assert answer_of(steps, 1.0, np.empty(0, TABLES["audit"])).startswith("There is no answer: of what was asked for")


def test_of_users_the_timeline_shows_how_many_runs_were_under_way_on_average() -> None:
    # One run after the other: at no time more than one.
    attempts = [iteration(run, 0, run * 130, (run + 1) * 130) for run in range(10)]

    (span,) = timeline(of(attempts, size=1)).spans

    assert span.in_flight[:-1].tolist() == pytest.approx([1.0] * (len(span.in_flight) - 1))


def swept(*told: tuple[int, str, int]) -> tuple[StepStatistics, ...]:
    """Return steps of a size, a variation and a p99 in milliseconds."""
    made = rows(
        [
            {"step": number, "run": run, "end": p99 * MS}
            for number, (size, _, p99) in enumerate(told)
            for run in range(size)
        ]
    )
    steps = steps_of(made, [size for size, _, _ in told])
    steps["variation"] = [variation.encode() for _, variation, _ in told]
    return measure(frame_of(made, steps)).steps


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (
            [(1, "params=10", 10), (1, "params=1000", 4000), (1, "params=100", 20)],
            (
                "Takes 1 parallel run (params=100) with a p99 of 20 ms and no errors; "
                "at params=1000 the p99 is 4.0 s, above the objective of 1 s."
            ),
        ),
        (
            [(1, "method=a params=10", 10), (1, "method=a params=99", 40), (1, "method=b params=10", 20)],
            (
                "Takes the largest step tried in each of 2 variations, with no errors; "
                "the slowest was 1 parallel run with method=a params=99, with a p99 of 40 ms."
            ),
        ),
        (
            [(1, "tenants=1", 10), (5, "tenants=1", 40), (1, "tenants=9", 20), (5, "tenants=9", 80)],
            (
                "Takes at least 5 parallel runs in each of 2 variations, with no errors; "
                "the slowest was 5 parallel runs with tenants=9, with a p99 of 80 ms."
            ),
        ),
        (
            [(1, "tenants=1", 10), (5, "tenants=1", 40), (1, "tenants=9", 20), (5, "tenants=9", 8000)],
            (
                "With tenants=9: takes 1 parallel run with a p99 of 20 ms and no errors; "
                "at 5 the p99 is 8.0 s, above the objective of 1 s. "
                "With tenants=1: takes at least 5 parallel runs, the largest step tried, with a p99 of 40 ms "
                "and no errors."
            ),
        ),
    ],
)
def test_every_ladder_has_an_answer(told: list[tuple[int, str, int]], answer: str) -> None:
    assert answer_of(swept(*told), 1.0, table("audit", [])) == answer


def test_of_very_many_ladders_those_that_broke_are_told() -> None:
    told = [(1, f"flavour={letter}", 9000 if letter == "z" else 10) for letter in "abcdefghz"]

    answer = answer_of(swept(*told), 1.0, table("audit", []))

    assert answer.startswith("With flavour=z: does not take even 1 parallel run")
    assert answer.count("With flavour=") == 6
    assert answer.endswith("The table of steps has 3 variations more.")
