"""What the server used, under what it gave: latency, answers, cores, memory, connections, files on one axis of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import units
from analysis.figures import style
from analysis.figures.history import edges_of, name_spans
from analysis.figures.parts import new_figure
from analysis.outages import Outage
from analysis.percentiles import Values
from analysis.timeline import Span, Timeline
from analysis.usage import Told, Usage

_MARGIN = 1.0
_MOST_PARTS, _MOST_SERIES, _MOST_QUERIES = 7, 4, 4
_LONGEST_NAME, _MOST_LETTERS = 28, 60
_HEIGHT = 1.3

Place = Callable[[Values], Values]


def usage(
    line: Timeline, parts: Sequence[Usage], told: Sequence[Told] = (), cores: int = 0, deaths: Sequence[Outage] = ()
) -> Figure:
    """Draw a job from its first to its last step on one axis of time, pauses included: what it got, and what that took.

    `cores` are those that all parts have together, 0 if that is not known. A line through all panels marks the death of
    a part. What fits no panel is left to the tables.
    """
    shown = _busiest(parts)
    queries = list(dict.fromkeys(one.query for one in told))[:_MOST_QUERIES]
    panels: list[tuple[float, str, Callable[[Axes, Place], None]]] = [
        (1.2, "Service time: p50 and p99", lambda axes, place: _draw_latency(axes, line.spans, place)),
        (1.0, "Good answers per second", lambda axes, place: _draw_answers(axes, line.spans, place)),
    ]
    panels += [
        (height, title, _drawing(shown, field, factor))
        for height, title, field, factor in (
            (1.2, f"CPU in cores{f', of {cores:,}' if cores else ''}", "cores", 1.0),
            (1.0, "Resident memory in GB", "memory", 1e-9),
            (0.8, "Connections", "connections", 1.0),
            (0.8, "Open files", "files", 1.0),
        )
        if any(np.isfinite(getattr(use, field)).any() for use in shown)
    ]
    panels += [
        (0.8, style.text(query), _drawing_told([one for one in told if one.query == query])) for query in queries
    ]
    heights = [height for height, _, _ in panels]
    figure = new_figure(10.2, 1.2 + _HEIGHT * sum(heights))
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    begin = min((span.begin for span in line.spans), default=0.0)
    length = max((span.end for span in line.spans), default=1.0) - begin
    places = [((span.begin - begin) / length, (span.end - begin) / length) for span in line.spans]
    for axes, (_, title, draw) in zip(grid, panels, strict=True):
        axes.set_title(title, pad=16 if axes is grid[0] else None)
        axes.grid(visible=False, axis="x")
        for low, high in places:
            axes.axvspan(low, high, color="#f3f4f6", linewidth=0, zorder=0)
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
        draw(axes, lambda time: (time - begin) / length)
        for death in deaths:
            axes.axvline((death.time - begin) / length, color=style.RED, linestyle=(0, (4, 2)), linewidth=1.2, zorder=4)
    margin = _MARGIN / length
    grid[0].set_xlim(-min(margin, 0.02), 1 + min(margin, 0.02))
    name_spans(grid[0], line.spans, places)
    ticks = [time for time in MaxNLocator(9).tick_values(0, length) if 0 <= time <= length]
    grid[-1].set_xticks([time / length for time in ticks], [units.seconds(time) if time else "0" for time in ticks])
    grid[-1].set_xlabel(f"time since the first step began; steps are shaded (at the top: {line.names})")
    looks = style.lines(len(shown))
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.dashes, label=units.plain(style.text(use.part), _LONGEST_NAME))
        for use, look in zip(shown, looks, strict=True)
    ]
    if len(parts) > len(shown):
        handles.append(Line2D([], [], linestyle="", label=f"{len(parts) - len(shown):,} more in the table"))
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    if deaths:
        names = ", ".join(dict.fromkeys(units.plain(style.text(death.part), _LONGEST_NAME) for death in deaths))
        dead = f"end of {names}"
        handles.append(
            Line2D([], [], color=style.RED, linestyle=(0, (4, 2)), linewidth=1.2, label=dead[:_MOST_LETTERS])
        )
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=4 if longest < 20 else 3,
        )
    return figure


def _busiest(parts: Sequence[Usage]) -> list[Usage]:
    """Return the parts that used most, as many as can be told apart, in the order in which they were given."""

    def weight(use: Usage) -> tuple[float, float]:
        means = (values[np.isfinite(values)] for values in (use.cores, use.memory))
        cores, memory = (float(known.mean()) if len(known) else 0.0 for known in means)
        return cores, memory

    ranked = sorted(parts, key=weight, reverse=True)[:_MOST_PARTS]
    return [use for use in parts if any(use is one for one in ranked)]


def _drawing(parts: Sequence[Usage], field: str, factor: float) -> Callable[[Axes, Place], None]:
    def draw(axes: Axes, place: Place) -> None:
        for use, look in zip(parts, style.lines(len(parts)), strict=True):
            _draw_line(axes, place(use.time), factor * getattr(use, field), look)
        axes.set_ylim(0, max(1.05 * axes.dataLim.y1, 1e-9) if math.isfinite(axes.dataLim.y1) else 1)

    return draw


def _drawing_told(series: Sequence[Told]) -> Callable[[Axes, Place], None]:
    def draw(axes: Axes, place: Place) -> None:
        labels = []
        for one, look in zip(series[:_MOST_SERIES], style.lines(_MOST_SERIES), strict=False):
            _draw_line(axes, place(one.time), one.value, look)
            labels.append((float(one.value[-1]), units.plain(style.text(one.name), 20), look.colour))
        axes.margins(y=0.1)
        style.label_right(axes, labels, gap=0.2)

    return draw


def _draw_line(axes: Axes, places: Values, heights: Values, look: style.Line) -> None:
    # What was not counted each second is drawn through.
    known = np.isfinite(heights) & (places >= -0.05) & (places <= 1.05)
    axes.plot(places[known], heights[known], color=look.colour, linestyle=look.dashes, linewidth=1.3)


def _draw_latency(axes: Axes, spans: Sequence[Span], place: Place) -> None:
    values = np.concatenate([np.zeros(0), *(times for span in spans for times in (span.p50, span.p99))])
    style.seconds_axis(axes.yaxis, list(values))
    low = axes.get_ylim()[0]
    for span in spans:
        edges = edges_of(span, _ends(span, place))
        axes.stairs(span.p99, edges, baseline=low, fill=True, color=style.PERCENTILES["p50"], alpha=0.35)
        axes.stairs(span.p99, edges, baseline=None, color=style.PERCENTILES["p99"], linewidth=1.1)
        axes.stairs(span.p50, edges, baseline=None, color=style.PERCENTILES["p95"], linewidth=1.1)


def _draw_answers(axes: Axes, spans: Sequence[Span], place: Place) -> None:
    for span in spans:
        axes.stairs(span.answers, edges_of(span, _ends(span, place)), fill=True, color=style.BLUE)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.0))


def _ends(span: Span, place: Place) -> tuple[float, float]:
    low, high = place(np.array([span.begin, span.end]))
    return float(low), float(high)
