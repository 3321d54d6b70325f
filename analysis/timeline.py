"""What happened when: runs in flight, answers and how long they took, failures by cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.frame import OUTCOMES, Columns, Frame
from analysis.ladders import climb
from analysis.percentiles import Values
from analysis.statistics import failures, run_spans
from hpcstress.plan import Rung
from hpcstress.record import Operation, Outcome
from hpcstress.result import Rows

_SLICES, _SLICES_OF_ALL = 60, 120


@dataclass(frozen=True)
class Span:
    """Hold one step in slices of `width` seconds; `begin` and `end` are seconds since the first step's common start.

    Its name is as short as those of the others allow. `in_flight` is the number of runs that were under way at some
    time of a slice, or where users begin one after the other, the mean of it. `answers` are requests answered well per
    second; `failures` are failed attempts, connections included, in each slice, by cause. `p50` and `p99` are those of
    the service times of the requests that ended in a slice, in seconds, NaN where none did.
    """

    name: str
    repeat: int
    begin: float
    end: float
    width: float
    in_flight: Values
    answers: Values
    failures: Mapping[str, Values]
    p50: Values
    p99: Values


@dataclass(frozen=True)
class Timeline:
    """Hold a job: its steps in the order of time, what their names tell, whether of users; `origin` is its begin."""

    spans: tuple[Span, ...]
    names: str
    users: bool
    origin: float


def timeline(frame: Frame, *, alike: bool = False) -> Timeline:
    """Return a job's timeline, without steps whose beginning is not known and those in which nothing was sent.

    Each step has slices of its own width, or all have alike, but for a step that is shorter than one.
    """
    origin = float(np.nanmin(frame.steps["began"])) if np.isfinite(frame.steps["began"]).any() else 0.0
    climbed = climb(map(_rung, frame.steps), frame.users)
    width = _width(_length(frame.steps, origin), _SLICES_OF_ALL) if alike else 0
    spans = [
        _span(row, climbed.label(_rung(row)), attempts, float(row["began"]) - origin, width, users=frame.users)
        for row, attempts in frame.by_step()
        if np.isfinite(row["began"]) and len(attempts["end"])
    ]
    return Timeline(
        spans=tuple(sorted(spans, key=lambda span: span.begin)),
        names=climbed.label_words,
        users=frame.users,
        origin=origin,
    )


def _rung(row: Any) -> Rung:
    return Rung(int(row["size"]), row["variation"].decode("utf-8", "replace"))


def _length(steps: Rows, origin: float) -> int:
    ends = (steps["began"] - origin) * 1e9 + steps["last_done"]
    return int(np.nanmax(ends)) if np.isfinite(ends).any() else 1


def _span(row: Any, name: str, attempts: Columns, begin: float, width: int, *, users: bool) -> Span:
    _, first, last = run_spans(attempts)
    length = max(1, int(last.max()))
    width = min(width, length + 1) or _width(length, _SLICES)
    edges = np.arange(length // width + 1, dtype=np.int64) * width
    place = np.maximum(attempts["end"], 0) // width
    good = attempts["outcome"] == Outcome.ok
    bad = failures(attempts)
    asked = attempts["op"] != Operation.connect
    answers = np.bincount(place[good & asked], minlength=len(edges))
    p50, p99 = _by_slice(place[asked], (attempts["end"] - attempts["start"])[asked] / 1e9, len(edges))
    return Span(
        name=name,
        repeat=int(row["repeat"]),
        begin=begin,
        end=begin + length / 1e9,
        width=width / 1e9,
        in_flight=_under_way(first, last, edges, width) if users else _touching(first, last, edges, width),
        answers=answers / (width / 1e9),
        failures={
            OUTCOMES[code]: np.bincount(place[bad & (attempts["outcome"] == code)], minlength=len(edges))
            for code in np.unique(attempts["outcome"][bad])
        },
        p50=p50,
        p99=p99,
    )


def _by_slice(place: Values, seconds: Values, slices: int) -> tuple[Values, Values]:
    """Return the median and the p99 of the times in each slice."""
    order = np.lexsort((seconds, place))
    ranked, firsts = seconds[order], np.searchsorted(place[order], np.arange(slices + 1))
    first, count = firsts[:-1], np.diff(firsts)

    def at(level: float) -> Values:
        ranks = first + np.maximum(np.ceil(level * count).astype(np.int64), 1) - 1
        found = np.full(slices, math.nan)
        found[count > 0] = ranked[ranks[count > 0]]
        return found

    return at(0.5), at(0.99)


def _touching(first: Values, last: Values, edges: Values, width: int) -> Values:
    begun: Values = np.searchsorted(np.sort(first), edges + width, side="left")
    return begun - np.searchsorted(np.sort(last), edges, side="left")


def _under_way(first: Values, last: Values, edges: Values, width: int) -> Values:
    instants = np.append(edges, edges[-1] + width)
    return np.diff(_since(first, instants) - _since(last, instants)) / width


def _since(events: Values, instants: Values) -> Values:
    """Return how much time has passed at each instant since all events before it, added up."""
    ordered = np.sort(events)
    before = np.searchsorted(ordered, instants)
    sums: Values = np.concatenate([[0], np.cumsum(ordered)])[before]
    return before * instants - sums


def _width(length: int, slices: int) -> int:
    """Return 1, 2 or 5 times a power of ten of nanoseconds, at least 10 µs, that makes no more slices than these."""
    least = max(length / slices, 1e4)
    power = int(10 ** math.floor(math.log10(least)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
