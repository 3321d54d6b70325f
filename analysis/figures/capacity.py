"""How much a server takes: duration, throughput, latency and failures against the load."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from analysis.figures import style
from analysis.figures.parts import (
    Rungs,
    Steps,
    draw_ladders_legend,
    draw_legend,
    draw_note,
    draw_spread,
    groups_of,
    medians,
    new_figure,
    place_axis,
    rungs_of,
    spread_of,
    values_of,
)
from analysis.ladders import Climb
from analysis.percentiles import LEVELS
from analysis.statistics import StepStatistics, climb_of


def scaling(steps: Steps, objective: float) -> Figure:
    """Draw duration, throughput, latency and failures against the load, with the spread of the repeats.

    The load is the size of steps, or the option that a sweep let grow; several ladders are drawn as a line each.
    """
    figure = new_figure(10.2, 7.4)
    ((duration, throughput), (latency, failures)) = figure.subplots(2, 2)
    climbed = climb_of(steps)
    for axes in (duration, throughput, latency, failures):
        place_axis(axes, climbed)
    if len(climbed.ladders) > 1:
        _draw_ladders((duration, throughput, latency, failures), climbed, steps, objective)
        draw_ladders_legend(figure, climbed)
        return figure
    rungs = rungs_of(climbed, climbed.ladders[0], steps) if climbed.ladders else {}
    _draw_duration(duration, rungs, climbed)
    _draw_throughput(throughput, rungs, climbed)
    _draw_latency(latency, rungs, objective)
    _draw_failures(failures, rungs)
    return figure


def _draw_duration(axes: Axes, rungs: Rungs, climbed: Climb) -> None:
    if any(step.rate for steps in rungs.values() for step in steps):
        _draw_percentiles(axes, rungs, "How late iterations begin", lambda step: step.waiting, "no iteration began")
        return
    if any(step.timed for steps in rungs.values() for step in steps):
        _draw_percentiles(axes, rungs, "How long a whole run takes", lambda step: step.run_duration, "no run began")
        return
    axes.set_title("How long a step takes")
    last = spread_of(rungs, lambda step: step.duration)
    first = spread_of(rungs, lambda step: step.first_done)
    if not last:
        style.nothing(axes, "no step was played")
        return
    style.seconds_axis(axes.yaxis, [*values_of(last), *values_of(first)])
    draw_spread(axes, last, style.BLUE)
    draw_spread(axes, first, style.SKY)
    labels = [(medians(last)[-1], "last rank done", style.BLUE)]
    if first:
        labels.append((medians(first)[-1], "first rank done", "#2f88bd"))
    if len(last) > 1 and not climbed.axis.option:
        ideal = medians(last)[0]
        axes.plot(list(last), [ideal] * len(last), "--", color=style.GREY, linewidth=1)
        labels.append((ideal, "ideal: no longer\nthan the smallest", style.GREY))
    style.label_right(axes, labels, gap=0.1)


def _draw_percentiles(
    axes: Axes, rungs: Rungs, title: str, value: Callable[[StepStatistics], object], nothing: str
) -> None:
    axes.set_title(title)
    series = {
        name: spread_of(rungs, lambda step, name=name: getattr(value(step), name).value)  # type: ignore[misc]
        for name in LEVELS
    }
    known = [value for spread in series.values() for value in values_of(spread)]
    if not known:
        style.nothing(axes, nothing)
        return
    style.seconds_axis(axes.yaxis, known)
    for name, spread in series.items():
        draw_spread(axes, spread, style.PERCENTILES[name])
    style.label_right(
        axes, [(medians(spread)[-1], name, style.PERCENTILES[name]) for name, spread in series.items() if spread]
    )


def _draw_throughput(axes: Axes, rungs: Rungs, climbed: Climb) -> None:
    axes.set_title("Throughput (per second)")
    requests = spread_of(rungs, lambda step: step.requests_per_second)
    runs = spread_of(rungs, lambda step: step.runs_per_second)
    if not any(values_of(requests)):
        style.nothing(axes, "no request was answered well" if rungs else "no step was played")
        return
    style.log_axis(axes.yaxis, [*values_of(requests), *values_of(runs)])
    labels = []
    for series, words, colour in ((requests, "good answers", style.BLUE), (runs, "finished runs", style.GREEN)):
        above = {place: [value for value in values if value > 0] for place, values in series.items()}
        positive = {place: values for place, values in above.items() if values}
        none = [place for place, values in series.items() if min(values) <= 0]
        for place in none:
            axes.plot(place, axes.get_ylim()[0], "x", color=colour, clip_on=False, markersize=7)
        if positive:
            draw_spread(axes, positive, colour)
            labels.append((medians(positive)[-1], words, colour))
        elif none:
            labels.append((axes.get_ylim()[0], f"{words}: none", colour))
    answered = [(place, value) for place, value in zip(requests, medians(requests), strict=True) if value > 0]
    # More runs or users may do more in a second; who comes at a given rate does what that allows.
    if len(answered) > 1 and climbed.axis.option == ("rate" if climbed.rate else ""):
        (smallest, base), low, high = answered[0], *axes.get_ylim()
        line = np.geomspace(smallest, answered[-1][0], 50)
        ideal = base * line / smallest
        inside = ideal <= high
        axes.plot(line[inside], ideal[inside], "--", color=style.GREY, linewidth=1)
        axes.set_ylim(low, high)
        # In the middle of its line, left of what was measured, which cannot be better for long.
        middle = np.count_nonzero(inside) // 2
        axes.annotate(
            "ideal",
            (line[middle], ideal[middle]),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=style.GREY,
            fontsize=9,
        )
    style.label_right(axes, labels)


def _latency_title(steps: Steps) -> str:
    return "Response time of requests" if any(step.rate for step in steps) else "Latency of requests"


def _draw_latency(axes: Axes, rungs: Rungs, objective: float) -> None:
    axes.set_title(_latency_title(tuple(step for steps in rungs.values() for step in steps)))
    series = {
        name: spread_of(rungs, lambda step, name=name: getattr(step.judged, name).value)  # type: ignore[misc]
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


def _draw_failures(axes: Axes, rungs: Rungs) -> None:
    axes.set_title("Failed attempts")
    failed: dict[float, Counter[str]] = {}
    tried: dict[float, int] = {}
    for place, repeats in rungs.items():
        failed[place] = Counter()
        for step in repeats:
            failed[place].update(step.failed_requests)
            failed[place].update(step.failed_connections)
        tried[place] = _tried(repeats)
    if not any(failed.values()):
        style.nothing(axes, "no attempt failed" if any(tried.values()) else "nothing was sent")
        return
    groups = groups_of(sum(failed.values(), Counter()))
    low, high = axes.get_xlim()
    half = (high / low) ** min(0.035, 0.3 / len(rungs))
    for place, causes in failed.items():
        bottom = 0.0
        for group in groups:
            share = 100 * sum(causes[cause] for cause in group.causes) / max(1, tried[place])
            axes.bar(place / half, share, place * half - place / half, bottom, align="edge", color=group.colour)
            bottom += share
        if causes:
            words = f"{causes.total():,}\nof {tried[place]:,}"
            axes.annotate(words, (place, bottom), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    _share_axis(axes)
    draw_legend(axes, groups)


def _share_axis(axes: Axes) -> None:
    top = 1.25 * axes.dataLim.y1
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g} %"))
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in MaxNLocator(5).tick_values(0, top) if tick <= 100]))


def _tried(steps: Steps) -> int:
    return sum(step.requests + step.connect.count for step in steps)


def _draw_ladders(panels: tuple[Axes, Axes, Axes, Axes], climbed: Climb, steps: Steps, objective: float) -> None:
    """Draw one line for each ladder: of several quantities in a panel, the one that tells most."""
    duration, throughput, latency, failures = panels
    ladders = [rungs_of(climbed, ladder, steps) for ladder in climbed.ladders]
    if any(step.rate for step in steps):
        duration.set_title("How late iterations begin (p99)")
        _draw_lines(duration, ladders, lambda step: step.waiting.p99.value)
    elif any(step.timed for step in steps):
        duration.set_title("How long a whole run takes (p99)")
        _draw_lines(duration, ladders, lambda step: step.run_duration.p99.value)
    else:
        duration.set_title("How long a step takes")
        _draw_lines(duration, ladders, lambda step: step.duration)
    throughput.set_title("Good answers per second")
    _draw_lines(throughput, ladders, lambda step: step.requests_per_second or math.nan, style.log_axis)
    latency.set_title(f"{_latency_title(steps)} (p99)")
    _draw_lines(latency, ladders, lambda step: step.judged.p99.value, objective=objective)
    failures.set_title("Failed attempts")
    if not any(step.failed for step in steps):
        style.nothing(failures, "no attempt failed")
        return
    for rungs, line in zip(ladders, style.lines(len(ladders)), strict=True):
        shares = {place: [100 * sum(s.failed for s in of) / max(1, _tried(of))] for place, of in rungs.items()}
        draw_spread(failures, shares, *line)
    _share_axis(failures)


def _draw_lines(
    axes: Axes,
    ladders: list[Rungs],
    value: Callable[[StepStatistics], float],
    make_axis: Callable[..., None] = style.seconds_axis,
    objective: float | None = None,
) -> None:
    spreads = [spread_of(rungs, value) for rungs in ladders]
    known = [value for spread in spreads for value in values_of(spread)]
    if not known:
        style.nothing(axes, "nothing was measured")
        return
    near = objective is not None and min(known) / 30 < objective < max(known) * 30
    make_axis(axes.yaxis, [*known, *([objective] if near else [])])
    for spread, line in zip(spreads, style.lines(len(spreads)), strict=True):
        draw_spread(axes, spread, *line)
    if objective is not None and near:
        axes.axhline(objective, color=style.RED, linestyle="--", linewidth=1.1)
        style.label_right(axes, [(objective, f"objective\n{objective:g} s", style.RED)])
    elif objective is not None:
        draw_note(axes, f"objective: {objective:g} s")
