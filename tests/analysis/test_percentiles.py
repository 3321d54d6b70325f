from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.percentiles import LEVELS, Sample, interval_ranks, merge

nanoseconds = st.lists(st.integers(0, 10**12), max_size=60)
some = st.lists(st.integers(0, 10**12), min_size=1, max_size=60)
levels = st.sampled_from([*LEVELS.values()])


def sample(values: list[int]) -> Sample:
    return Sample(np.array(values, np.int64))


@settings(deadline=None)
@given(some, levels)
def test_a_percentile_is_the_smallest_value_that_its_share_does_not_exceed(values: list[int], level: float) -> None:
    share = Fraction(str(level))
    enough = [value for value in values if Fraction(sum(other <= value for other in values), len(values)) >= share]

    assert sample(values).at(level) == min(enough) / 1e9


@settings(deadline=None)
@given(st.lists(nanoseconds, max_size=6))
def test_merged_parts_are_the_whole(parts: list[list[int]]) -> None:
    whole = sample([value for part in parts for value in part])

    merged = merge(map(sample, parts))

    assert np.array_equal(merged.values, whole.values)
    if len(whole):
        assert merged.percentiles() == whole.percentiles()


def test_percentiles_are_not_averaged_when_parts_are_merged() -> None:
    quick, slow = sample([1] * 900), sample([100] * 100)

    assert merge([quick, slow]).at(0.5) == 1e-9
    assert merge([quick, slow]).at(0.95) == 100e-9


def binomial(count: int, chance: Fraction) -> list[Fraction]:
    """Return the chance of at most 0, 1, ... successes, exactly."""
    exactly = (math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(count + 1))
    return [*accumulate(exactly)]


@settings(deadline=None)
@given(st.integers(1, 60), levels)
def test_the_interval_is_the_exact_binomial_one(count: int, level: float) -> None:
    tail, chance = Fraction(1, 40), Fraction(str(level))
    at_most = binomial(count, chance)
    low = max((rank for rank in range(1, count + 1) if at_most[rank - 1] <= tail), default=1)
    high = min((rank for rank in range(1, count + 1) if at_most[rank - 1] >= 1 - tail), default=count)

    assert interval_ranks(count, level) == (low, high)


# Hahn and Meeker, Statistical Intervals, table A.15 and the normal approximation for the large one.
@pytest.mark.parametrize(
    ("count", "level", "ranks"), [(20, 0.5, (6, 15)), (100, 0.5, (40, 61)), (10**7, 0.99, (9_899_383, 9_900_617))]
)
def test_the_interval_has_known_values(count: int, level: float, ranks: tuple[int, int]) -> None:
    low, high = interval_ranks(count, level)

    assert low == pytest.approx(ranks[0], abs=1)
    assert high == pytest.approx(ranks[1], abs=1)


def test_the_interval_holds_the_true_percentile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    low, high = interval_ranks(200, 0.95)

    drawn = np.sort(rng.random((4000, 200)), axis=1)
    held = np.mean((drawn[:, low - 1] <= 0.95) & (drawn[:, high - 1] >= 0.95))

    assert 0.95 <= held <= 0.99


@settings(deadline=None)
@given(st.integers(1, 3000), levels)
def test_n_is_too_small_exactly_when_the_interval_reaches_the_largest_value(count: int, level: float) -> None:
    estimate = Sample(np.arange(count)).estimate(level)

    assert estimate.enough == (estimate.high < (count - 1) / 1e9)
    assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize(("level", "least"), [(0.5, 9), (0.95, 110), (0.99, 555)])
def test_it_takes_so_many_requests_for_a_percentile(level: float, least: int) -> None:
    enough = [count for count in range(1, 700) if Sample(np.arange(count)).estimate(level).enough]

    assert enough[0] == pytest.approx(least, abs=3)
    assert enough == [*range(enough[0], 700)]


def test_of_nothing_nothing_is_known() -> None:
    empty = sample([]).percentiles()

    assert empty.count == 0
    assert math.isnan(empty.p50.value)
    assert math.isnan(empty.largest)
    assert not empty.p99.enough
