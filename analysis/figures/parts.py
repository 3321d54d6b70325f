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
from matplotlib.patches import Patch

from analysis.figures import style
from analysis.statistics import StepStatistics

# What the repeats of every size of step gave, by size.
Spread = dict[int, list[float]]
Steps = tuple[StepStatistics, ...]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches that lays itself out."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06))


def spread_of(sizes: Mapping[int, Steps], value: Callable[[StepStatistics], float]) -> Spread:
    """Return the finite values of every size's repeats; a size without any is left out."""
    found = {size: [value(step) for step in steps] for size, steps in sizes.items()}
    found = {size: [value for value in values if math.isfinite(value)] for size, values in found.items()}
    return {size: values for size, values in found.items() if values}


def values_of(spread: Spread) -> list[float]:
    """Return all values of a spread."""
    return [value for values in spread.values() for value in values]


def medians(spread: Spread) -> list[float]:
    """Return the median of the repeats of every size."""
    return [float(np.median(values)) for values in spread.values()]


def draw_spread(axes: Axes, spread: Spread, colour: str) -> None:
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
    axes.plot(sizes, medians(spread), color=colour)
    points = [(size, value) for size, values in spread.items() for value in values]
    axes.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.75)


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


def draw_note(axes: Axes, words: str) -> None:
    """Write a few words above the right end of the axes."""
    axes.set_title(words, loc="right", color=style.RED, fontsize=9, fontweight="normal")
