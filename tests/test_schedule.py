from __future__ import annotations

import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcstress.plan import Plan
from hpcstress.schedule import PREFILL, WARMUP, Step, arrivals, auditor, due, owned, sample, steps, warmup

SIZES = st.integers(0, 20_000)


@given(SIZES, st.integers(1, 300))
def test_all_ranks_together_own_the_runs_of_one_rank_alone_and_none_twice(size: int, ranks: int) -> None:
    shares = [owned(size, rank, ranks) for rank in range(ranks)]
    assert sorted(run for share in shares for run in share) == list(owned(size, 0, 1)) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(SIZES, st.integers(1, 300))
def test_a_run_belongs_to_its_number_modulo_the_ranks(size: int, ranks: int) -> None:
    assert all(run % ranks == rank for rank in range(ranks) for run in owned(size, rank, ranks))


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=10), st.integers(1, 9))
def test_steps_are_the_ladder_numbered_through_all_repeats(runs: list[int], repeats: int) -> None:
    plan = Plan(runs=tuple(runs), repeats=repeats)
    assert steps(plan) == [
        Step(repeat * len(runs) + rung, repeat, size) for repeat in range(repeats) for rung, size in enumerate(runs)
    ]


def test_warm_up_and_prefill_have_numbers_that_no_step_has() -> None:
    longest = Plan(runs=(1,), repeats=PREFILL, warmup=7)
    assert warmup(longest) == Step(WARMUP, 0, 7, "")
    assert steps(longest)[-1].number == PREFILL - 1 == WARMUP - 2


def test_every_variation_of_a_sweep_has_the_whole_ladder_and_the_warm_up_has_the_first() -> None:
    plan = Plan(runs=(1, 10), repeats=2, sweep="params=5,50", warmup=7)
    assert [tuple(step) for step in steps(plan)] == [
        (0, 0, 1, "params=5"),
        (1, 0, 10, "params=5"),
        (2, 0, 1, "params=50"),
        (3, 0, 10, "params=50"),
        (4, 1, 1, "params=5"),
        (5, 1, 10, "params=5"),
        (6, 1, 1, "params=50"),
        (7, 1, 10, "params=50"),
    ]
    assert warmup(plan) == Step(WARMUP, 0, 7, "params=5")


def test_the_steps_of_users_have_their_number_as_size() -> None:
    assert [step.size for step in steps(Plan(users=(3, 9), repeats=2))] == [3, 9, 3, 9]


def test_all_runs_of_a_step_are_due_at_once() -> None:
    assert {due(run) for run in range(1000)} == {0}


# Arrivals.

SECOND = 10**9
KINDS = st.sampled_from(["poisson", "constant"])
RATES = st.floats(1e-3, 1e5)
SEEDS = st.integers(0, 2**32 - 1)


@given(RATES, KINDS, SEEDS, st.integers(1, 20), st.integers(1, 30), st.integers(0, 60))
def test_all_ranks_together_have_the_arrivals_of_one_rank_alone(
    rate: float, kind: str, seed: int, users: int, ranks: int, count: int
) -> None:
    alone = [*islice(arrivals(rate, kind, seed, users, 0, 1), count)]
    dealt = [number % users % ranks for number in range(count)]
    for rank in range(ranks):
        mine = [instant for instant, owner in zip(alone, dealt, strict=True) if owner == rank]
        assert [*islice(arrivals(rate, kind, seed, users, rank, ranks), len(mine))] == mine
    assert alone == sorted(alone)


@given(st.integers(1, 10), st.integers(1, 30))
def test_a_rank_has_arrivals_for_its_users_and_none_without_them(users: int, ranks: int) -> None:
    counted = [
        sum(
            instant < 100 * users * SECOND for instant in islice(arrivals(1.0, "constant", 1, users, rank, ranks), 2000)
        )
        for rank in range(ranks)
    ]
    assert counted == [100 * len(owned(users, rank, ranks)) for rank in range(ranks)]


@given(RATES)
def test_constant_arrivals_lie_at_equal_distances_and_do_not_drift(rate: float) -> None:
    instants = [*islice(arrivals(rate, "constant", 1, 1, 0, 1), 1001)]
    assert instants[0] == 0
    assert all(abs((after - before) - SECOND / rate) <= 1 + 1e-9 * after for before, after in pairwise(instants))
    assert instants[1000] == pytest.approx(1000 * SECOND / rate, abs=1)


@settings(max_examples=20)
@given(RATES, SEEDS)
def test_the_gaps_of_a_poisson_process_are_exponential_and_independent(rate: float, seed: int) -> None:
    gaps = [
        (after - before) * rate / SECOND
        for before, after in pairwise(islice(arrivals(rate, "poisson", seed, 1, 0, 1), 20_001))
    ]
    # Bounds of eight standard errors and more: one seed in a billion million would miss them.
    assert statistics.fmean(gaps) == pytest.approx(1, abs=0.06)
    assert statistics.variance(gaps) == pytest.approx(1, abs=0.2)
    assert sum(gap < 1 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)
    assert sum(gap < 0.1 for gap in gaps) / len(gaps) == pytest.approx(0.095, abs=0.02)
    assert abs(statistics.correlation(gaps[1:], gaps[:-1])) < 0.06


def test_the_first_poisson_arrival_is_not_at_the_start_where_all_would_meet() -> None:
    assert min(next(arrivals(1.0, "poisson", seed, 1, 0, 1)) for seed in range(100)) > 0


@given(SEEDS, st.integers(1, 1000))
def test_poisson_arrivals_follow_from_the_seed(seed: int, other: int) -> None:
    def first(seed: int) -> list[int]:
        return [*islice(arrivals(10.0, "poisson", seed, 1, 0, 1), 10)]

    assert first(seed) == first(seed)
    assert first(seed) != first(seed + other)


@given(st.integers(2, 5000))
def test_with_several_ranks_nobody_checks_itself_and_everybody_is_checked(ranks: int) -> None:
    auditors = [auditor(rank, ranks) for rank in range(ranks)]
    assert all(other != rank for rank, other in enumerate(auditors))
    assert sorted(auditors) == list(range(ranks))


def test_one_rank_alone_checks_itself() -> None:
    assert auditor(0, 1) == 0


@given(SIZES, st.integers(0, 2000))
def test_a_sample_has_as_many_runs_as_asked_for_in_order_and_none_twice(size: int, limit: int) -> None:
    runs = sample(size, limit)
    assert len(runs) == min(size, limit)
    assert runs == sorted(set(runs))
    assert all(0 <= run < size for run in runs)


@given(SIZES, st.integers(1, 2000))
def test_a_sample_has_one_run_of_each_of_equal_parts(size: int, limit: int) -> None:
    if size > limit:
        for part, run in enumerate(sample(size, limit)):
            assert part * size // limit <= run < (part + 1) * size // limit


def test_a_sample_meets_every_rank_even_where_parts_and_ranks_have_the_same_width() -> None:
    for ranks in (2, 4, 8, 10, 16):
        met = {run % ranks for run in sample(10_000, 1000)}
        assert met == set(range(ranks))
