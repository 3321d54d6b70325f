"""Percentiles with exact confidence intervals, from every value that was measured: never averaged, never binned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Values = np.ndarray[Any, np.dtype[Any]]

LEVELS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Hold a percentile in seconds and the interval that covers the true one with 95 % confidence.

    `enough` is False where the interval reaches the largest value: then there is no telling how much higher the true
    percentile lies, and the number is a lower bound at best ("n too small").
    """

    value: float
    low: float
    high: float
    enough: bool


@dataclass(frozen=True)
class Percentiles:
    """Hold the percentiles of `count` values, and the largest of them, in seconds."""

    count: int
    p50: Estimate
    p95: Estimate
    p99: Estimate
    largest: float


class Sample:
    """Hold every one of some durations, sorted, in nanoseconds."""

    __slots__ = ("values",)

    def __init__(self, values: Values) -> None:
        self.values = np.sort(values)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, level: float) -> float:
        """Return the smallest value, in seconds, that a share of at least `level` of all values does not exceed."""
        return self._seconds(_rank(len(self), level))

    def mean(self) -> float:
        """Return the mean in seconds, nan when there are no values."""
        return float(self.values.mean()) / 1e9 if len(self) else math.nan

    def estimate(self, level: float) -> Estimate:
        """Return a percentile with its interval; all of it is nan when there are no values."""
        if not len(self):
            return Estimate(math.nan, math.nan, math.nan, enough=False)
        low, high = interval_ranks(len(self), level)
        return Estimate(self.at(level), self._seconds(low), self._seconds(high), enough=high < len(self))

    def percentiles(self) -> Percentiles:
        """Return the percentiles that every table and figure shows."""
        return Percentiles(
            len(self),
            **{name: self.estimate(level) for name, level in LEVELS.items()},
            largest=self._seconds(len(self)) if len(self) else math.nan,
        )

    def _seconds(self, rank: int) -> float:
        return float(self.values[rank - 1]) / 1e9


def merge(samples: Iterable[Sample]) -> Sample:
    """Return the sample of all values of some samples: what would have been measured by one."""
    return Sample(np.concatenate([np.zeros(0, np.int64), *(sample.values for sample in samples)]))


def _rank(count: int, level: float) -> int:
    # 0.95 * 20 is 19.000000000000004 in some roundings; half a millionth of a rank is never meant.
    return max(1, math.ceil(level * count - 5e-7))


@lru_cache(maxsize=4096)
def interval_ranks(count: int, level: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the ranks (from 1 to count) of the values that enclose a percentile with at least this confidence.

    How many of `count` independent values lie below the true percentile is binomial(count, level), whatever the
    values' distribution; so the interval is exact, and needs no model (Hahn and Meeker, Statistical Intervals, 5.2).
    Where a side has no such value, the interval ends at the smallest or largest one.
    """
    # Beyond 12 standard deviations (and 20 where the distribution is not normal) lies less than rounding errors.
    mean, spread = count * level, 12 * math.sqrt(count * level * (1 - level)) + 20
    first, last = max(0, math.floor(mean - spread)), min(count, math.ceil(mean + spread))
    below = np.arange(first, last + 1)
    ratios = np.log((count - below[:-1]) / (below[:-1] + 1)) + math.log(level / (1 - level))
    logarithms = np.concatenate([[0.0], np.cumsum(ratios)])
    chances = np.exp(logarithms - logarithms.max())
    at_most = np.cumsum(chances) / chances.sum()
    tail = (1 - confidence) / 2
    # The value of rank r exceeds the percentile if at most r - 1 lie below it, and falls short if at least r do.
    low = first + int(np.searchsorted(at_most, tail, side="right"))
    high = first + int(np.searchsorted(at_most, 1 - tail, side="left")) + 1
    return max(1, low), min(count, high)


def middle(values: Iterable[float]) -> float:
    """Return the median of some numbers; Python's own `statistics` is out of sight for a notebook beside ours."""
    return float(np.median([*values]))
