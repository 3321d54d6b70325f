"""Whether the generator can be believed: its loop, its lateness, its CPU, its clocks."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from analysis.figures import style
from analysis.figures.parts import (
    Rungs,
    Steps,
    draw_spread,
    medians,
    new_figure,
    place_axis,
    rungs_of,
    spread_of,
    values_of,
)
from analysis.frame import Frame
from analysis.percentiles import Values
from analysis.statistics import climb_of
from analysis.verdict import CPU_SHARE, cpu_share


def health(frame: Frame, steps: Steps) -> Figure:
    """Draw what the generator itself felt: loop lag, lateness, CPU and clock error, for every rank."""
    figure = new_figure(10.2, 6.6)
    ((lag, late), (cpu, clock)) = figure.subplots(2, 2)
    _draw_lag(lag, frame)
    _draw_lateness(late, steps)
    _draw_cpu(cpu, frame)
    _draw_clock(clock, frame)
    return figure


def _draw_lag(axes: Axes, frame: Frame) -> None:
    axes.set_title("Event loop's lag, worst step")
    if not len(frame.health):
        style.nothing(axes, "no rank reported")
        return
    ranks, p50 = _worst(frame, frame.health["lag_p50_ns"] / 1e9)
    _, p99 = _worst(frame, frame.health["lag_p99_ns"] / 1e9)
    style.seconds_axis(axes.yaxis, [*p50, *p99])
    _count_axis(axes, "rank", ranks)
    _draw_points(axes, ranks, p50, style.PERCENTILES["p50"])
    _draw_points(axes, ranks, p99, style.PERCENTILES["p99"])
    style.label_right(
        axes, [(float(p50[-1]), "p50", style.PERCENTILES["p50"]), (float(p99[-1]), "p99", style.PERCENTILES["p99"])]
    )


def _draw_cpu(axes: Axes, frame: Frame) -> None:
    axes.set_title("CPU of a core, busiest step")
    if not len(frame.health):
        style.nothing(axes, "no rank reported")
        return
    ranks, shares = _worst(frame, 100 * cpu_share(frame.health))
    axes.set_ylim(0, 1.08 * max(100.0, shares.max()))
    _count_axis(axes, "rank", ranks)
    _draw_points(axes, ranks, shares, style.BLUE)
    axes.axhline(100 * CPU_SHARE, color=style.RED, linestyle="--", linewidth=1.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f} %"))
    style.label_right(axes, [(100 * CPU_SHARE, "too busy", style.RED)])


def _draw_clock(axes: Axes, frame: Frame) -> None:
    axes.set_title("Clock's error bound, and latest true start")
    unsure = frame.ranks[frame.ranks["error_ns"] > 0]
    errors, known = unsure["error_ns"] / 1e9, frame.health["clock_error_ns"] >= 0
    ranks, starts = _worst(frame, np.where(known, frame.health["began_ns"], 0) / 1e9)
    ranks, began = ranks[starts > 0], starts[starts > 0]
    # Ranks of one kernel have one clock; when they truly began is known all the same.
    if len(frame.ranks) < 2 or not len(errors) + len(began):
        style.nothing(axes, "one clock" if len(frame.ranks) else "no rank reported")
        return
    style.seconds_axis(axes.yaxis, [*errors, *began])
    _count_axis(axes, "rank", frame.ranks["rank"])
    labels = []
    for of, values, word, colour in (
        (unsure["rank"], errors, "error", style.BLUE),
        (ranks, began, "start", style.PERCENTILES["p99"]),
    ):
        if len(values):
            _draw_points(axes, of, values, colour)
            labels.append((float(values[-1]), word, colour))
    style.label_right(axes, labels)


def _draw_lateness(axes: Axes, steps: Steps) -> None:
    axes.set_title("Lateness beside service time")
    climbed = climb_of(steps)
    rungs: Rungs
    if len(climbed.ladders) == 1:
        rungs = rungs_of(climbed, climbed.ladders[0], steps)
    else:
        rungs = {step.step + 1.0: (step,) for step in steps}
    series = (
        ("service p50", style.GREY, spread_of(rungs, lambda step: step.service.p50.value)),
        ("lateness p99", style.PERCENTILES["p99"], spread_of(rungs, lambda step: step.lateness.p99.value)),
        ("lateness p50", style.PERCENTILES["p50"], spread_of(rungs, lambda step: step.lateness.p50.value)),
    )
    if not any(spread for _, _, spread in series):
        style.nothing(axes, "no request was sent")
        return
    style.seconds_axis(axes.yaxis, [value for _, _, spread in series for value in values_of(spread)])
    if len(climbed.ladders) == 1:
        place_axis(axes, climbed)
    else:
        _count_axis(axes, "step", np.array([*rungs]))
    labels = []
    for words, colour, spread in series:
        if spread:
            draw_spread(axes, spread, colour)
            labels.append((medians(spread)[-1], words, colour))
    style.label_right(axes, labels)


def _worst(frame: Frame, values: Values) -> tuple[Values, Values]:
    """Return the ranks that reported, and the largest of each one's values."""
    ranks, place = np.unique(frame.health["rank"], return_inverse=True)
    worst = np.zeros(len(ranks))
    np.maximum.at(worst, place, values)
    return ranks, worst


def _draw_points(axes: Axes, ranks: Values, values: Values, colour: str) -> None:
    few = len(ranks) <= 100
    axes.plot(ranks, values, "o", color=colour, markersize=5 if few else 2, rasterized=not few)


def _count_axis(axes: Axes, label: str, numbers: Values) -> None:
    axes.set_xlabel(label)
    first, last = int(numbers.min()), int(numbers.max())
    room = max(0.6, 0.03 * len(numbers))
    axes.set_xlim(first - room, last + room)
    ticks = [tick for tick in MaxNLocator(8, integer=True).tick_values(first, last) if first <= tick <= last]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
