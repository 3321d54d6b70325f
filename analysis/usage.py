"""What the server used: cores, memory, threads, files and connections of each of its parts, and what that means.

It was counted by hpcstress, where that has started the server, or told by a Prometheus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.frame import Frame
from analysis.percentiles import Values
from analysis.statistics import StepStatistics
from analysis.units import number, plain
from hpcstress.result import Rows

# The queries of a Prometheus that are about parts, and which field of `Usage` has their values.
_FIELDS = {"cpu": "cores", "memory": "memory", "threads": "threads", "files": "files", "connections": "connections"}
_ALL = 0.9
# Use is sampled each second: of a shorter step the ends would be guessed.
_SHORTEST = 3.0
_ONE_CORE = ("python", "mlflow", "uvicorn", "gunicorn")


@dataclass(frozen=True)
class Usage:
    """Hold what one part of the server used at seconds since the first common start; NaN is what is not known.

    `memory` is the resident memory of its processes in bytes: what several of them share counts for each.
    """

    part: str
    time: Values
    cores: Values
    memory: Values
    threads: Values
    files: Values
    connections: Values


@dataclass(frozen=True)
class Told:
    """Hold what a Prometheus told of one series of a query that is not about what parts used."""

    query: str
    name: str
    time: Values
    value: Values


@dataclass(frozen=True)
class Peak:
    """Hold the most that one part used: `cores` on the average of a step, all else at any time while steps lasted."""

    part: str
    cores: float
    memory: float
    threads: float
    files: float
    connections: float


def usage(frame: Frame, origin: float) -> tuple[Usage, ...]:
    """Return what each part of the server used, at seconds since an instant that is given in seconds since 1970."""
    counted = [_counted(rows, name, origin) for name, rows in _parts(frame.server)]
    told = list(_told(frame.prometheus, origin, " (Prometheus)" if counted else ""))
    return (*counted, *told)


def told(frame: Frame, origin: float) -> tuple[Told, ...]:
    """Return the series of all other queries of a Prometheus, one after the other."""
    rows = frame.prometheus[~np.isin(frame.prometheus["query"], [name.encode() for name in _FIELDS])]
    return tuple(
        Told(_text(of["query"][0]), _name(of["labels"][0]), of["time"] - origin, of["value"])
        for key in np.unique(rows[["query", "labels"]])
        for of in [_in_order(rows[(rows["query"] == key["query"]) & (rows["labels"] == key["labels"])])]
    )


def _parts(server: Rows) -> Iterator[tuple[str, Rows]]:
    for part in np.unique(server["part"]):
        yield _text(part), server[server["part"] == part]


def _counted(rows: Rows, part: str, origin: float) -> Usage:
    times, places = np.unique(rows["time"], return_inverse=True)

    def total(name: str) -> Values:
        sums: Values = np.bincount(places, rows[name], len(times))
        unknown = np.bincount(places, rows[name] < 0, len(times)) > 0
        return np.where(unknown, math.nan, sums)

    spent = np.diff(total("cpu_seconds"), prepend=math.nan) / np.diff(times, prepend=math.nan)
    return Usage(
        part=part,
        time=times - origin,
        # In results of an older hpcstress a process that ended took its seconds with it: what would be negative is
        # not known.
        cores=np.where(spent >= -1e-9, np.maximum(spent, 0), math.nan),
        memory=total("rss"),
        threads=total("threads"),
        files=total("files"),
        connections=total("connections"),
    )


def _told(prometheus: Rows, origin: float, suffix: str) -> Iterator[Usage]:
    rows = prometheus[np.isin(prometheus["query"], [name.encode() for name in _FIELDS])]
    for labels in np.unique(rows["labels"]):
        mine = rows[rows["labels"] == labels]
        times = np.unique(mine["time"])
        fields = {field: np.full(len(times), math.nan) for field in _FIELDS.values()}
        for query, field in _FIELDS.items():
            of = mine[mine["query"] == query.encode()]
            # Nothing is used less than not at all: what a Prometheus tells below 0 is not known.
            fields[field][np.searchsorted(times, of["time"])] = np.where(of["value"] >= 0, of["value"], math.nan)
        yield Usage(part=_name(labels) + suffix, time=times - origin, **fields)


def _in_order(rows: Rows) -> Rows:
    return rows[np.argsort(rows["time"], kind="stable")]


def _text(name: Any) -> str:
    return bytes(name).decode("utf-8", "replace")


def _name(labels: Any) -> str:
    """Return the values of labels, without those of Prometheus's own if there are others."""
    pairs = [pair.partition("=") for pair in _text(labels).split(", ")]
    words = [value for name, _, value in pairs if name not in ("__name__", "instance", "job") and value]
    return " ".join(words or [value for name, _, value in pairs if name != "__name__" and value]) or "all"


# What it means.


def peaks(frame: Frame, steps: tuple[StepStatistics, ...]) -> list[Peak]:
    """Return the most that each part used while steps lasted."""
    known = [step for step in steps if math.isfinite(step.began + step.duration)]
    found = []
    for use in usage(frame, 0.0):
        inside = np.zeros(len(use.time), bool)
        for step in known:
            inside |= (use.time >= step.began - 1) & (use.time <= step.began + step.duration + 1)
        means = [_mean(use, step) for step in known if step.duration >= _SHORTEST]
        most = {field: _most(getattr(use, field)[inside]) for field in ("memory", "threads", "files", "connections")}
        found.append(Peak(part=use.part, cores=_most(np.array(means)), **most))
    return found


def _most(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else math.nan


def _mean(use: Usage, step: StepStatistics) -> float:
    """Return how many cores a part used on the average of a step, NaN if that is not known."""
    # The value at a time is that since the time before it.
    inside = (use.time > step.began) & (use.time <= step.began + step.duration + 0.5) & np.isfinite(use.cores)
    return float(use.cores[inside].mean()) if np.count_nonzero(inside) >= 2 else math.nan


def bottleneck(frame: Frame, steps: tuple[StepStatistics, ...]) -> str:
    """Say which part used all of its cores, or that none did; nothing where that was not measured.

    Parts that hpcstress has started share the cores of rank 0's machine with each other and with the ranks there.
    """
    parts = usage(frame, 0.0)
    measured = [
        (step, {use.part: mean for use in parts if math.isfinite(mean := _mean(use, step))})
        for step in steps
        if math.isfinite(step.began + step.duration) and step.duration >= _SHORTEST
    ]
    measured = [(step, used) for step, used in measured if used]
    if not measured:
        return ""
    if not len(frame.server):
        step, used = max(measured, key=lambda one: max(one[1].values()))
        part = max(used, key=lambda name: used[name])
        return (
            f"The busiest part that Prometheus tells of, {plain(part)}, used {number(used[part])} cores at "
            f"{step.where}; how many it has is not known here."
        )
    cores = int(frame.facts.get("processors") or 0)
    own = {_text(part) for part in np.unique(frame.server["part"])}
    shares = [
        (step, {part: mean for part, mean in used.items() if part in own}, _generator(frame, step))
        for step, used in measured
    ]
    step, used, generator = max(shares, key=lambda one: sum(one[1].values()) + one[2])
    busiest = max(used, key=lambda name: used[name])
    if cores and sum(used.values()) + generator >= _ALL * cores:
        others = [f"{plain(part)} {number(mean)}" for part, mean in used.items() if part != busiest]
        if generator > used[busiest]:
            beside = ", ".join([f"{plain(busiest)} {number(used[busiest])}", *others])
            return (
                f"The generator is the bottleneck: of the {_cores(cores)} that it shares with the server it used "
                f"{number(generator)} at {step.where} ({beside}): let it run on another machine."
            )
        beside = ", ".join([*others, *([f"the generator {number(generator)}"] if generator else [])])
        return (
            f"The bottleneck is the CPU: {plain(busiest)} used {number(used[busiest])} of {_cores(cores)} at "
            f"{step.where}{f' ({beside})' if beside else ''}."
        )
    if whole := _whole(frame, shares):
        return whole
    of = f" of {_cores(cores)}" if cores else " cores"
    return (
        f"No part of the server used all of its cores: the busiest, {plain(busiest)}, used {number(used[busiest])}{of} "
        f"at {step.where}{f', the generator {number(generator)}' if generator else ''}."
    )


def _cores(count: int) -> str:
    return f"{count:,} core{'' if count == 1 else 's'}"


def _generator(frame: Frame, step: StepStatistics) -> float:
    """Return how many cores the ranks on the server's machine used in a step, 0 if there are none."""
    ranks = frame.ranks["rank"][frame.ranks["host"] == str(frame.facts.get("host", "")).encode()[:64]]
    rows = frame.health[(frame.health["step"] == step.step) & np.isin(frame.health["rank"], ranks)]
    rows = rows[rows["wall_seconds"] > 0]
    return float((rows["cpu_seconds"] / rows["wall_seconds"]).sum())


def _whole(frame: Frame, shares: list[tuple[StepStatistics, dict[str, float], float]]) -> str:
    """Say which processes of Python used a whole core each, and so all that they can, while other cores were free."""
    for step, used, _ in sorted(shares, key=lambda one: -sum(one[1].values())):
        for part in sorted(used, key=lambda name: -used[name]):
            rows = frame.server[(frame.server["part"] == part.encode()) & (frame.server["pid"] > 0)]
            busy = 0
            for pid in np.unique(rows["pid"]):
                mine = _in_order(rows[rows["pid"] == pid])
                begin, end = np.interp([step.began, step.began + step.duration], mine["time"], mine["cpu_seconds"])
                mean = (end - begin) / step.duration
                busy += mean >= _ALL and _text(mine["command"][0]).startswith(_ONE_CORE)
            if busy and busy >= _ALL * used[part] - 0.5:
                what = "One process" if busy == 1 else f"{busy} processes"
                each = "a whole core" if busy == 1 else "a whole core each"
                return (
                    f"{what} of {plain(part)} used {each} at {step.where}, which is all that Python can use of it, "
                    "while other cores were free: give it more workers."
                )
    return ""
