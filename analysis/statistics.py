"""What was measured, in numbers: one row per step, one row per operation and size of step. All times are seconds.

Percentiles come from all attempts, failures included: a server that fails fast is not fast, and the time that a failed
request took was waited, too. A `request` is an attempt that asked MLflow for something. Making a connection is an
attempt of its own, the operation `connect`: it has its own row among the operations, and its failures are failures of
the step; but it is no request, and neither counted nor timed as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.frame import OPERATIONS, OUTCOMES, Columns, Frame
from analysis.percentiles import Percentiles, Sample, Values, merge
from hpcstress.record import Operation, Outcome


@dataclass(frozen=True)
class StepStatistics:
    """Hold what one step was and what came of it.

    `service` is a request's time from being sent to its end, `response` from when it was due, `lateness` what lies
    between the two within a run: the generator's own. `connect` is the time to make a connection, `run_duration` that
    from a run's due instant to the end of its last attempt. `first_failure` is when the first attempt failed, and
    `recovery` how long it took from then to the next good answer to a request sent after it; None where there was none.
    `start_delay` is how long after its due instant a run began, `at_once` how many were under way when they were most.
    """

    step: int
    repeat: int
    size: int
    began: float
    duration: float
    first_done: float
    runs_finished: int
    at_once: int
    runs_per_second: float
    requests: int
    requests_per_second: float
    service: Percentiles
    response: Percentiles
    run_duration: Percentiles
    lateness: Percentiles
    start_delay: Percentiles
    connect: Percentiles
    failed: int
    failed_requests: Mapping[str, int]
    failed_connections: Mapping[str, int]
    first_failure: float | None
    recovery: float | None


@dataclass(frozen=True)
class OperationStatistics:
    """Hold the attempts of one operation in all steps of one size."""

    size: int
    operation: str
    attempts: int
    failed: int
    service: Percentiles


@dataclass(frozen=True)
class Statistics:
    """Hold both tables, and all service times of the requests by size of step, from which curves are drawn."""

    steps: tuple[StepStatistics, ...]
    operations: tuple[OperationStatistics, ...]
    requests: Mapping[int, Sample]


def by_size(steps: tuple[StepStatistics, ...]) -> dict[int, tuple[StepStatistics, ...]]:
    """Return the steps of each size, smallest size first, in the order of their repeats."""
    sizes = sorted({step.size for step in steps})
    return {size: tuple(step for step in steps if step.size == size) for size in sizes}


def measure(frame: Frame) -> Statistics:
    """Return the statistics of one result."""
    steps: list[StepStatistics] = []
    samples: dict[tuple[int, int], list[Sample]] = {}
    failed: dict[tuple[int, int], int] = {}
    for row, attempts in frame.by_step():
        of_step = _service_by_operation(attempts)
        steps.append(_step(row, attempts, merge(of_step[code] for code in of_step if code != Operation.connect)))
        failures = np.bincount(attempts["op"][attempts["outcome"] != Outcome.ok], minlength=256)
        for code, sample in of_step.items():
            key = int(row["size"]), code
            samples.setdefault(key, []).append(sample)
            failed[key] = failed.get(key, 0) + int(failures[code])
    whole = {key: parts[0] if len(parts) == 1 else merge(parts) for key, parts in sorted(samples.items())}
    return Statistics(
        steps=tuple(steps),
        operations=tuple(
            OperationStatistics(size, OPERATIONS[code], len(sample), failed[size, code], sample.percentiles())
            for (size, code), sample in whole.items()
        ),
        requests={
            size: merge(sample for (of, code), sample in whole.items() if of == size and code != Operation.connect)
            for size in by_size(tuple(steps))
        },
    )


def run_spans(attempts: Columns) -> tuple[Values, Values, Values]:
    """Return when each run of a step was due, when it began and when its last attempt ended, in nanoseconds."""
    runs, number = np.unique(attempts["run"], return_inverse=True)
    latest = np.iinfo(np.int64).max
    due, start, end = np.full(len(runs), latest), np.full(len(runs), latest), np.full(len(runs), -latest)
    np.minimum.at(due, number, attempts["due"])
    np.minimum.at(start, number, attempts["start"])
    np.maximum.at(end, number, attempts["end"])
    return due, start, end


def _service_by_operation(attempts: Columns) -> dict[int, Sample]:
    service = attempts["end"] - attempts["start"]
    codes = np.flatnonzero(np.bincount(attempts["op"], minlength=256))
    return {int(code): Sample(service[attempts["op"] == code]) for code in codes}


def _step(row: Any, attempts: Columns, service: Sample) -> StepStatistics:
    start, end, due = attempts["start"], attempts["end"], attempts["due"]
    good = attempts["outcome"] == Outcome.ok
    request = attempts["op"] != Operation.connect
    runs_due, runs_begin, runs_end = run_spans(attempts)
    last_done = row["last_done"] if row["last_done"] >= 0 or not len(end) else end.max()
    duration = _seconds(last_done)
    first_failure, recovery = _failure_and_recovery(attempts, good, request)
    return StepStatistics(
        step=int(row["step"]),
        repeat=int(row["repeat"]),
        size=int(row["size"]),
        began=float(row["began"]),
        duration=duration,
        first_done=_seconds(row["first_done"]),
        runs_finished=int(row["runs_finished"]),
        at_once=_most_at_once(runs_begin, runs_end),
        runs_per_second=_rate(int(row["runs_finished"]), duration),
        requests=len(service),
        requests_per_second=_rate(int(np.count_nonzero(good & request)), duration),
        service=service.percentiles(),
        response=Sample((end - due)[request]).percentiles(),
        run_duration=Sample(runs_end - runs_due).percentiles(),
        # A run's first attempt waits for its turn at the common start; what follows waits for the generator alone.
        lateness=Sample((start - due)[request & (attempts["seq"] > 0)]).percentiles(),
        start_delay=Sample(runs_begin - runs_due).percentiles(),
        connect=Sample((end - start)[~request]).percentiles(),
        failed=int(np.count_nonzero(~good)),
        failed_requests=_by_cause(attempts["outcome"][~good & request]),
        failed_connections=_by_cause(attempts["outcome"][~good & ~request]),
        first_failure=first_failure,
        recovery=recovery,
    )


def _most_at_once(begin: Values, end: Values) -> int:
    """Return how many runs were under way together when they were most."""
    if not len(begin):
        return 0
    ended = np.searchsorted(np.sort(end), np.sort(begin), side="right")
    return int((np.arange(1, len(begin) + 1) - ended).max())


def _failure_and_recovery(attempts: Columns, good: Values, request: Values) -> tuple[float | None, float | None]:
    if good.all():
        return None, None
    failure = attempts["end"][~good].min()
    # What was under way may still be answered by a part of the server that has not noticed yet.
    answers = attempts["end"][good & request & (attempts["start"] >= failure)]
    return _seconds(failure), _seconds(answers.min() - failure) if len(answers) else None


def _by_cause(outcomes: Values) -> dict[str, int]:
    counts = np.bincount(outcomes)
    return {OUTCOMES[code]: int(counts[code]) for code in np.flatnonzero(counts)}


def _seconds(nanoseconds: Any) -> float:
    return float(nanoseconds) / 1e9 if nanoseconds >= 0 else math.nan


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else math.nan
