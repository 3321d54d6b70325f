"""mantik's figures: duration on one axis, duration per unit on the other, over what was logged, a line per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.figures.parts import new_figure
from analysis.published.mantik import Timing

Series = Mapping[str, Sequence[Timing]]

# What is swept, and what a duration is divided by.
_WORDS = {
    "parameters": ("parameters of a run", "parameter"),
    "artifacts": ("size of all files (MB)", "MB"),
    "parallel-runs": ("parallel runs", "parameter"),
}
_TITLES = {
    "parameters": "Duration of a run that logs parameters",
    "artifacts": "Duration of a run that uploads files",
    "parallel-runs": "Duration of parallel runs, until the last one is done",
}


def by_method(workload: str, series: Series) -> Figure:
    """Draw durations (solid, left) and durations per unit (dashed, hollow, right); failures are crosses."""
    swept, unit = _WORDS[workload]
    figure = new_figure(10.2, 5.6)
    left = figure.subplots()
    left.set_title(_TITLES[workload])
    timed = [timing for timings in series.values() for timing in timings]
    amounts = sorted({timing.amount for timing in timed if timing.amount > 0})
    if not amounts:
        style.nothing(left, "nothing was logged")
        return figure
    right = left.twinx()
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    style.size_axis(left, amounts, room=0.05)
    left.set_xlabel(swept)
    left.set_ylabel("duration (solid)")
    right.set_ylabel(f"duration per {unit} (dashed)")
    style.seconds_axis(left.yaxis, [timing.duration for timing in timed])
    style.seconds_axis(right.yaxis, [timing.per_unit for timing in timed])
    for (_, timings), line in zip(series.items(), style.lines(len(series)), strict=True):
        _draw(left, timings, [timing.duration for timing in timings], line, "-")
        _draw(right, timings, [timing.per_unit for timing in timings], line, "--")
    handles = [
        Line2D([], [], color=line.colour, marker=line.marker, label=style.text(name))
        for name, line in zip(series, style.lines(len(series)), strict=True)
    ]
    if any(not timing.succeeded for timing in timed):
        handles.append(Line2D([], [], color=style.GREY, marker="X", markersize=8, linestyle="", label="failed"))
    figure.legend(handles=handles, loc="outside upper right", ncols=min(4, len(handles)))
    return figure


def _draw(axes: Axes, timings: Sequence[Timing], values: list[float], line: style.Line, dashes: str) -> None:
    good: dict[float, list[float]] = {}
    for timing, value in zip(timings, values, strict=True):
        if timing.succeeded and math.isfinite(value) and value > 0:
            good.setdefault(timing.amount, []).append(value)
        elif math.isfinite(value) and value > 0:
            face = line.colour if dashes == "-" else "white"
            axes.plot(timing.amount, value, "X", color=line.colour, markerfacecolor=face, markersize=8, zorder=3)
    places = sorted(good)
    axes.plot(places, [float(np.median(good[place])) for place in places], dashes, color=line.colour)
    # Of many runs the points would be a column of ink: then the medians stand for them.
    few = max(map(len, good.values()), default=0) <= 20
    points = [(place, value) for place in places for value in (good[place] if few else [np.median(good[place])])]
    if points:
        face = line.colour if dashes == "-" else "white"
        axes.plot(*zip(*points, strict=True), line.marker, color=line.colour, markerfacecolor=face, alpha=0.85)
