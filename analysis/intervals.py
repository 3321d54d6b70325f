"""By how much two servers differ, as an interval that respects what is alike: Welch's and Student's t over rounds.

Requests of one run follow each other, runs of one step share a server that is warm or busy, and a server that is
deployed anew on a machine that others use is another one. So a round gives one number, however many requests it had,
and only rounds are independent. Resampling would not help: of three rounds it knows ten different means, and its
intervals come out far too short; and resampling requests or runs within a round says nothing about the next round.

Two ways, chosen by the number of rounds and never by what they gave, because a choice that looks at the numbers finds
differences that are not there:

* Each server for itself (Welch). Rounds of one server may vary more than those of another. How many degrees of freedom
  that leaves is asked of all questions together: of two or three numbers alone it would be luck. Where the machine gets
  slower or faster for all, intervals become wider than they need to be, and nothing wrong is said.
* In pairs (Student). What both servers of a round have in common falls out. It costs half of the degrees of freedom:
  with fewer than `PAIRS` rounds that is more than it brings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

PAIRS = 5
# Two rounds that are slow on one side and not on the other occur by chance too often.
LEAST = 3

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(60)
_HALVINGS = 200


class Interval(NamedTuple):
    """Hold a number and the limits between which the true one lies."""

    low: float
    value: float
    high: float


Numbers = Sequence[float]


def freedom(questions: Sequence[tuple[Numbers, Numbers]]) -> float:
    """Return the degrees of freedom of differences between two servers: Welch's and Satterthwaite's, on the average.

    The average is that of what each question leaves, not of variances: where one server varies more in some questions
    and the other one in others, their variances would look alike. Questions that have fewer than `LEAST` rounds of a
    server say nothing; without any other, the number is 0.
    """
    known = [both for both in questions if min(map(len, both)) >= LEAST]
    return float(np.mean([_freedom(*both) for both in known])) if known else 0.0


def _freedom(first: Numbers, second: Numbers) -> float:
    shares, left = (_share(first), _share(second)), (len(first) - 1, len(second) - 1)
    if not any(shares):
        return float(sum(left))
    # Relative to the larger one: the square of a tiny number is 0.
    parts = [share / max(shares) for share in shares]
    return sum(parts) ** 2 / sum(part**2 / rounds for part, rounds in zip(parts, left, strict=True))


def of_difference(first: Numbers, second: Numbers, miss: float, free: float) -> Interval:
    """Return by how much the mean of `second` lies above that of `first`; the interval misses with probability `miss`.

    `free` are the degrees of freedom. Nobody can say how much rounds vary of which there are fewer than `LEAST`: then
    the interval is endless.
    """
    value = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < LEAST:
        return Interval(-math.inf, value, math.inf)
    reach = quantile(miss / 2, free) * math.sqrt(_share(first) + _share(second))
    return Interval(value - reach, value, value + reach)


def _share(numbers: Numbers) -> float:
    """Return the variance of the mean."""
    return float(np.var(numbers, ddof=1)) / len(numbers)


def of_pairs(first: Numbers, second: Numbers, miss: float) -> Interval:
    """Return the same of numbers that belong together two by two, such as those of one round."""
    differences = np.asarray(second) - np.asarray(first)
    value, number = float(differences.mean()), len(differences)
    if number < LEAST:
        return Interval(-math.inf, value, math.inf)
    reach = quantile(miss / 2, number - 1) * float(differences.std(ddof=1)) / math.sqrt(number)
    return Interval(value - reach, value, value + reach)


@lru_cache
def quantile(tail: float, freedom: float) -> float:
    """Return what Student's t with so many degrees of freedom, 1 or more, exceeds with the probability `tail`."""
    # With t = sqrt(freedom) / tan(angle) the tail is the integral of sin^(freedom - 1) from 0 to the angle.
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        angle = (low + high) / 2
        if not low < angle < high:
            break
        low, high = (angle, high) if _tail(angle, freedom) < tail else (low, angle)
    return math.sqrt(freedom) / math.tan((low + high) / 2)


def _tail(angle: float, freedom: float) -> float:
    # Along the fourth root of the angle what is integrated is smooth, also where the exponent is a fraction.
    place = (_NODES + 1) / 2
    integral = 2 * angle * float(_WEIGHTS @ (place**3 * np.sin(angle * place**4) ** (freedom - 1)))
    whole = math.exp(math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return integral / whole
