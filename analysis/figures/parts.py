"""What several figures need: the spread of repeats, causes and their colours, notes and legends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.figures import style
from analysis.ladders import Climb, Ladder
from analysis.statistics import StepStatistics, by_rung

Steps = tuple[StepStatistics, ...]
# The repeats of every rung of a ladder, and what they gave, by the rung's place on the axis.
Rungs = Mapping[float, Steps]
Spread = dict[float, list[float]]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches that lays itself out."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06))


def rungs_of(climbed: Climb, ladder: Ladder, steps: Steps) -> Rungs:
    """Return the steps of a ladder by their place on the axis."""
    return {climbed.axis.place(rung): of for rung, of in by_rung(steps, ladder.rungs).items()}


def place_axis(axes: Axes, climbed: Climb, room: float = 0.13, *, named: bool = True) -> None:
    """Make the x axis that along which the ladders lead."""
    style.size_axis(axes, sorted({climbed.axis.place(rung) for rung in climbed.rungs}), room, climbed.axis.tick)
    if named:
        axes.set_xlabel(climbed.axis.label)


def spread_of(rungs: Rungs, value: Callable[[StepStatistics], float]) -> Spread:
    """Return the finite values of every rung's repeats; a rung without any is left out."""
    found = {place: [value(step) for step in steps] for place, steps in rungs.items()}
    found = {place: [value for value in values if math.isfinite(value)] for place, values in found.items()}
    return {place: values for place, values in found.items() if values}


def values_of(spread: Spread) -> list[float]:
    """Return all values of a spread."""
    return [value for values in spread.values() for value in values]


def medians(spread: Spread) -> list[float]:
    """Return the median of the repeats of every rung."""
    return [float(np.median(values)) for values in spread.values()]


def draw_spread(axes: Axes, spread: Spread, colour: str, marker: str = "o", dashes: str = "-") -> None:
    """Draw a line through the medians of the repeats, a band between their extremes, and a point for each."""
    if not spread:
        return
    sizes = list(spread)
    axes.fill_between(
        sizes,
        [min(v) for v in spread.values()],
        [max(v) for v in spread.values()],
        color=to_rgba(colour, 0.16),
        linewidth=0,
    )
    axes.plot(sizes, medians(spread), dashes, color=colour)
    points = [(size, value) for size, values in spread.items() for value in values]
    axes.plot(*zip(*points, strict=True), marker, color=colour, alpha=0.75)


@dataclass(frozen=True)
class Group:
    """Hold the causes of failures that are drawn in one colour, and what they are called."""

    name: str
    colour: str
    causes: frozenset[str]


def groups_of(causes: Counter[str]) -> list[Group]:
    """Return one group for each cause, the most frequent first; what comes after the palette's end is one group."""
    ranked = [cause for cause, _ in causes.most_common()]
    groups = [
        Group(style.text(cause.replace("_", " ")), colour, frozenset([cause]))
        for cause, colour in zip(ranked, style.CAUSES, strict=False)
    ]
    rest = frozenset(ranked[len(groups) :])
    return [*groups, Group("other causes", style.GREY, rest)] if rest else groups


def draw_legend(axes: Axes, groups: Sequence[Group]) -> None:
    """Name the causes right of the axes, in the order in which they are stacked."""
    axes.legend(
        handles=[Patch(color=group.colour, label=group.name) for group in reversed(groups)],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.05),
        fontsize=8.5,
        labelspacing=0.3,
    )


def draw_ladders_legend(figure: Figure, climbed: Climb, *more: Line2D) -> None:
    """Name the ladders and their lines above the axes, and whatever else is to be named."""
    handles = [
        Line2D([], [], color=line.colour, marker=line.marker, linestyle=line.dashes, label=style.text(ladder.name))
        for ladder, line in zip(climbed.ladders, style.lines(len(climbed.ladders)), strict=True)
    ]
    figure.legend(handles=[*handles, *more], loc="outside upper left", ncols=4)


def draw_note(axes: Axes, words: str) -> None:
    """Write a few words above the right end of the axes."""
    axes.set_title(words, loc="right", color=style.RED, fontsize=9, fontweight="normal")
