"""What was climbed: along which option the steps of a job grew, and how each of its rungs is called.

A rung has a size (runs that begin at once, or users) and a variation (what a sweep gave it for itself). Steps with one
rung are repeats. Where sizes differ, a ladder leads along them; where a job has one size only, it leads along the first
option of the sweep that is a number. Whatever else varies makes a ladder of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from analysis.units import UNKNOWN, count, number
from hpcstress.errors import UsageRefusal
from hpcstress.plan import KINDS, Rung
from hpcstress.quantity import about_size

_LABELS = {
    "params": "parameters",
    "artifact_size": "size of an artifact",
    "rate": "iterations due per second",
    "think_time": "think time in seconds",
}


def varied(variation: str) -> dict[str, str]:
    """Return what a variation gives to each of its options, as it was typed."""
    pairs = (pair.partition("=") for pair in variation.split())
    return {name.replace("-", "_"): value for name, _, value in pairs}


def value_of(name: str, written: object) -> object:
    """Return the value of an option as the plan understands it; of one that it does not know, a number or the text."""
    try:
        return KINDS[name].read(written) if name in KINDS else float(str(written))
    except (UsageRefusal, ValueError):
        return written


@dataclass(frozen=True)
class Axis:
    """Say along what ladders lead: the size of steps, or the one option that is named."""

    option: str
    label: str

    def place(self, rung: Rung) -> float:
        """Return where a rung lies."""
        return float(rung.size) if not self.option else _positive(self.option, varied(rung.variation)[self.option])

    def tick(self, place: float) -> str:
        """Write a place as a number beside an axis."""
        return about_size(round(place)) if self.option == "artifact_size" else f"{place:,.6g}"


@dataclass(frozen=True)
class Ladder:
    """Hold rungs that differ in nothing but their place on the axis, lowest first, and what they have in common."""

    name: str
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class Climb:
    """Hold the ladders of a job, and say how things are called in it."""

    axis: Axis
    ladders: tuple[Ladder, ...]
    users: bool
    rate: float

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Return all rungs, ladder by ladder."""
        return tuple(rung for ladder in self.ladders for rung in ladder.rungs)

    @property
    def noun(self) -> str:
        """Return what the size of a step counts."""
        return "user" if self.users else "parallel run"

    @property
    def sizes(self) -> str:
        """Return the heading of a column of sizes."""
        return "users" if self.users else "runs"

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options that vary, in the order of the sweep."""
        return tuple(dict.fromkeys(name for rung in self.rungs for name in varied(rung.variation)))

    def load(self, rung: Rung) -> str:
        """Say what a rung is within its ladder: `8 users at 50 iterations/s (params=100)`."""
        rate = value_of("rate", varied(rung.variation).get("rate", self.rate))
        at = f" at {number(rate)} iterations/s" if isinstance(rate, float) and rate else ""
        return f"{count(rung.size, self.noun)}{at}{f' ({self.short(rung)})' if self.axis.option else ''}"

    def short(self, rung: Rung) -> str:
        """Say where on its ladder a rung is: `1,000`, or `params=1000`."""
        if not self.axis.option:
            return f"{rung.size:,}"
        return f"{self.axis.option}={varied(rung.variation)[self.axis.option]}"

    @property
    def _telling(self) -> tuple[bool, list[str]]:
        """Return whether the size tells rungs apart, and which options do."""
        values = [varied(rung.variation) for rung in self.rungs]
        options = [name for name in self.options if len({of.get(name) for of in values}) > 1]
        return len({rung.size for rung in self.rungs}) > 1 or not options, options

    def label(self, rung: Rung) -> str:
        """Name a rung among all others, as shortly as possible: `8`, `8 · 100`, `100 · log_batch`."""
        size, options = self._telling
        values = varied(rung.variation)
        told = [
            self.axis.tick(self.axis.place(rung)) if name == self.axis.option else values.get(name, UNKNOWN)
            for name in options
        ]
        return " · ".join([*([f"{rung.size:,}"] if size else []), *told])

    @property
    def label_words(self) -> str:
        """Say what the parts of a label are."""
        size, options = self._telling
        return " · ".join([*([self.sizes] if size else []), *options])


def climb(rungs: Iterable[Rung], users: bool, rate: float = 0.0) -> Climb:
    """Return the ladders that rungs make up."""
    known = list(dict.fromkeys(rungs))
    axis = _axis(known, users)
    ladders: dict[str, list[Rung]] = {}
    for rung in known:
        common = " ".join(word for word in rung.variation.split() if not axis.option or _name(word) != axis.option)
        ladders.setdefault(common, []).append(rung)
    return Climb(
        axis,
        tuple(Ladder(name, tuple(sorted(found, key=axis.place))) for name, found in ladders.items()),
        users,
        rate,
    )


def _axis(rungs: list[Rung], users: bool) -> Axis:
    if len({rung.size for rung in rungs}) <= 1:
        values = [varied(rung.variation) for rung in rungs]
        for name in values[0] if values else ():
            places = [_positive(name, of.get(name)) for of in values]
            if all(places) and len(set(places)) > 1:
                return Axis(name, _LABELS.get(name, name.replace("_", " ")))
    return Axis("", "users" if users else "runs that start at once")


def _positive(name: str, written: object) -> float:
    """Return a number that has a place on a logarithmic axis, and 0 for anything else."""
    value = value_of(name, written)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value > 0
    return float(value) if good else 0.0  # type: ignore[arg-type]


def _name(word: str) -> str:
    return word.partition("=")[0].replace("-", "_")
