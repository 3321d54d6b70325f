"""How a load grows with the ranks that make it: strong scaling (the same load) and weak scaling (the same per rank).

Each step of each result is a measurement at its number of ranks. Steps against the same server, by plans that differ in
nothing but their load, make a curve of strong scaling where their load is the same, and one of weak scaling where it is
the same per rank; both may be found in the same results. What is compared is good answers per second: ideal is as many
times as many as there are times the ranks, and efficiency is the share of that ideal. Where iterations come at a rate,
more ranks do not make more of them: there is weak scaling only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from analysis.frame import Columns, Frame, texts
from analysis.percentiles import Values, middle
from analysis.statistics import StepStatistics
from analysis.units import count, number, plain, seconds
from hpcstress.plan import USUAL_SERVER

KINDS = ("strong", "weak")

# What may differ on one curve: the load itself, what is no load at all, and how the server was named: `_server` says
# which one it was.
_FREE = frozenset(
    {
        *("runs", "users", "rate", "repeats"),
        *("audit", "objective", "threshold", "sleep_time", "warmup", "experiment"),
        *("server", "uri"),
    }
)
_IDEAL = 0.9
_SLOWER = 1.1


class Parts(NamedTuple):
    """Hold where the time of the ranks went, as shares of it.

    `server` is time in which a rank waited for answers, `generator` its CPU time, or, where that is longer, the time in
    which requests were due and none was under way; `idle` the rest: the rank was done, or its users were thinking.
    """

    generator: float
    server: float
    idle: float


@dataclass(frozen=True)
class Measured:
    """Hold one step as a measurement at a number of ranks."""

    ranks: int
    size: int
    users: bool
    rate: float
    variation: str
    server: str
    plan: tuple[tuple[str, str], ...]
    answers_per_second: float
    service: float
    parts: Parts


@dataclass(frozen=True)
class Point:
    """Hold the repeats at one number of ranks: good answers per second, the median service time, parts on average."""

    ranks: int
    size: int
    rates: tuple[float, ...]
    efficiencies: tuple[float, ...]
    service: float
    parts: Parts

    @property
    def efficiency(self) -> float:
        """Return the median of the efficiencies."""
        return middle(self.efficiencies)


@dataclass(frozen=True)
class Curve:
    """Hold the points of a curve, fewest ranks first, what it is called, and what its first point makes ideal."""

    kind: str
    name: str
    points: tuple[Point, ...]

    def ideal(self, ranks: float) -> float:
        """Return how many good answers per second would be ideal."""
        first = self.points[0]
        return middle(first.rates) * ranks / first.ranks

    @property
    def sentence(self) -> str:
        """Say what comes of more ranks, and whether server or generator keeps it from being ideal."""
        first, last = self.points[0], self.points[-1]
        set_by = f"{count(first.ranks, 'rank')} set{'' if first.ranks > 1 else 's'}"
        reached = f"{count(last.ranks, 'rank')} reach {last.efficiency:.0%} of the ideal that {set_by}"
        words = f"{self.kind.capitalize()} scaling, {self.name}: {reached}"
        if last.efficiency >= _IDEAL:
            return f"{words}."
        if last.service > _SLOWER * first.service:
            words += (
                f"; the median request takes {number(last.service / first.service)} times as long, "
                f"{seconds(last.service)} instead of {seconds(first.service)}"
            )
        return (
            f"{words}. Of the ranks' time {last.parts.server:.0%} is waiting for the server, "
            f"{last.parts.generator:.0%} the generator itself, {last.parts.idle:.0%} idle."
        )


def measured(frame: Frame, steps: Iterable[StepStatistics]) -> list[Measured]:
    """Return the steps of a result that say something about scaling: all that were played to their end."""
    ranks = int(frame.facts.get("ranks") or len(frame.ranks))
    if not ranks or not len(frame.attempts["op"]):
        return []
    plan = tuple(sorted(texts({name: value for name, value in frame.plan.items() if name not in _FREE})))
    times = {int(row["step"]): attempts for row, attempts in frame.widened("rank").by_step()}
    return [
        Measured(
            ranks,
            step.size,
            step.users,
            step.rate,
            step.variation,
            _server(frame),
            plan,
            step.requests_per_second,
            step.service.p50.value,
            _parts(frame, step, times[step.step], ranks),
        )
        for step in steps
        if not step.cut and step.requests_per_second > 0
    ]


def curves(steps: Iterable[Measured]) -> list[Curve]:
    """Return every curve that some steps make up, strong ones first, each with two numbers of ranks at least."""
    steps = list(steps)
    return [*_curves("strong", steps), *_curves("weak", steps)]


def apart(steps: Iterable[Measured]) -> str:
    """Say which servers have no point on each other's curves, though their numbers of ranks would make one; else ""."""
    steps = list(steps)
    ranks: dict[str, set[int]] = {}
    for step in steps:
        ranks.setdefault(step.server, set()).add(step.ranks)
    together = curves(replace(step, server="") for step in steps)
    if {curve.points for curve in together} == {curve.points for curve in curves(steps)}:
        return ""
    told = [
        f"{server or 'an unknown one'} with {', '.join(map(str, sorted(of)))} {'rank' if of == {1} else 'ranks'}"
        for server, of in sorted(ranks.items())
    ]
    return f"Only results of the same server make a curve, and here are {len(told)} servers: {'; '.join(told)}."


def rows(found: Iterable[Curve]) -> list[dict[str, Any]]:
    """Return curves as rows of plain values, one for each point."""
    return [
        {
            "scaling": curve.kind,
            "load": curve.name,
            "ranks": point.ranks,
            "size": point.size,
            "repeats": len(point.rates),
            "ideal_per_second": curve.ideal(point.ranks),
            "answers_per_second_min": min(point.rates),
            "answers_per_second_median": middle(point.rates),
            "answers_per_second_max": max(point.rates),
            "efficiency_min": min(point.efficiencies),
            "efficiency_median": point.efficiency,
            "efficiency_max": max(point.efficiencies),
            "service_p50": point.service,
            **{f"{name}_share": value for name, value in point.parts._asdict().items()},
        }
        for curve in found
        for point in curve.points
    ]


def _curves(kind: str, steps: list[Measured]) -> Iterator[Curve]:
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for step in steps:
        if kind == "strong" and not step.rate:
            groups.setdefault((*_kin(step), step.size), []).append(step)
        if kind == "weak":
            rate = step.rate / step.ranks
            load = (Fraction(step.size, step.ranks), float(f"{rate:.9g}"))
            groups.setdefault((*_kin(step), *load), []).append(step)
    several = len({(step.server, step.plan) for step in steps}) > 1
    found = [(group[0], points) for group in groups.values() if len(points := _points(group)) > 1]
    for step, points in sorted(found, key=lambda of: (*_kin(of[0]), of[0].size / of[0].ranks)):
        yield Curve(kind, _name(kind, step, several=several), points)


def _kin(step: Measured) -> tuple[object, ...]:
    """Return what is the same for all steps of a curve, besides the load."""
    return step.server, step.plan, step.users, step.variation


def _server(frame: Frame) -> str:
    """Return what tells the server of a result from others: how it was started, else its address; and its version.

    One that hpcstress has started has another address each time.
    """
    facts, started = frame.facts, frame.facts.get("server")
    if isinstance(started, Mapping):
        where = started.get("server") or frame.plan.get("server") or USUAL_SERVER
    else:
        where = facts.get("uri") or frame.plan.get("uri") or ""
    version = facts.get("server_version")
    return plain(f"{where} ({version})" if version else where, 1000)


def _points(group: list[Measured]) -> tuple[Point, ...]:
    by_ranks: dict[int, list[Measured]] = {}
    for step in sorted(group, key=lambda step: step.ranks):
        by_ranks.setdefault(step.ranks, []).append(step)
    fewest = min(by_ranks)
    base = middle(step.answers_per_second for step in by_ranks[fewest]) / fewest
    return tuple(
        Point(
            ranks,
            steps[0].size,
            tuple(sorted(step.answers_per_second for step in steps)),
            tuple(sorted(step.answers_per_second / ranks / base for step in steps)),
            middle(step.service for step in steps),
            Parts(*(float(np.mean(shares)) for shares in zip(*(step.parts for step in steps), strict=True))),
        )
        for ranks, steps in by_ranks.items()
    )


def _name(kind: str, step: Measured, *, several: bool) -> str:
    noun = "user" if step.users else "run"
    if kind == "strong":
        load = count(step.size, noun)
    else:
        of_each = Fraction(step.size, step.ranks)
        load = (
            f"{count(int(of_each), noun) if of_each.denominator == 1 else f'{number(float(of_each))} {noun}s'} per rank"
        )
        load += f" at {number(step.rate / step.ranks)} iterations/s" if step.rate else ""
    plan = dict(step.plan)
    which = [" on ".join(filter(None, (plan.get("workload"), step.server)))] if several else []
    return ", ".join([*which, load, *([step.variation] if step.variation else [])])


def _parts(frame: Frame, step: StepStatistics, attempts: Columns, ranks: int) -> Parts:
    load = step.load_seconds * 1e9
    due, start, end = (np.clip(attempts[name], 0, load) for name in ("due", "start", "end"))
    health = frame.health[frame.health["step"] == step.step]
    cpu = dict(zip(health["rank"].tolist(), (health["cpu_seconds"] * 1e9).tolist(), strict=True))
    order = np.argsort(attempts["rank"], kind="stable")
    present, firsts = np.unique(attempts["rank"][order], return_index=True)
    server = generator = 0.0
    for rank, mine in zip(present.tolist(), np.split(order, firsts[1:]), strict=True):
        waiting = _covered(start[mine], end[mine])
        busy = _covered(np.minimum(due[mine], start[mine]), end[mine])
        own = min(busy, max(busy - waiting, cpu.get(rank, 0.0)))
        generator, server = generator + own, server + busy - own
    whole = load * ranks
    return Parts(generator / whole, server / whole, max(0.0, 1 - (generator + server) / whole))


def _covered(begin: Values, end: Values) -> float:
    """Return how long at least one of some spans of time was under way."""
    order = np.argsort(begin, kind="stable")
    begin, reached = begin[order], np.maximum.accumulate(end[order])
    gaps = np.maximum(0, begin[1:] - reached[:-1]).sum()
    return float(reached[-1] - begin[0] - gaps)
