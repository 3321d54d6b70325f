"""Which operation is slow, and how far the tail reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis import units
from analysis.figures import style
from analysis.figures.parts import draw_note, new_figure
from analysis.frame import OPERATIONS
from analysis.percentiles import LEVELS, Estimate, Percentiles, Sample
from analysis.statistics import OperationStatistics


def operations(table: Sequence[OperationStatistics]) -> Figure:
    """Draw the percentiles of every operation against the number of runs, with their confidence intervals."""
    names = list(dict.fromkeys(row.operation for row in sorted(table, key=lambda row: OPERATIONS.index(row.operation))))
    columns = min(4, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    figure = new_figure(10.2, 0.7 + 2.5 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    values = [value for row in table for estimate in _estimates(row.service) for value in (estimate.low, estimate.high)]
    sizes = sorted({row.size for row in table})
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_title(style.text(name.replace("_", " ")))
        mine = sorted((row for row in table if row.operation == name), key=lambda row: row.size)
        for level, colour in style.PERCENTILES.items():
            _draw_estimates(axes, mine, level, colour)
        failed = sum(row.failed for row in mine)
        if failed:
            draw_note(axes, f"{failed:,} failed")
        style.size_axis(axes, sizes, room=0.26)
        style.seconds_axis(axes.yaxis, values)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    if not names:
        grid[0, 0].set_visible(True)
        style.nothing(grid[0, 0], "nothing was sent")
        return figure
    figure.supxlabel("runs that start at once", fontsize=9.5, color="#374151")
    figure.supylabel("service time", fontsize=9.5, color="#374151")
    handles = [Line2D([], [], color=colour, marker="o", label=level) for level, colour in style.PERCENTILES.items()]
    if any(not estimate.enough for row in table for estimate in _estimates(row.service)):
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "color": style.GREY, "linestyle": ""}
        handles.append(Line2D([], [], label="n too small: a lower bound", **hollow))
    figure.legend(handles=handles, loc="outside upper right", ncols=4)
    return figure


def _draw_estimates(axes: Axes, rows: Sequence[OperationStatistics], level: str, colour: str) -> None:
    estimates = [getattr(row.service, level) for row in rows]
    sizes = [row.size for row in rows]
    axes.plot(sizes, [estimate.value for estimate in estimates], color=colour, linewidth=1.2)
    for size, estimate in zip(sizes, estimates, strict=True):
        axes.plot([size, size], [estimate.low, estimate.high], color=colour, linewidth=3.5, alpha=0.35)
        face = colour if estimate.enough else "white"
        axes.plot(size, estimate.value, "o", color=colour, markerfacecolor=face)


def _estimates(service: Percentiles) -> list[Estimate]:
    return [getattr(service, name) for name in LEVELS]


def percentiles(requests: Mapping[int, Sample], objective: float) -> Figure:
    """Draw the whole distribution of service times, one curve per size of step, with the tail spread out."""
    figure = new_figure(10.2, 4.8)
    axes = figure.subplots()
    axes.set_title("Service time of all requests, by percentile")
    axes.set_xlabel("percentile")
    shown = {size: sample for size, sample in requests.items() if len(sample)}
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
    for (size, sample), colour in zip(shown.items(), style.shades(len(shown)), strict=True):
        # Beyond a share of 1 - 1/n only the largest of n values is left: there the curve ends.
        nines = np.geomspace(1, len(sample), 300)
        beyond = np.floor(len(sample) * (1 - 1 / nines) + 1e-6).astype(np.int64)
        line = sample.values[np.minimum(beyond, len(sample) - 1)] / 1e9
        axes.plot(nines, line, color=colour)
        axes.plot(nines[-1], line[-1], "o", color=colour)
        values += [float(line[0]), float(line[-1])]
        labels.append((float(line[-1]), units.count(size, "run"), colour))
    if not shown:
        style.nothing(axes, "no request was sent")
        return figure
    near = min(values) / 30 < objective < max(values) * 30
    style.seconds_axis(axes.yaxis, [*values, *([objective] if near else [])])
    if near:
        axes.axhline(objective, color=style.RED, linestyle="--", linewidth=1.1)
        labels.append((objective, "objective of p99", style.RED))
    style.label_right(axes, labels, gap=0.055)
    return figure
