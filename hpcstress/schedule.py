"""Which runs a rank owns and when each is due: pure functions, no clock, no sleep."""

from __future__ import annotations

from typing import NamedTuple

from hpcstress.plan import Plan


class Step(NamedTuple):
    """Hold one rung of the ladder: its number in the job, which climb it belongs to, and how many runs it starts."""

    number: int
    repeat: int
    size: int


# Runs that wake the server up carry this step's number: they are journaled, and in no result.
WARMUP = 0xFFFF


def warmup(plan: Plan) -> Step:
    """Return what is played before the ladder."""
    return Step(WARMUP, 0, plan.warmup)


def steps(plan: Plan) -> list[Step]:
    """Return the steps in the order in which they are played: the whole ladder, then the whole ladder again."""
    rungs = len(plan.runs)
    return [Step(number, number // rungs, size) for number, size in enumerate(plan.steps)]


def owned(size: int, rank: int, ranks: int) -> range:
    """Return the runs that a rank owns: every `ranks`-th one, so that any number of ranks shares the same runs."""
    return range(rank, size, ranks)


def due(run: int) -> int:
    """Return when a run is due, in nanoseconds after the step's common start: all at once."""
    del run
    return 0


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
