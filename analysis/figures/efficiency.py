"""Whether more ranks make as much more load: throughput, efficiency, and where the time of the ranks goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from analysis.efficiency import KINDS, Curve
from analysis.figures import style
from analysis.figures.parts import Spread, draw_spread, new_figure, values_of

# As many curves as can be told apart; what they are, in words.
_MOST = 6
_TITLES = {"strong": "Strong scaling: the same load", "weak": "Weak scaling: the same load per rank"}
_PARTS = (("generator", style.BLUE), ("server", style.ORANGE), ("idle", "#d1d5db"))


def efficiency(curves: Sequence[Curve]) -> Figure:
    """Draw a row for each kind of scaling that there is: throughput and its ideal, efficiency, parts of the time."""
    kinds = [kind for kind in KINDS if any(curve.kind == kind for curve in curves)]
    figure = new_figure(10.2, 0.6 + 3.7 * max(1, len(kinds)))
    for part, kind in zip(figure.subfigures(max(1, len(kinds)), 1, squeeze=False).flat, kinds or [""], strict=True):
        mine = [curve for curve in curves if curve.kind == kind]
        # The largest loads: they have the most to do for many ranks.
        drawn = sorted(mine, key=lambda curve: (len(curve.points), curve.points[-1].size))[-_MOST:]
        throughput, share, time = part.subplots(1, 3, width_ratios=(1, 1, 0.9))
        if not drawn:
            for axes in (throughput, share, time):
                style.nothing(axes, "no two results have the same load")
            return figure
        part.suptitle(_TITLES[kind], x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        lines = style.lines(len(drawn))
        _draw_throughput(throughput, drawn, lines)
        _draw_efficiency(share, drawn, lines)
        _draw_parts(time, drawn[-1])
        handles = [
            Line2D([], [], color=line.colour, marker=line.marker, linestyle=line.dashes, label=style.text(curve.name))
            for curve, line in zip(drawn, lines, strict=True)
        ]
        handles.append(Line2D([], [], color=style.GREY, linestyle="--", linewidth=1, label="ideal"))
        part.legend(handles=handles, loc="outside lower left", ncols=4)
    return figure


def _draw_throughput(axes: Axes, curves: Sequence[Curve], lines: Sequence[style.Line]) -> None:
    axes.set_title("Good answers per second")
    _ranks_axis(axes, curves)
    spreads = [_spread(curve, "rates") for curve in curves]
    ideals = [curve.ideal(curve.points[-1].ranks) for curve in curves]
    style.log_axis(axes.yaxis, [value for spread in spreads for value in values_of(spread)] + ideals)
    for curve, spread, line in zip(curves, spreads, lines, strict=True):
        ranks = np.array([curve.points[0].ranks, curve.points[-1].ranks])
        axes.plot(ranks, [curve.ideal(each) for each in ranks], "--", color=style.GREY, linewidth=1)
        draw_spread(axes, spread, *line)


def _draw_efficiency(axes: Axes, curves: Sequence[Curve], lines: Sequence[style.Line]) -> None:
    axes.set_title("Efficiency against the ideal")
    _ranks_axis(axes, curves)
    spreads = [
        {place: [100 * value for value in values] for place, values in _spread(curve, "efficiencies").items()}
        for curve in curves
    ]
    axes.axhline(100, color=style.GREY, linestyle="--", linewidth=1)
    for spread, line in zip(spreads, lines, strict=True):
        draw_spread(axes, spread, *line)
    _percent_axis(axes, 1.1 * max(100.0, *(value for spread in spreads for value in values_of(spread))))


def _draw_parts(axes: Axes, curve: Curve) -> None:
    axes.set_title("Time of the ranks")
    places = np.arange(len(curve.points))
    bottom = np.zeros(len(places))
    for name, colour in _PARTS:
        shares = np.array([100 * getattr(point.parts, name) for point in curve.points])
        axes.bar(places, shares, 0.66, bottom, color=colour, label=name)
        bottom += shares
    axes.set_xticks(places, [f"{point.ranks:,}" for point in curve.points])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(f"ranks ({style.text(curve.name)})")
    _percent_axis(axes, 100)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.05))


def _ranks_axis(axes: Axes, curves: Sequence[Curve]) -> None:
    style.size_axis(axes, sorted({point.ranks for curve in curves for point in curve.points}))
    axes.set_xlabel("ranks")


def _percent_axis(axes: Axes, top: float) -> None:
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(
        FixedLocator([tick for tick in MaxNLocator(6).tick_values(0, top) if 0 <= tick <= top])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g} %"))


def _spread(curve: Curve, name: str) -> Spread:
    return {float(point.ranks): [*getattr(point, name)] for point in curve.points}
