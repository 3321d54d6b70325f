"""Which runs a rank owns and when each is due: pure functions, no clock, no sleep."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import compress, count, cycle
from typing import NamedTuple

from hpcstress.plan import Plan


class Step(NamedTuple):
    """Hold one rung of the ladder: its number in the job, which climb it belongs to, and how many runs it starts.

    In a closed model the size is that of its users. The variation says what a sweep gives this step for itself.
    """

    number: int
    repeat: int
    size: int
    variation: str = ""


# Runs that wake the server up, and what is made before the load, carry these instead of a step's number: they are
# journaled, and in no result, which has the numbers below.
PREFILL = 0xFFFE
WARMUP = 0xFFFF


def warmup(plan: Plan) -> Step:
    """Return what is played before the ladder."""
    return Step(WARMUP, 0, plan.warmup, plan.rungs[0].variation)


def steps(plan: Plan) -> list[Step]:
    """Return the steps in the order in which they are played: the whole ladder, then the whole ladder again."""
    rungs = plan.rungs
    return [Step(number, number // len(rungs), *rung) for number, rung in enumerate(rungs * plan.repeats)]


def owned(size: int, rank: int, ranks: int) -> range:
    """Return the runs that a rank owns: every `ranks`-th one, so that any number of ranks shares the same runs."""
    return range(rank, size, ranks)


def due(run: int) -> int:
    """Return when a run is due, in nanoseconds after the step's common start: all at once."""
    del run
    return 0


def arrivals(rate: float, kind: str, seed: int, users: int, rank: int, ranks: int) -> Iterator[int]:
    """Yield when iterations of a rank's users are due, in nanoseconds after the common start, without end.

    All ranks together have `rate` iterations a second: at equal distances, or with independent, exponentially
    distributed ones (a Poisson process). They are dealt to the users in turn, so that any number of ranks shares the
    same instants, and each has its users' part of them.
    """
    if not owned(users, rank, ranks):
        return iter(())
    instants = _constant(rate) if kind == "constant" else _poisson(rate, seed)
    return compress(instants, cycle([user % ranks == rank for user in range(users)]))


def _constant(rate: float) -> Iterator[int]:
    return (round(number / rate * 1e9) for number in count())


def _poisson(rate: float, seed: int) -> Iterator[int]:
    generator, instant = random.Random(f"arrivals/{seed}"), 0.0
    while True:
        instant += generator.expovariate(rate)
        yield round(instant * 1e9)


def auditor(rank: int, ranks: int) -> int:
    """Return the rank that reads back what a rank has written: the next one, so that nobody checks itself."""
    return (rank + 1) % ranks


def sample(size: int, limit: int) -> list[int]:
    """Return the runs that are read back: every one, or `limit` of them spread evenly over the step."""
    if size <= limit:
        return list(range(size))
    width = size // limit if limit else 0
    # One run of each of `limit` equal parts, at a place that wanders: a fixed distance could always meet the same rank.
    return [part * size // limit + part * 7919 % width for part in range(limit)]
