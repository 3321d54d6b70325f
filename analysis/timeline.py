"""What happened when: runs in flight, answers, failures by cause, the server's CPU and memory."""

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

_SLICES = 60


@dataclass(frozen=True)
class Span:
    """Hold one step in slices of `width` seconds; `begin` and `end` are seconds since the first step's common start.

    Its name is as short as those of the others allow. `in_flight` is the number of runs that were under way at some
    time of a slice, or where users begin one after the other, the mean of it. `answers` are requests answered well per
    second; `failures` are failed attempts, connections included, in each slice, by cause.
    """

    name: str
    repeat: int
    begin: float
    end: float
    width: float
    in_flight: Values
    answers: Values
    failures: Mapping[str, Values]


@dataclass(frozen=True)
class Usage:
    """Hold what one part of the server used: CPU in cores, memory in bytes, at seconds since the first common start."""

    part: str
    time: Values
    cores: Values
    memory: Values


@dataclass(frozen=True)
class Timeline:
    """Hold a job: its steps in the order of time, what their names tell, whether of users, and its server's parts."""

    spans: tuple[Span, ...]
    names: str
    users: bool
    server: tuple[Usage, ...]


def timeline(frame: Frame) -> Timeline:
    """Return a job's timeline, without steps whose beginning is not known and those in which nothing was sent."""
    origin = float(np.nanmin(frame.steps["began"])) if np.isfinite(frame.steps["began"]).any() else 0.0
    climbed = climb(map(_rung, frame.steps), frame.users)
    spans = [
        _span(row, climbed.label(_rung(row)), attempts, float(row["began"]) - origin, users=frame.users)
        for row, attempts in frame.by_step()
        if np.isfinite(row["began"]) and len(attempts["end"])
    ]
    return Timeline(
        spans=tuple(sorted(spans, key=lambda span: span.begin)),
        names=climbed.label_words,
        users=frame.users,
        server=usage(frame, origin),
    )


def _rung(row: Any) -> Rung:
    return Rung(int(row["size"]), row["variation"].decode("utf-8", "replace"))


def _span(row: Any, name: str, attempts: Columns, begin: float, *, users: bool) -> Span:
    _, first, last = run_spans(attempts)
    length = max(1, int(last.max()))
    width = _width(length)
    edges = np.arange(length // width + 1, dtype=np.int64) * width
    place = np.maximum(attempts["end"], 0) // width
    good = attempts["outcome"] == Outcome.ok
    bad = failures(attempts)
    answers = np.bincount(place[good & (attempts["op"] != Operation.connect)], minlength=len(edges))
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
    )


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


def _width(length: int) -> int:
    """Return 1, 2 or 5 times a power of ten of nanoseconds, at least 10 µs, that makes at most 60 slices."""
    least = max(length / _SLICES, 1e4)
    power = int(10 ** math.floor(math.log10(least)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def usage(frame: Frame, origin: float) -> tuple[Usage, ...]:
    """Return what each part of the server used, at seconds since an instant that is given in seconds since 1970."""
    usages = []
    for part in np.unique(frame.server["part"]):
        rows = frame.server[frame.server["part"] == part]
        rows = rows[np.argsort(rows["time"], kind="stable")]
        rows = rows[np.diff(rows["time"], prepend=-math.inf) > 0]
        # A process that ends takes its CPU seconds with it: what would be negative is not known.
        spent = np.diff(rows["cpu_seconds"], prepend=math.nan) / np.diff(rows["time"], prepend=math.nan)
        usages.append(
            Usage(
                part=bytes(part).decode("utf-8", "replace"),
                time=rows["time"] - origin,
                cores=np.where(spent >= 0, spent, math.nan),
                memory=rows["rss"].astype(float),
            )
        )
    return tuple(usages)
