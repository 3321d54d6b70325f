"""What was measured, in numbers: one row per step, one row per operation and rung of the ladder. All times are seconds.

Percentiles come from all attempts, failures included: a server that fails fast is not fast, and the time that a failed
request took was waited, too. A `request` is an attempt that asked MLflow for something. Making a connection is an
attempt of its own, the operation `connect`: it has its own row among the operations, and its failures are failures of
the step; but it is no request, and neither counted nor timed as one. That a server lacks an operation which not every
server has is no failure either: a rank leaves it out from the first answer on that says so.

Throughput is that of the load: where users go on for a given time, answers that come after it count no more, nor do
runs that end after it, so that one last slow answer does not thin out all before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.frame import OPERATIONS, OUTCOMES, Columns, Frame
from analysis.ladders import Climb, climb
from analysis.percentiles import Percentiles, Sample, Values, merge
from analysis.units import count
from hpcstress.plan import Rung
from hpcstress.record import LEFT_TO_CLIENTS, OPTIONAL, Operation, Outcome

_OPTIONAL = np.array(sorted(OPTIONAL), np.uint8)
_LEFT_TO_CLIENTS = np.array(sorted(LEFT_TO_CLIENTS), np.uint8)


@dataclass(frozen=True)
class StepStatistics:
    """Hold what one step was and what came of it.

    `size` counts users, if there are users, and else runs that begin at once; `runs` is how many runs there were to
    play: as many as the users began, or the size. `rate` is how many iterations were due each second, 0 in a closed
    model; a step is `timed` if its users go on for a given time. `load_seconds` is how long there was load, and
    throughput is per second of it; `duration` lasts to the end of all. A step was `cut` if the job was stopped, or
    died, while its runs were under way: that those did not come to their end says nothing of the server.

    `service` is a request's time from being sent to its end, `response` from when it was due, `lateness` what the
    generator itself was late: within a run, and where there are users, when one of them was free. In an open model
    `waiting` is how long after they were due iterations began, whatever they waited for, and `dropped` counts those for
    which no user was free in time. `connect` is the time to make a connection, `run_duration` that from a run's due
    instant to the end of its last attempt. `first_failure` is when the first attempt failed, and `recovery` how long it
    took from then to the next good answer to a request sent after it; None where there was none. `start_delay` is how
    long after its due instant a run began, `at_once` how many were under way when they were most. `lacking` are
    operations that the server does not have.
    """

    step: int
    repeat: int
    size: int
    variation: str
    users: bool
    rate: float
    timed: bool
    began: float
    duration: float
    load_seconds: float
    first_done: float
    runs: int
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
    waiting: Percentiles
    dropped: int
    connect: Percentiles
    failed: int
    failed_requests: Mapping[str, int]
    failed_connections: Mapping[str, int]
    first_failure: float | None
    recovery: float | None
    lacking: tuple[str, ...]
    cut: bool

    @property
    def rung(self) -> Rung:
        """Return what all repeats of this step have in common."""
        return Rung(self.size, self.variation)

    @property
    def judged(self) -> Percentiles:
        """Return the times that the objective is about: in an open model those since requests were due.

        There users that wait for a slow server do not ask less of it.
        """
        return self.response if self.rate else self.service

    @property
    def where(self) -> str:
        """Say which step this is: `8 users, params=10 (repeat 1)`."""
        of = f", {self.variation}" if self.variation else ""
        return f"{count(self.size, 'user' if self.users else 'run')}{of} (repeat {self.repeat + 1})"


@dataclass(frozen=True)
class OperationStatistics:
    """Hold the attempts of one operation in all steps of one rung.

    What is neither good nor failed the server did not have. `per_second` counts all attempts that ended while there was
    load, `answers_per_second` the good ones among them.
    """

    size: int
    variation: str
    operation: str
    attempts: int
    good: int
    failed: int
    per_second: float
    answers_per_second: float
    mean: float
    service: Percentiles

    @property
    def rung(self) -> Rung:
        """Return the rung."""
        return Rung(self.size, self.variation)


@dataclass(frozen=True)
class Statistics:
    """Hold both tables, and all service times by rung and code of operation, from which curves are drawn."""

    steps: tuple[StepStatistics, ...]
    operations: tuple[OperationStatistics, ...]
    samples: Mapping[tuple[Rung, int], Sample]

    @property
    def climb(self) -> Climb:
        """Return the ladders that the steps make up."""
        return climb_of(self.steps)

    def requests(self, rung: Rung) -> Sample:
        """Return the service times of all requests of a rung."""
        return merge(sample for (of, code), sample in self.samples.items() if of == rung and code != Operation.connect)


def climb_of(steps: tuple[StepStatistics, ...]) -> Climb:
    """Return the ladders that steps make up."""
    users = any(step.users for step in steps)
    return climb((step.rung for step in steps), users, steps[0].rate if steps else 0.0)


def by_rung(steps: tuple[StepStatistics, ...], rungs: Iterable[Rung]) -> dict[Rung, tuple[StepStatistics, ...]]:
    """Return the steps of each rung, in the order of their repeats."""
    return {rung: tuple(step for step in steps if step.rung == rung) for rung in rungs}


def measure(frame: Frame) -> Statistics:
    """Return the statistics of one result."""
    steps: list[StepStatistics] = []
    parts: dict[tuple[Rung, int], list[Sample]] = {}
    counts: dict[Rung, Values] = {}
    seconds: dict[Rung, float] = {}
    for row, attempts in frame.by_step():
        of_step = _service_by_operation(attempts)
        bad = failures(attempts)
        requests = merge(of_step[code] for code in of_step if code != Operation.connect)
        steps.append(_step(frame, row, attempts, bad, requests))
        rung, load = steps[-1].rung, steps[-1].load_seconds
        for code, sample in of_step.items():
            parts.setdefault((rung, code), []).append(sample)
        # Good ones, failures, all that ended while there was load, and the good ones among them, by operation.
        good = attempts["outcome"] == Outcome.ok
        within = attempts["end"] <= _load_end(load, timed=steps[-1].timed)
        counted = [good, bad, within, within & good]
        of_step_counts = np.array([np.bincount(attempts["op"][chosen], minlength=256) for chosen in counted])
        counts[rung] = counts.get(rung, 0) + of_step_counts
        seconds[rung] = seconds.get(rung, 0.0) + load
    place = {rung: number for number, rung in enumerate(climb_of(tuple(steps)).rungs)}
    samples = {
        key: parts[key][0] if len(parts[key]) == 1 else merge(parts[key])
        for key in sorted(parts, key=lambda key: (place[key[0]], key[1]))
    }
    return Statistics(
        steps=tuple(steps),
        operations=tuple(
            OperationStatistics(
                *rung,
                OPERATIONS[code],
                len(sample),
                int(counts[rung][0, code]),
                int(counts[rung][1, code]),
                _rate(int(counts[rung][2, code]), seconds[rung]),
                _rate(int(counts[rung][3, code]), seconds[rung]),
                sample.mean(),
                sample.percentiles(),
            )
            for (rung, code), sample in samples.items()
        ),
        samples=samples,
    )


def failures(attempts: Mapping[str, Values]) -> Values:
    """Tell of each attempt whether it failed; that a server lacks an optional operation is no failure."""
    bad: Values = (attempts["outcome"] != Outcome.ok) & ~_not_there(attempts)
    return bad


def _not_there(attempts: Mapping[str, Values]) -> Values:
    lacking: Values = attempts["outcome"] == Outcome.not_supported
    if not lacking.any():
        return lacking
    # What a server leaves to its clients is not even asked for: that takes no time at all.
    left: Values = np.isin(attempts["op"], _LEFT_TO_CLIENTS) & (attempts["start"] == attempts["end"])
    known: Values = np.isin(attempts["op"], _OPTIONAL) | left
    return lacking & known


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


def _step(frame: Frame, row: Any, attempts: Columns, bad: Values, service: Sample) -> StepStatistics:
    start, end, due = attempts["start"], attempts["end"], attempts["due"]
    good = attempts["outcome"] == Outcome.ok
    request = attempts["op"] != Operation.connect
    variation = row["variation"].decode("utf-8", "replace")
    rate = float(frame.option("rate", variation) or 0.0)
    runs_due, runs_begin, runs_end = run_spans(attempts)
    last_done = row["last_done"] if row["last_done"] >= 0 or not len(end) else end.max()
    planned = float(frame.option("duration", variation) or 0.0) if frame.users else 0.0
    # Users go on until their time is over, and may think to its end; unless they had no more to do, or were stopped.
    early = not planned or frame.option("iterations", variation) or not frame.complete
    load = min(_seconds(last_done), planned or math.inf) if early else planned
    load_end = _load_end(load, timed=bool(planned))
    lateness, waiting = _delays(frame, attempts, request, int(row["size"]), variation)
    interrupted = attempts["outcome"] == Outcome.interrupted
    first_failure, recovery = _failure_and_recovery(attempts, bad & ~interrupted, good & request)
    runs = len(runs_due) if frame.users else int(row["size"])
    last = not frame.complete and row["step"] == frame.steps["step"].max()
    return StepStatistics(
        step=int(row["step"]),
        repeat=int(row["repeat"]),
        size=int(row["size"]),
        variation=variation,
        users=frame.users,
        rate=rate,
        timed=bool(planned),
        began=float(row["began"]),
        duration=_seconds(last_done),
        load_seconds=load,
        first_done=_seconds(row["first_done"]),
        runs=runs,
        runs_finished=int(row["runs_finished"]),
        at_once=_most_at_once(runs_begin, runs_end),
        runs_per_second=_rate(int(row["runs_finished"]) - _finished_after(load_end, attempts, bad), load),
        requests=len(service),
        requests_per_second=_rate(int(np.count_nonzero(good & request & (end <= load_end))), load),
        service=service.percentiles(),
        response=Sample((end - due)[request]).percentiles(),
        run_duration=Sample(runs_end - runs_due).percentiles(),
        lateness=Sample(lateness).percentiles(),
        start_delay=Sample(runs_begin - runs_due).percentiles(),
        waiting=Sample(waiting).percentiles(),
        dropped=int(frame.health["dropped"][frame.health["step"] == row["step"]].sum()),
        connect=Sample((end - start)[~request]).percentiles(),
        failed=int(np.count_nonzero(bad)),
        failed_requests=_by_cause(attempts["outcome"][bad & request]),
        failed_connections=_by_cause(attempts["outcome"][bad & ~request]),
        first_failure=first_failure,
        recovery=recovery,
        lacking=tuple(OPERATIONS[code] for code in np.unique(attempts["op"][_not_there(attempts)])),
        cut=bool(interrupted.any() or (last and row["runs_finished"] < runs)),
    )


def _most_at_once(begin: Values, end: Values) -> int:
    """Return how many runs were under way together when they were most."""
    if not len(begin):
        return 0
    ended = np.searchsorted(np.sort(end), np.sort(begin), side="right")
    return int((np.arange(1, len(begin) + 1) - ended).max())


def _finished_after(load_end: int, attempts: Columns, bad: Values) -> int:
    """Return how many runs ended after the load, and ended well: with an attempt that was no failure."""
    late = np.flatnonzero(attempts["end"] > load_end)
    latest_first = late[np.argsort(attempts["end"][late], kind="stable")[::-1]]
    last = np.unique(attempts["run"][latest_first], return_index=True)[1]
    return int(np.count_nonzero(~bad[latest_first[last]]))


def _load_end(load_seconds: float, *, timed: bool) -> int:
    return round(load_seconds * 1e9) if timed else np.iinfo(np.int64).max


def _delays(frame: Frame, attempts: Columns, request: Values, users: int, variation: str) -> tuple[Values, Values]:
    """Return what the generator was late with each request, and what iterations of an open model were late in all."""
    late = attempts["start"] - attempts["due"]
    if not frame.users:
        # A run's first attempt waits for its turn at the common start; what follows waits for the generator alone.
        return late[request & (attempts["seq"] > 0)], late[:0]
    if not frame.option("rate", variation):
        return late[request | (attempts["seq"] == 0)], late[:0]
    # An iteration that is due while its user waits for the server is late through no fault of the generator: that one
    # is late from when the user was free, too. Users take turns, so a run's number says whose it is.
    order = np.lexsort((attempts["seq"], attempts["run"], attempts["run"] % users))
    user, run = attempts["run"][order] % users, attempts["run"][order]
    due, start, end = attempts["due"][order], attempts["start"][order], attempts["end"][order]
    before = np.concatenate([[0], end[:-1]]) * (user == np.concatenate([[users], user[:-1]]))
    begins = (run != np.concatenate([[-1], run[:-1].astype(np.int64)])) | (due != before)
    pause = round(float(frame.option("think_time", variation) or 0.0) * 1e9)
    free = before + pause * (begins & (before > 0))
    return np.maximum(start - np.maximum(due, free), 0), (start - due)[begins]


def _failure_and_recovery(attempts: Columns, bad: Values, answered: Values) -> tuple[float | None, float | None]:
    if not bad.any():
        return None, None
    failure = attempts["end"][bad].min()
    # What was under way may still be answered by a part of the server that has not noticed yet.
    answers = attempts["end"][answered & (attempts["start"] >= failure)]
    return _seconds(failure), _seconds(answers.min() - failure) if len(answers) else None


def _by_cause(outcomes: Values) -> dict[str, int]:
    counts = np.bincount(outcomes)
    return {OUTCOMES[code]: int(counts[code]) for code in np.flatnonzero(counts)}


def _seconds(nanoseconds: Any) -> float:
    return float(nanoseconds) / 1e9 if nanoseconds >= 0 else math.nan


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else math.nan
