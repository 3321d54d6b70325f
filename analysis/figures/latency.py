"""Which operation is slow, and how far the tail reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis import units
from analysis.figures import style
from analysis.figures.parts import draw_ladders_legend, draw_note, new_figure, place_axis
from analysis.frame import OPERATIONS
from analysis.percentiles import LEVELS, Estimate, Percentiles
from analysis.statistics import OperationStatistics, Statistics
from hpcstress.record import Operation

_CONNECT = Operation.connect
# More curves than this have no room for their names.
_CURVES = 10


def operations(statistics: Statistics) -> Figure:
    """Draw the percentiles of every operation against the load, with their confidence intervals.

    Of several ladders each has a line, which is that of the p99.
    """
    table, climbed = statistics.operations, statistics.climb
    names = list(dict.fromkeys(row.operation for row in sorted(table, key=lambda row: OPERATIONS.index(row.operation))))
    columns = min(4, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    figure = new_figure(10.2, 0.9 + 2.5 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    several = len(climbed.ladders) > 1
    shown = [row.service.p99 for row in table] if several else [e for row in table for e in _estimates(row.service)]
    values = [value for estimate in shown for value in (estimate.low, estimate.high)]
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_title(style.text(name.replace("_", " ")))
        mine = {row.rung: row for row in table if row.operation == name}
        for ladder, line in zip(climbed.ladders, style.lines(len(climbed.ladders)), strict=True):
            found = {climbed.axis.place(rung): mine[rung] for rung in ladder.rungs if rung in mine}
            if several:
                _draw_estimates(axes, found, "p99", line)
            else:
                for level, colour in style.PERCENTILES.items():
                    _draw_estimates(axes, found, level, style.Line(colour, "o", "-"))
        failed = sum(row.failed for row in mine.values())
        if failed:
            draw_note(axes, f"{failed:,} failed")
        place_axis(axes, climbed, room=0.26, named=False)
        style.seconds_axis(axes.yaxis, values)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    if not names:
        grid[0, 0].set_visible(True)
        style.nothing(grid[0, 0], "nothing was sent")
        return figure
    figure.supxlabel(climbed.axis.label, fontsize=9.5, color="#374151")
    figure.supylabel("service time" + (" (p99)" if several else ""), fontsize=9.5, color="#374151")
    bounds = []
    if any(not estimate.enough for estimate in shown):
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "color": style.GREY, "linestyle": ""}
        bounds.append(Line2D([], [], label="n too small: a lower bound", **hollow))
    if several:
        draw_ladders_legend(figure, climbed, *bounds)
    else:
        levels = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in style.PERCENTILES.items()]
        figure.legend(handles=[*levels, *bounds], loc="outside upper right", ncols=4)
    return figure


def _draw_estimates(axes: Axes, rows: Mapping[float, OperationStatistics], level: str, line: style.Line) -> None:
    estimates = {place: getattr(row.service, level) for place, row in rows.items()}
    axes.plot(list(estimates), [e.value for e in estimates.values()], line.dashes, color=line.colour, linewidth=1.2)
    for place, estimate in estimates.items():
        axes.plot([place, place], [estimate.low, estimate.high], color=line.colour, linewidth=3.5, alpha=0.35)
        face = line.colour if estimate.enough else "white"
        axes.plot(place, estimate.value, line.marker, color=line.colour, markerfacecolor=face)


def _estimates(service: Percentiles) -> list[Estimate]:
    return [getattr(service, name) for name in LEVELS]


def percentiles(statistics: Statistics, objective: float) -> Figure:
    """Draw the whole distribution of service times, one curve per rung, with the tail spread out."""
    figure = new_figure(10.2, 4.8)
    axes = figure.subplots()
    axes.set_title("Service time of all requests, by percentile")
    axes.set_xlabel("percentile")
    climbed = statistics.climb
    rungs = [rung for rung in climbed.rungs if any(of == rung and code != _CONNECT for of, code in statistics.samples)]
    note = climbed.label_words if climbed.options else ""
    if len(rungs) > _CURVES:
        note += f"; {_CURVES} of {len(rungs)} are shown" if note else f"{_CURVES} of {len(rungs)} sizes are shown"
        rungs = [rungs[place] for place in np.linspace(0, len(rungs) - 1, _CURVES).round().astype(int)]
    shown = {rung: statistics.requests(rung) for rung in rungs}
    most = max(map(len, shown.values()), default=10)
    ends = [1 - 10.0**-nines for nines in range(1, max(2, math.ceil(math.log10(most))) + 1)]
    axes.set_xscale("log")
    axes.set_xlim(1, max(most, 100) * 1.02)
    axes.xaxis.set_minor_locator(FixedLocator([]))
    levels = [0.0, 0.5, *ends]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - level) for level in levels]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.7g} %"))
    values: list[float] = []
    labels: list[tuple[float, str, str]] = []
    for (rung, sample), colour in zip(shown.items(), style.shades(len(shown)), strict=True):
        # Beyond a share of 1 - 1/n only the largest of n values is left: there the curve ends.
        nines = np.geomspace(1, len(sample), 300)
        beyond = np.floor(len(sample) * (1 - 1 / nines) + 1e-6).astype(np.int64)
        line = sample.values[np.minimum(beyond, len(sample) - 1)] / 1e9
        axes.plot(nines, line, color=colour)
        axes.plot(nines[-1], line[-1], "o", color=colour)
        values += [float(line[0]), float(line[-1])]
        words = climbed.label(rung) if climbed.options else units.count(rung.size, climbed.sizes.removesuffix("s"))
        labels.append((float(line[-1]), style.text(words), colour))
    if not shown:
        style.nothing(axes, "no request was sent")
        return figure
    near = min(values) / 30 < objective < max(values) * 30
    style.seconds_axis(axes.yaxis, [*values, *([objective] if near else [])])
    if near:
        axes.axhline(objective, color=style.RED, linestyle="--", linewidth=1.1)
        labels.append((objective, "objective of p99", style.RED))
    axes.set_title(style.text(note), loc="right", fontsize=9, fontweight="normal", color=style.GREY)
    style.label_right(axes, labels, gap=0.055)
    return figure
