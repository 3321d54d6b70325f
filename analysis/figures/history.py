"""What happened when: runs in flight, answers, failures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import units
from analysis.figures import style
from analysis.figures.parts import draw_legend, groups_of, new_figure
from analysis.percentiles import Values
from analysis.timeline import Span, Timeline


def timeline(line: Timeline) -> Figure:
    """Draw the steps of a job side by side: runs in flight, answers, and failures by cause.

    Within a step time runs evenly; a short step is drawn wider than its share, and pauses are left out.
    """
    places = _places(line.spans)
    causes = Counter[str]()
    for span in line.spans:
        causes.update({name: int(counts.sum()) for name, counts in span.failures.items()})
    panels: list[tuple[float, str, Callable[[Axes], None]]] = [
        (
            1.3,
            "Runs in flight" if not line.users else "Runs in flight (mean)",
            lambda axes: _draw_in_flight(axes, line.spans, places),
        ),
        (1.3, "Good answers per second", lambda axes: _draw_answers(axes, line.spans, places)),
    ]
    if causes:
        panels.append(
            (1.2, "Failed attempts since the step began", lambda axes: _draw_failed(axes, line.spans, places, causes))
        )
    heights = [height for height, _, _ in panels]
    figure = new_figure(10.2, 0.9 + 1.35 * sum(heights))
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (_, title, draw) in zip(grid, panels, strict=True):
        axes.set_title(title, pad=16 if axes is grid[0] else None)
        axes.grid(visible=False, axis="x")
        for low, high in places:
            axes.axvspan(low, high, color="#f3f4f6", linewidth=0, zorder=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        draw(axes)
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.0))
    grid[0].set_xlim(-0.003, 1.003)
    if line.spans:
        _write_times(grid[-1], line.spans, places)
        name_spans(grid[0], line.spans, places)
        grid[-1].set_xlabel(f"time since each step began (at the top: {line.names})")
    else:
        for axes in grid:
            style.nothing(axes, "no step was played")
    return figure


def _places(spans: Sequence[Span]) -> list[tuple[float, float]]:
    """Return where each step begins and ends between 0 and 1: as long as it took, but at least half an equal share."""
    if not spans:
        return []
    lengths = np.array([span.end - span.begin for span in spans])
    shares = np.maximum(lengths / lengths.sum(), 0.5 / len(spans))
    gap = min(0.008, 0.2 / len(spans))
    widths = shares / shares.sum() * (1 - gap * (len(spans) - 1))
    begins = np.concatenate([[0.0], np.cumsum(widths + gap)[:-1]])
    return [(float(begin), float(begin + width)) for begin, width in zip(begins, widths, strict=True)]


def edges_of(span: Span, place: tuple[float, float]) -> Values:
    """Return the edges of a step's slices where it is drawn; the last slice ends with the step."""
    times = np.append(np.arange(len(span.in_flight)) * span.width, span.end - span.begin)
    low, high = place
    return low + (high - low) * np.minimum(times / (span.end - span.begin), 1.0)


def _draw_in_flight(axes: Axes, spans: Sequence[Span], places: Sequence[tuple[float, float]]) -> None:
    for span, place in zip(spans, places, strict=True):
        edges = edges_of(span, place)
        axes.stairs(span.in_flight, edges, fill=True, color=style.SKY, alpha=0.45)
        axes.stairs(span.in_flight, edges, color=style.BLUE, linewidth=1.2)


def _draw_answers(axes: Axes, spans: Sequence[Span], places: Sequence[tuple[float, float]]) -> None:
    for span, place in zip(spans, places, strict=True):
        axes.stairs(span.answers, edges_of(span, place), fill=True, color=style.BLUE)


def _draw_failed(
    axes: Axes, spans: Sequence[Span], places: Sequence[tuple[float, float]], causes: Counter[str]
) -> None:
    groups = groups_of(causes)
    for span, place in zip(spans, places, strict=True):
        base = np.zeros(len(span.in_flight))
        for group in groups:
            for cause in group.causes & span.failures.keys():
                top = base + np.cumsum(span.failures[cause])
                axes.stairs(top, edges_of(span, place), baseline=base, fill=True, color=group.colour)
                base = top
        if base[-1]:
            total = f"{base[-1]:,.0f}"
            axes.annotate(total, (place[1], base[-1]), (0, 2), textcoords="offset points", ha="right", fontsize=8.5)
    axes.margins(y=0.15)
    draw_legend(axes, groups)


def _write_times(axes: Axes, spans: Sequence[Span], places: Sequence[tuple[float, float]]) -> None:
    """Write times below each step: a few round ones where there is room, else that of its end."""
    ticks: dict[float, str] = {}
    for span, (low, high) in zip(spans, places, strict=True):
        length = span.end - span.begin
        rounds = [
            time for time in MaxNLocator(max(1, int(9 * (high - low)))).tick_values(0, length) if 0 < time <= length
        ]
        times = rounds if high - low > 0.2 else [length]
        for time in times:
            where = low + (high - low) * time / length
            if not ticks or where - max(ticks) > 0.055:
                ticks[where] = units.seconds(time)
    axes.set_xticks(list(ticks), list(ticks.values()))


def name_spans(axes: Axes, spans: Sequence[Span], places: Sequence[tuple[float, float]]) -> None:
    """Write the name of each step above where it is drawn, if there is room; the axes reach from 0 to 1."""
    free = -math.inf
    for span, (low, high) in zip(spans, places, strict=True):
        words = style.text(span.name)
        centre, half = (low + high) / 2, (len(words) + 1) * 0.0047
        if centre - half > free:
            axes.annotate(
                words,
                (centre, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=style.GREY,
            )
            free = centre + half
