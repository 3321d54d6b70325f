"""The tree along which ranks speak: a word from rank 0 to all passes through few hands, however many there are.

What hangs below a rank is a range of its neighbours. So what comes up is in the order of the ranks, and what goes down
is a slice.
"""

from __future__ import annotations

from typing import NamedTuple

# Fewer hands cost less than what each of them sleeps between two looks, and many children wait for one parent.
FAN_OUT = 8


class Branch(NamedTuple):
    """Hold a rank's place: whom it hears (nobody, if it is rank 0), and the ranges whose first ranks hear it."""

    parent: int | None
    children: list[range]


def branch(rank: int, size: int) -> Branch:
    """Return the place of a rank in a tree of as many."""
    parent, here = None, range(size)
    while here[0] != rank:
        parent = here[0]
        here = next(part for part in _parts(here) if rank in part)
    return Branch(parent, _parts(here))


def levels(size: int) -> int:
    """Return through how many hands a word goes from rank 0 to the last that hears it."""
    deep = 0
    while size > 1:
        deep, size = deep + 1, -(-(size - 1) // FAN_OUT)
    return deep


def _parts(here: range) -> list[range]:
    """Share out those behind the first, in ranges as equal as can be."""
    rest = here[1:]
    number = min(FAN_OUT, len(rest))
    return [rest[len(rest) * part // number : len(rest) * (part + 1) // number] for part in range(number)]
