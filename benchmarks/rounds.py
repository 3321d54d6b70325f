"""Several things measured in turn, so that what the machine does meanwhile happens to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

T = TypeVar("T")

Say = Callable[[str], None]


def in_turn(contestants: Mapping[str, Callable[[], T]], rounds: int, say: Say) -> dict[str, list[T]]:
    """Call everyone once in every round (A B C A B C ...), and return what each returned."""
    taken: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, measure in contestants.items():
            say(f"round {number} of {rounds}: {name}")
            taken[name].append(measure())
    return taken


def medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: median(values) for name, values in rounds.items()}
