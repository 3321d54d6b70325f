from __future__ import annotations

from typing import Any

import pytest

from analysis.frame import Frame
from analysis.statistics import measure
from analysis.verdict import Value, Verdict, cpu_share, judge
from tests.analysis.results import MS, frame_of, rows, steps_of, table

US = 1000


def job(
    *,
    service: int = 10 * MS,
    slowest: int | None = None,
    late: int = 0,
    lag_p50: int = 0,
    lag_p99: int = 0,
    cpu: float = 0.1,
    error: int = 0,
    drift: float = 0.0,
    clock: int = -1,
    **parts: Any,
) -> Frame:
    """Return a job of one rank and two steps, of which the second is as told."""
    slow = slowest or service
    attempts = rows(
        [{"step": 0, "run": run, "end": 50 * MS} for run in range(10)]
        + [
            # Two of a hundred are late or slow: so many make a p99.
            {
                "step": 1,
                "run": run,
                "start": late if run < 2 else 0,
                "end": (late if run < 2 else 0) + (slow if run >= 98 else service),
            }
            for run in range(100)
        ]
    )
    steps = steps_of(attempts, [10, 100])
    health = table(
        "health",
        [
            {"step": 0, "rank": 0, "cpu_seconds": 0.1, "wall_seconds": 1.0, "clock_error_ns": clock},
            {
                "step": 1,
                "rank": 7,
                "cpu_seconds": cpu,
                "wall_seconds": 1.0,
                "lag_p50_ns": lag_p50,
                "lag_p99_ns": lag_p99,
                "began_ns": 300 * US,
                "clock_error_ns": clock,
            },
        ],
    )
    ranks = table(
        "ranks",
        [
            {"rank": 0, "host": "a", "complete": True},
            {"rank": 7, "host": "b", "complete": True, "error_ns": error, "drift_ppm": drift},
        ],
    )
    return frame_of(attempts, steps, **{"health": health, "ranks": ranks, **parts})


def verdict(frame: Frame) -> Verdict:
    return judge(frame, measure(frame).steps)


VALID, CLIENT, CLOCK, INCOMPLETE = (
    Value.VALID,
    Value.CLIENT_BOUND,
    Value.CLOCK_UNSURE,
    Value.INCOMPLETE,
)


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ({}, {VALID}),
        # Lateness matters beside the service time, p99 beside p99, and never below a millisecond.
        ({"late": 5 * MS, "slowest": 100 * MS}, {VALID}),
        ({"late": 11 * MS, "slowest": 100 * MS}, {CLIENT}),
        ({"late": 1 * MS}, {VALID}),
        ({"late": 1 * MS, "service": 5 * MS}, {VALID}),
        ({"late": 1 * MS + US}, {CLIENT}),
        ({"late": 900 * US, "service": 1 * MS}, {VALID}),
        ({"late": 90 * MS, "service": 1000 * MS}, {VALID}),
        ({"late": 110 * MS, "service": 1000 * MS}, {CLIENT}),
        # Loop lag: p99 beside p99, p50 beside p50.
        ({"lag_p99": 5 * MS}, {CLIENT}),
        ({"lag_p99": 5 * MS, "slowest": 100 * MS}, {VALID}),
        ({"lag_p99": 11 * MS, "slowest": 100 * MS}, {CLIENT}),
        ({"lag_p99": 5 * MS, "lag_p50": 2 * MS, "slowest": 100 * MS}, {CLIENT}),
        ({"lag_p99": 900 * US, "service": 1 * MS}, {VALID}),
        # CPU.
        ({"cpu": 0.90}, {VALID}),
        ({"cpu": 0.91}, {CLIENT}),
        # Clocks.
        ({"error": 1 * MS}, {VALID}),
        ({"error": 2 * MS}, {CLOCK}),
        ({"error": 2 * MS, "service": 30 * MS}, {VALID}),
        ({"error": 900 * US, "service": 1 * MS}, {VALID}),
        ({"drift": 2000.0}, {CLOCK}),
        ({"drift": -2000.0}, {CLOCK}),
        ({"drift": 100.0}, {VALID}),
        # Completeness.
        ({"complete": False}, {INCOMPLETE}),
        ({"complete": False, "late": 5 * MS, "error": 5 * MS}, {INCOMPLETE, CLIENT, CLOCK}),
    ],
)
def test_the_verdict_follows_from_the_evidence(told: dict[str, Any], values: set[Value]) -> None:
    found = verdict(job(**told))

    assert found.values == values
    assert all(finding.evidence.endswith(".") for finding in found.findings)


def test_the_gravest_value_is_named_first() -> None:
    found = verdict(job(complete=False, late=5 * MS, error=5 * MS))

    assert found.title == "INCOMPLETE, CLOCK-UNSURE, CLIENT-BOUND"


def test_the_evidence_says_where_and_how_much() -> None:
    late, lag, cpu = verdict(job(late=5 * MS, lag_p99=8 * MS, cpu=0.97)).findings

    assert "100 runs (repeat 1)" in late.evidence
    assert "5.0 ms" in late.evidence
    assert "beside a service time of 10 ms (p99)" in late.evidence
    assert "(so in 1 of 2 steps)" in late.evidence
    assert "on rank 7" in lag.evidence
    assert "8.0 ms (p99)" in lag.evidence
    assert "rank 7 used 97% of a core" in cpu.evidence


def test_the_clocks_evidence_names_the_worst_rank() -> None:
    (finding,) = verdict(job(error=5 * MS)).findings

    assert finding.evidence.startswith(
        "The clock of rank 7 is known only within 5.0 ms, but a request usually took 10 ms"
    )


def test_what_is_missing_is_named() -> None:
    ranks = table("ranks", [{"rank": 0, "complete": True}, {"rank": 3, "host": "n\x1b[2J3"}, {"rank": 4, "host": "n4"}])
    (finding,) = verdict(job(complete=False, ranks=ranks)).findings

    assert finding.evidence == "2 of 3 ranks did not come to an end (rank 3 on n [2J3 and 1 more)."


def test_a_job_that_was_stopped_is_incomplete_though_all_ranks_came_to_an_end() -> None:
    (finding,) = verdict(job(complete=False)).findings

    assert finding.evidence == "Not all of the plan was done; the notes say why."


def test_a_result_without_attempts_is_incomplete() -> None:
    found = verdict(frame_of(rows([]), steps_of(rows([]), [])))

    assert found.values == {INCOMPLETE}
    assert found.answer == "There is no answer: no step was played."


@pytest.mark.parametrize(("seconds", "values"), [(1, {VALID}), (30, {CLOCK})])
def test_clocks_drift_as_long_as_the_job_lasts(seconds: int, values: set[Value]) -> None:
    attempts = rows([{"run": run, "end": 10 * MS} for run in range(9)] + [{"run": 9, "end": seconds * 1000 * MS}])
    ranks = table("ranks", [{"rank": 1, "drift_ppm": 100.0, "complete": True}])

    assert verdict(frame_of(attempts, steps_of(attempts, [10]), ranks=ranks)).values == values


def test_of_several_lags_the_one_that_weighs_most_is_told() -> None:
    attempts = rows([{"step": 0, "end": 10 * MS}, {"step": 1, "end": 100 * MS}])
    health = table(
        "health", [{"step": 0, "rank": 4, "lag_p99_ns": 9 * MS}, {"step": 1, "rank": 5, "lag_p99_ns": 20 * MS}]
    )

    (finding,) = verdict(frame_of(attempts, steps_of(attempts, [1, 1]), health=health)).findings

    assert "on rank 4 at 1 run (repeat 1) by 9.0 ms" in finding.evidence
    assert "(so in 2 of 2 steps)" in finding.evidence


def test_a_valid_measurement_says_how_well_the_clocks_agree() -> None:
    (finding,) = verdict(job(error=20 * US)).findings

    assert finding.evidence == (
        "2 ranks delivered every attempt, kept up with the server, agree on the time within 20 µs."
    )


def test_ranks_of_one_kernel_have_the_same_clock() -> None:
    (finding,) = verdict(job(error=0)).findings

    assert finding.evidence == "2 ranks delivered every attempt, kept up with the server, have the same clock."


def test_it_says_how_far_apart_ranks_truly_began_and_corrected_drift_is_no_doubt() -> None:
    health = [{"step": step, "rank": rank, "wall_seconds": 1.0} for step in (0, 1) for rank in (0, 7)]
    for row, began in zip(health, (0, 300 * US, 100 * US, -50 * US), strict=True):
        row["began_ns"] = began
    (finding,) = verdict(job(error=20 * US, drift=1e6, health=table("health", health))).findings
    assert finding.evidence.endswith("within 20 µs, and began each step within 300 µs.")


def began(*ranks: int, wrong: int = 0, **felt: int) -> Any:
    """Return what two ranks felt in two steps; the second began so many ns after the first in each."""
    rows = [
        {"step": step, "rank": rank, "wall_seconds": 1.0, "clock_error_ns": wrong} for step in (0, 1) for rank in (0, 7)
    ]
    for step, late in enumerate(ranks):
        rows[2 * step + 1] |= {"began_ns": late, **felt}
    return table("health", rows)


def test_a_rank_that_began_when_others_had_their_answers_makes_the_generator_the_bound() -> None:
    # A tenth of a second may be the scheduler of a crowded node.
    assert verdict(job(health=began(0, 100 * MS))).values == {VALID}
    (finding,) = verdict(job(health=began(0, 101 * MS))).findings
    assert finding.value is Value.CLIENT_BOUND
    assert (
        "rank 7 began 0.10 s after the first, when a request usually took 10 ms (so in 1 of 2 steps)"
        in finding.evidence
    )
    assert verdict(job(service=300 * MS, health=began(0, 300 * MS))).values == {VALID}
    assert verdict(job(service=300 * MS, health=began(0, 301 * MS))).values == {CLIENT}


def test_a_rank_that_stood_still_makes_the_generator_the_bound() -> None:
    assert verdict(job(health=began(0, 0, lag_max_ns=1000 * MS))).values == {VALID}
    (finding,) = verdict(job(health=began(0, 0, lag_max_ns=1001 * MS))).findings
    assert finding.value is Value.CLIENT_BOUND
    assert "stood still: rank 7 for 1.0 s at " in finding.evidence


def test_where_starts_are_known_so_is_how_wrong_they_may_be() -> None:
    assert verdict(job(error=9 * MS, health=began(0, 0, wrong=1000 * US))).values == {VALID}
    (finding,) = verdict(job(health=began(0, 0, wrong=1100 * US))).findings
    assert finding.value is Value.CLOCK_UNSURE
    assert "The clock of rank 0 is known only within 1.1 ms, but a request usually took 10 ms at " in finding.evidence


def test_a_result_in_which_no_rank_reported_can_be_judged() -> None:
    assert verdict(job(ranks=table("ranks", []), health=table("health", []))).values == {VALID}


def test_one_rank_has_one_clock() -> None:
    ranks = table("ranks", [{"rank": 0, "complete": True}])

    (finding,) = verdict(job(ranks=ranks)).findings

    assert finding.evidence == "The generator (1 rank) delivered every attempt and kept up with the server."


def test_a_step_in_which_nothing_was_sent_says_nothing_about_the_generator() -> None:
    frame = frame_of(
        rows([]),
        steps_of(rows([]), [3]),
        length=1,
        health=table("health", [{"lag_p99_ns": 50 * MS, "lag_p50_ns": 50 * MS}]),
        ranks=table("ranks", [{"error_ns": 50 * MS}]),
    )

    assert verdict(frame).values == {VALID}


def beginnings(apart: int, took: int) -> Frame:
    """Return a job whose hundred runs began one after the other, `apart` nanoseconds each, and took so long."""
    attempts = rows([{"run": run, "seq": 0, "start": run * apart, "end": run * apart + took} for run in range(100)])
    return frame_of(attempts, steps_of(attempts, [100]))


def test_runs_that_were_not_begun_at_once_were_not_parallel() -> None:
    [finding] = verdict(beginnings(MS, 20 * MS)).findings
    assert finding.value is Value.CLIENT_BOUND
    assert "at 100 runs (repeat 1) no more than 20 were under way together" in finding.evidence


@pytest.mark.parametrize(("apart", "took"), [(MS, 1000 * MS), (MS // 200, MS // 10)])
def test_runs_that_were_under_way_together_or_began_within_a_moment_are_as_asked(apart: int, took: int) -> None:
    assert verdict(beginnings(apart, took)).values == {Value.VALID}


def test_the_cpu_share_is_that_of_the_whole_step() -> None:
    health = table(
        "health",
        [
            {"step": 0, "cpu_seconds": 1.0},
            {"step": 1, "rank": 0, "cpu_seconds": 1.0, "wall_seconds": 2.0},
            # Nothing to do, and busy with it.
            {"step": 1, "rank": 1, "cpu_seconds": 0.01, "wall_seconds": 0.01},
        ],
    )

    assert cpu_share(health).tolist() == [0.0, 0.5, 0.005]
