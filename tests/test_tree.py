from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcstress.tree import FAN_OUT, branch, levels

SIZES = st.integers(1, 3000)


@given(SIZES)
def test_every_rank_but_the_first_hears_exactly_the_one_that_speaks_to_it(size: int) -> None:
    spoken = {rank: [child[0] for child in branch(rank, size).children] for rank in range(size)}
    assert sorted(child for children in spoken.values() for child in children) == [*range(1, size)]
    assert branch(0, size).parent is None
    assert all(branch(child, size).parent == rank for rank, children in spoken.items() for child in children)


@given(SIZES, st.data())
def test_what_hangs_below_a_rank_are_the_neighbours_behind_it(size: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, size - 1))

    def below(rank: int) -> list[int]:
        return [rank, *(one for child in branch(rank, size).children for one in below(child[0]))]

    for child in branch(rank, size).children:
        assert below(child[0]) == [*child]
    assert below(0) == [*range(size)]


@given(SIZES)
def test_nobody_speaks_to_more_than_a_few_and_nobody_waits_for_more_hands_than_the_levels(size: int) -> None:
    hands = {0: 0}
    for rank in range(size):
        children = branch(rank, size).children
        assert len(children) <= FAN_OUT
        hands |= {child[0]: hands[rank] + 1 for child in children}
    assert max(hands.values()) == levels(size)


def test_few_ranks_all_hear_rank_0_and_ten_thousand_are_five_hands_away() -> None:
    assert [levels(size) for size in (1, 2, FAN_OUT + 1, FAN_OUT + 2, 73, 74, 10_000)] == [0, 1, 1, 2, 2, 3, 5]
