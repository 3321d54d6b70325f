from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison import MARGIN, MISS, Verdict, intervals_of, judged
from analysis.intervals import PAIRS, Interval, freedom, of_difference, of_pairs, quantile
from hpcstress.rounds import order

numbers = st.floats(-10, 10)


# Student's t.


@pytest.mark.parametrize("tail", [0.25, 0.05, 0.025, 0.001, 1e-5, 1e-8])
def test_with_one_and_two_degrees_of_freedom_the_quantile_is_what_its_formula_says(tail: float) -> None:
    share = 1 - 2 * tail
    assert quantile(tail, 1) == pytest.approx(1 / math.tan(math.pi * tail), rel=1e-6)
    assert quantile(tail, 2) == pytest.approx(share * math.sqrt(2 / (1 - share**2)), rel=1e-6)


@pytest.mark.parametrize(
    ("tail", "free", "printed"),
    [
        (0.05, 3, 2.353),
        (0.025, 4, 2.776),
        (0.005, 5, 4.032),
        (0.025, 10, 2.228),
        (0.0005, 8, 5.041),
        (0.025, 60, 2.000),
        (0.025, 1000, 1.962),
    ],
)
def test_the_quantile_is_that_of_the_tables(tail: float, free: float, printed: float) -> None:
    assert quantile(tail, free) == pytest.approx(printed, abs=0.0006)


@given(st.floats(1, 50), st.floats(1e-6, 0.4))
def test_more_freedom_and_more_risk_make_intervals_shorter(free: float, tail: float) -> None:
    assert quantile(tail, free * 1.1) <= quantile(tail, free) * (1 + 1e-6)
    assert quantile(tail * 1.1, free) < quantile(tail, free)


# Intervals.


@given(st.lists(numbers, min_size=2, max_size=6), st.lists(numbers, min_size=2, max_size=6))
def test_who_is_named_first_changes_the_sign_and_nothing_else(first: list[float], second: list[float]) -> None:
    free = freedom([(first, second)])
    low, value, high = of_difference(first, second, 0.05, free)
    assert free == pytest.approx(freedom([(second, first)]))
    assert of_difference(second, first, 0.05, free) == pytest.approx((-high, -value, -low))
    assert low <= value <= high


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6), numbers)
def test_what_both_servers_of_a_round_have_in_common_falls_out_of_pairs(
    pairs: list[tuple[float, float]], common: float
) -> None:
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    shifted = [[value + common * place for place, value in enumerate(side)] for side in (first, second)]
    assert of_pairs(*shifted, 0.05) == pytest.approx(of_pairs(first, second, 0.05), abs=1e-6)


def test_the_freedom_lies_between_that_of_one_server_and_that_of_both() -> None:
    alike = ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    unlike = ([1.0, 1.0001, 0.9999], [1.0, 30.0, 60.0])
    assert freedom([alike]) == pytest.approx(4)
    assert freedom([unlike]) == pytest.approx(2, abs=1e-6)
    assert 2 < freedom([alike, unlike]) < 4


def test_an_interval_reaches_as_far_as_the_tables_say_on_both_sides() -> None:
    first, second = [1.0, 2.0, 3.0], [3.0, 5.0, 7.0]
    # Variances of 1 and 4, each of three numbers; t of 4 degrees of freedom leaves 2.5 % on either side beyond 2.776.
    reach = 2.776 * math.sqrt(1 / 3 + 4 / 3)
    assert of_difference(first, second, 0.05, 4) == pytest.approx((3 - reach, 3, 3 + reach), abs=0.001)
    # Differences of 2, 3 and 4: t of 2 degrees of freedom.
    reach = 4.303 * math.sqrt(1 / 3)
    assert of_pairs(first, second, 0.05) == pytest.approx((3 - reach, 3, 3 + reach), abs=0.001)


def test_two_rounds_have_no_limits() -> None:
    assert freedom([([1.0, 2.0, 3.0], [2.0, 3.0])]) == 0
    assert of_difference([1.0, 2.0, 3.0], [2.0, 3.0], 0.05, 0) == (-math.inf, 0.5, math.inf)
    assert of_pairs([1.0, 1.0], [2.0, 2.0], 0.05) == (-math.inf, 1.0, math.inf)


def test_rounds_that_do_not_differ_leave_no_doubt() -> None:
    assert of_difference([1.0] * 3, [2.0] * 3, 0.05, freedom([([1.0] * 3, [2.0] * 3)])) == (1, 1, 1)


# Whole comparisons, many times over: servers on a machine that others use.


class Machine(NamedTuple):
    """Say how numbers of rounds vary, as standard deviations of logarithms.

    `run` is what a whole run of a server has, `operation` what each of its operations has for itself. From one run to
    the next the machine goes astray by `walk`, for all servers, and gets slower by `drift`. In a share of runs and
    operations, `stalls`, something takes twice or ten times as long. The second server varies `unlike` times as much;
    so does, where it is `crossed`, the first one instead in every other operation.
    """

    run: float = 0.05
    operation: float = 0.04
    walk: float = 0.0
    drift: float = 0.0
    stalls: float = 0.0
    unlike: float = 1.0
    crossed: bool = False


MACHINES = {
    "quiet": Machine(0.01, 0.01),
    "usual": Machine(),
    "busy": Machine(0.3, 0.1),
    "astray": Machine(walk=0.15),
    "slower and slower": Machine(drift=0.05),
    "stalling": Machine(stalls=0.1),
    "independent": Machine(0.0, 0.1),
    "one server varies more": Machine(unlike=4.0),
    "each varies more in something": Machine(0.0, 0.1, unlike=10.0, crossed=True),
}
QUESTIONS = 12


def compared(
    rng: np.random.Generator, rounds: int, machine: Machine, speed: float = 1.0, *, paired: bool = True
) -> list[Verdict]:
    """Return the verdicts of a comparison of two servers, the second one so many times as fast."""
    times = np.zeros((2, rounds, QUESTIONS))
    state = 0.0
    for number, line in enumerate(order(2, rounds, seed=int(rng.integers(1000)))):
        for server in line:
            state += rng.normal(0, machine.walk) + machine.drift
            own = np.full(QUESTIONS, machine.unlike if server else 1.0)
            if machine.crossed:
                own[::2] = 1.0 if server else machine.unlike
            common = rng.normal(0, machine.run) * own + rng.exponential() * (rng.random() < machine.stalls)
            each = rng.normal(0, machine.operation, QUESTIONS) * own
            each += rng.exponential(1, QUESTIONS) * (rng.random(QUESTIONS) < machine.stalls)
            times[server, number] = state + common + each - math.log(speed) * server
    first, second = -times
    questions = [(list(first[:, at]), list(second[:, at]), paired and rounds >= PAIRS) for at in range(QUESTIONS)]
    return [judged(interval, MARGIN) for interval in intervals_of(questions, MISS / QUESTIONS)]


def times(verdicts: Sequence[list[Verdict]], *wrong: Verdict) -> int:
    """Count the comparisons that say any of these."""
    return sum(bool({*of} & {*wrong}) for of in verdicts)


def one_in_20(number: int) -> float:
    """Return how many of some comparisons may be wrong: 1 in 20, and three times what chance alone adds to that."""
    return 0.05 * number + 3 * math.sqrt(0.05 * 0.95 * number)


@pytest.mark.parametrize("rounds", [3, 5])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_a_server_compared_with_itself_is_faster_or_slower_in_one_comparison_of_20_at_most(
    machine: Machine, rounds: int
) -> None:
    rng = np.random.default_rng(1)
    verdicts = [compared(rng, rounds, machine) for _ in range(100)]
    assert times(verdicts, Verdict.faster, Verdict.slower) <= one_in_20(100)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [3, 5])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_so_it_is_in_two_thousand_comparisons_in_pairs_or_not(machine: Machine, rounds: int) -> None:
    rng = np.random.default_rng(12)
    verdicts = [compared(rng, rounds, machine, paired=bool(number % 2)) for number in range(2000)]
    assert times(verdicts, Verdict.faster, Verdict.slower) <= one_in_20(2000)


@pytest.mark.parametrize("machine", ["quiet", "usual", "slower and slower"])
def test_a_difference_of_30_percent_is_found_in_five_rounds(machine: str) -> None:
    rng = np.random.default_rng(3)
    verdicts = [compared(rng, 5, MACHINES[machine], speed=1.3) for _ in range(60)]
    assert times(verdicts, Verdict.faster) >= 54
    assert times(verdicts, Verdict.slower, Verdict.same) == 0


def test_a_server_that_is_many_times_as_fast_is_found_in_three_rounds_in_everything() -> None:
    rng = np.random.default_rng(4)
    three = [compared(rng, 3, MACHINES["usual"], speed=12) for _ in range(50)]
    assert sum(of == [Verdict.faster] * QUESTIONS for of in three) >= 45


def test_servers_that_are_alike_are_the_same_where_nothing_disturbs_and_undecided_elsewhere() -> None:
    rng = np.random.default_rng(5)
    quiet = [compared(rng, 8, MACHINES["quiet"]) for _ in range(30)]
    busy = [compared(rng, 8, MACHINES["busy"]) for _ in range(30)]
    assert sum(of.count(Verdict.same) for of in quiet) >= 0.9 * 30 * QUESTIONS
    assert times(busy, Verdict.same) == 0


def test_what_differs_by_more_than_the_margin_is_not_called_the_same() -> None:
    rng = np.random.default_rng(6)
    verdicts = [compared(rng, 8, MACHINES["quiet"], speed=1.06) for _ in range(60)]
    assert times(verdicts, Verdict.same) <= 3


@pytest.mark.parametrize("rounds", [1, 2])
def test_two_rounds_decide_nothing_however_large_the_difference(rounds: int) -> None:
    rng = np.random.default_rng(7)
    assert {*compared(rng, rounds, MACHINES["quiet"], speed=1000)} == {Verdict.undecided}


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_verdict_is_where_the_interval_lies(one: float, other: float) -> None:
    low, high = sorted((one, other))
    verdict = judged(Interval(low, (low + high) / 2, high), 0.1)
    if verdict is Verdict.faster:
        assert low > 0
    elif verdict is Verdict.slower:
        assert high < 0
    elif verdict is Verdict.same:
        assert -math.log(1.1) <= low
        assert high <= math.log(1.1)
    else:
        assert low <= 0 <= high
