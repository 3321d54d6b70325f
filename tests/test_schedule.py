from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcstress.plan import Plan
from hpcstress.schedule import WARMUP, Step, auditor, due, owned, sample, steps, warmup

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


def test_the_warm_up_has_a_number_that_no_step_has() -> None:
    longest = Plan(runs=(1,), repeats=0xFFFF, warmup=7)
    assert warmup(longest) == Step(WARMUP, 0, 7)
    assert steps(longest)[-1].number == WARMUP - 1


def test_all_runs_of_a_step_are_due_at_once() -> None:
    assert {due(run) for run in range(1000)} == {0}


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
