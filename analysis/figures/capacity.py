"""How much a server takes: duration, throughput, latency and failures against the number of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from analysis.figures import style
from analysis.figures.parts import (
    Steps,
    draw_legend,
    draw_note,
    draw_spread,
    groups_of,
    medians,
    new_figure,
    spread_of,
    values_of,
)
from analysis.percentiles import LEVELS
from analysis.statistics import by_size


def scaling(steps: Steps, objective: float) -> Figure:
    """Draw duration, throughput, latency and failures against the number of runs, with the spread of the repeats."""
    figure = new_figure(10.2, 7.4)
    ((duration, throughput), (latency, failures)) = figure.subplots(2, 2)
    sizes = by_size(steps)
    for axes in (duration, throughput, latency, failures):
        axes.set_xlabel("runs that start at once")
        style.size_axis(axes, list(sizes))
    _draw_duration(duration, sizes)
    _draw_throughput(throughput, sizes)
    _draw_latency(latency, sizes, objective)
    _draw_failures(failures, sizes)
    return figure


def _draw_duration(axes: Axes, sizes: Mapping[int, Steps]) -> None:
    axes.set_title("How long a step takes")
    last = spread_of(sizes, lambda step: step.duration)
    first = spread_of(sizes, lambda step: step.first_done)
    if not last:
        style.nothing(axes, "no step was played")
        return
    style.seconds_axis(axes.yaxis, [*values_of(last), *values_of(first)])
    draw_spread(axes, last, style.BLUE)
    draw_spread(axes, first, style.SKY)
    labels = [(medians(last)[-1], "last rank done", style.BLUE)]
    if first:
        labels.append((medians(first)[-1], "first rank done", "#2f88bd"))
    if len(last) > 1:
        ideal = medians(last)[0]
        axes.plot(list(last), [ideal] * len(last), "--", color=style.GREY, linewidth=1)
        labels.append((ideal, "ideal: no longer\nthan the smallest", style.GREY))
    style.label_right(axes, labels, gap=0.1)


def _draw_throughput(axes: Axes, sizes: Mapping[int, Steps]) -> None:
    axes.set_title("Throughput (per second)")
    requests = spread_of(sizes, lambda step: step.requests_per_second)
    runs = spread_of(sizes, lambda step: step.runs_per_second)
    if not any(values_of(requests)):
        style.nothing(axes, "no request was answered well" if sizes else "no step was played")
        return
    style.log_axis(axes.yaxis, [*values_of(requests), *values_of(runs)])
    labels = []
    for series, words, colour in ((requests, "good answers", style.BLUE), (runs, "finished runs", style.GREEN)):
        above = {size: [value for value in values if value > 0] for size, values in series.items()}
        positive = {size: values for size, values in above.items() if values}
        none = [size for size, values in series.items() if min(values) <= 0]
        for size in none:
            axes.plot(size, axes.get_ylim()[0], "x", color=colour, clip_on=False, markersize=7)
        if positive:
            draw_spread(axes, positive, colour)
            labels.append((medians(positive)[-1], words, colour))
        elif none:
            labels.append((axes.get_ylim()[0], f"{words}: none", colour))
    answered = [(size, value) for size, value in zip(requests, medians(requests), strict=True) if value > 0]
    if len(answered) > 1:
        (smallest, base), low, high = answered[0], *axes.get_ylim()
        line = np.geomspace(smallest, answered[-1][0], 50)
        ideal = base * line / smallest
        inside = ideal <= high
        axes.plot(line[inside], ideal[inside], "--", color=style.GREY, linewidth=1)
        axes.set_ylim(low, high)
        # In the middle of its line, left of what was measured, which cannot be better for long.
        place = np.count_nonzero(inside) // 2
        axes.annotate(
            "ideal",
            (line[place], ideal[place]),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=style.GREY,
            fontsize=9,
        )
    style.label_right(axes, labels)


def _draw_latency(axes: Axes, sizes: Mapping[int, Steps], objective: float) -> None:
    axes.set_title("Latency of requests")
    series = {
        name: spread_of(sizes, lambda step, name=name: getattr(step.service, name).value)  # type: ignore[misc]
        for name in LEVELS
    }
    known = [value for spread in series.values() for value in values_of(spread)]
    if not known:
        style.nothing(axes, "no request was sent")
        return
    # An objective that is far from anything measured would flatten the curves to lines: then it is only said.
    near = min(known) / 30 < objective < max(known) * 30
    style.seconds_axis(axes.yaxis, [*known, *([objective] if near else [])])
    labels = [(medians(spread)[-1], name, style.PERCENTILES[name]) for name, spread in series.items() if spread]
    for name, spread in series.items():
        draw_spread(axes, spread, style.PERCENTILES[name])
    if near:
        axes.axhline(objective, color=style.RED, linestyle="--", linewidth=1.1)
        labels.append((objective, f"objective {objective:g} s", style.RED))
    else:
        draw_note(axes, f"objective of p99: {objective:g} s")
    style.label_right(axes, labels, gap=0.085)


def _draw_failures(axes: Axes, sizes: Mapping[int, Steps]) -> None:
    axes.set_title("Failed attempts")
    failed: dict[int, Counter[str]] = {}
    tried: dict[int, int] = {}
    for size, repeats in sizes.items():
        failed[size] = Counter()
        for step in repeats:
            failed[size].update(step.failed_requests)
            failed[size].update(step.failed_connections)
        tried[size] = sum(step.requests + step.connect.count for step in repeats)
    if not any(failed.values()):
        style.nothing(axes, "no attempt failed" if any(tried.values()) else "nothing was sent")
        return
    groups = groups_of(sum(failed.values(), Counter()))
    low, high = axes.get_xlim()
    half = (high / low) ** min(0.035, 0.3 / len(sizes))
    for size, causes in failed.items():
        bottom = 0.0
        for group in groups:
            share = 100 * sum(causes[cause] for cause in group.causes) / max(1, tried[size])
            axes.bar(size / half, share, size * half - size / half, bottom, align="edge", color=group.colour)
            bottom += share
        if causes:
            words = f"{causes.total():,}\nof {tried[size]:,}"
            axes.annotate(words, (size, bottom), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_ylim(0, 1.25 * axes.dataLim.y1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g} %"))
    axes.yaxis.set_major_locator(
        FixedLocator([tick for tick in MaxNLocator(5).tick_values(0, 1.25 * axes.dataLim.y1) if tick <= 100])
    )
    draw_legend(axes, groups)
