"""What became of a job when a part of its server died: who noticed, how long it took, what failed, what was lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.answer import audit_of
from analysis.frame import OUTCOMES, Columns, Frame
from analysis.percentiles import Values
from analysis.statistics import failures
from analysis.units import count, plain, seconds
from hpcstress.record import Operation, Outcome


@dataclass(frozen=True)
class Outage:
    """Hold the death of a part; `time` is seconds since the first common start, all others are seconds after it.

    `noticed` are other parts' words about it. `longest` and `before` are the longest times without a good answer, after
    the death and before it in the same step; `silent` is when the former began. What is not known is NaN.
    """

    part: str
    told: str
    time: float
    step: int
    noticed: tuple[tuple[float, str, str], ...]
    failed: tuple[tuple[str, int], ...]
    first_failure: float
    last_failure: float
    recovered: float
    silent: float
    longest: float
    before: float


def outages(frame: Frame, origin: float) -> tuple[Outage, ...]:
    """Return every death of a part, at seconds since an instant that is given in seconds since 1970."""
    events = [(float(row["time"]), _text(row["part"]), _text(row["told"])) for row in frame.events]
    deaths = [event for event in events if event[2].startswith(("was killed", "ended", "lost its guard"))]
    return tuple(_outage(frame, death, _about(death[1], events), origin) for death in deaths)


def sentences(frame: Frame) -> list[str]:
    """Say of every death of a part what it did to the job."""
    began = frame.steps["began"][np.isfinite(frame.steps["began"])]
    return [_sentence(outage, frame) for outage in outages(frame, float(began.min()) if len(began) else math.inf)]


def _text(name: Any) -> str:
    return bytes(name).decode("utf-8", "replace")


def _about(part: str, events: list[tuple[float, str, str]]) -> Iterator[tuple[float, str, str]]:
    return (event for event in events if event[1] != part and part in event[2].replace(";", " ").split())


def _outage(frame: Frame, death: tuple[float, str, str], noticed: Iterator[Any], origin: float) -> Outage:
    at, part, told = death
    step = -1
    failed: tuple[tuple[str, int], ...] = ()
    first = last = recovered = silent = longest = before = math.nan
    for row, attempts in frame.by_step():
        ended = (attempts["end"] / 1e9) + float(row["began"]) - at
        if not len(ended) or not ended.min() <= 0 <= ended.max():
            continue
        step = int(row["step"])
        bad = failures(attempts) & (ended >= 0)
        failed = _by_cause(attempts, bad)
        if bad.any():
            first, last = float(ended[bad].min()), float(ended[bad].max())
        good = np.sort(ended[(attempts["outcome"] == Outcome.ok) & (attempts["op"] != Operation.connect)])
        after = good[good > (first if bad.any() else 0)]
        recovered = float(after[0]) if len(after) else math.nan
        silent, longest, before = _longest(good[good <= 0], good[good > 0], float(ended.max()))
    return Outage(
        part=part,
        told=told,
        time=at - origin,
        step=step,
        noticed=tuple((when - at, who, words) for when, who, words in noticed),
        failed=failed,
        first_failure=first,
        last_failure=last,
        recovered=recovered,
        silent=silent,
        longest=longest,
        before=before,
    )


def _by_cause(attempts: Columns, bad: Values) -> tuple[tuple[str, int], ...]:
    codes, numbers = np.unique(attempts["outcome"][bad], return_counts=True)
    return tuple((OUTCOMES[code], int(number)) for code, number in zip(codes, numbers, strict=True))


def _longest(before: Values, after: Values, end: float) -> tuple[float, float, float]:
    """Return begin and length of the longest time between good answers after an instant, and the length before it."""
    since = np.concatenate([before[-1:], after, [end]])
    late, early = np.diff(since), np.diff(before)
    most = int(late.argmax()) if len(late) else 0
    begin, length = (float(since[most]), float(late[most])) if len(late) else (math.nan, math.nan)
    return begin, length, float(early.max()) if len(early) else math.nan


def _sentence(outage: Outage, frame: Frame) -> str:
    when = f"At {seconds(outage.time)}" if outage.time >= 0 else "Before the first step"
    words = [f"{when} {plain(outage.part)} {plain(outage.told)}."]
    words += [f"{plain(who).capitalize()} {plain(told)}, {_later(after)}." for after, who, told in outage.noticed]
    if outage.step < 0:
        return " ".join([*words, "No step was under way."])
    if not outage.noticed:
        words.append("No other part noticed.")
    if outage.failed:
        total = count(sum(number for _, number in outage.failed), "attempt")
        causes = ", ".join(f"{cause.replace('_', '-')} {number:,}" for cause, number in outage.failed)
        words.append(
            f"In the rest of its step {total} failed ({causes}), the first {_later(outage.first_failure)}, "
            f"the last {_later(outage.last_failure)}."
        )
        if math.isfinite(outage.recovered):
            words.append(f"The first good answer after a failure came {_later(outage.recovered)}.")
    else:
        words.append("No attempt failed in the rest of its step.")
    if math.isfinite(outage.longest):
        usual = f"; in the step before that death it was {seconds(outage.before)}" if outage.before > 0 else ""
        words.append(
            f"The longest time without a good answer since was {seconds(outage.longest)} "
            f"(it began {_later(outage.silent)}){usual}."
        )
    return " ".join([*words, audit_of(frame.audit[frame.audit["step"] == outage.step])])


def _later(after: float) -> str:
    return f"{seconds(abs(after))} {'later' if after >= 0 else 'earlier'}"
