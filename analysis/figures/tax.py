"""What MLflow's client adds to its requests: its calls beside those of the wire client, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import units
from analysis.client_tax import Calls, Tax
from analysis.figures import style
from analysis.figures.parts import new_figure

_PARTS = (
    ("waited", "in requests", style.SKY),
    ("paused", "between attempts", style.RED),
    ("own", "MLflow's client itself", style.ORANGE),
)
_HEIGHT = 0.36


def client_tax(tax: Tax, calls: Sequence[Calls]) -> Figure:
    """Draw how long a call takes on average with each client, and what the stock client does in that time."""
    figure = new_figure(10.2, 1.7 + 0.75 * max(1, len(tax.pairs)))
    axes = figure.subplots()
    axes.set_title("Time of one call, on average")
    if not tax.pairs:
        style.nothing(axes, "the two results have no call in common")
        return figure
    _draw_bars(axes, tax, {each.operation: each for each in calls})
    axes.set_xlim(0, 1.16 * max(max(pair.wire_mean, pair.stock_mean) for pair in tax.pairs))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration(value) if value else "0"))
    axes.set_yticks(range(len(tax.pairs)), [style.text(pair.operation.replace("_", " ")) for pair in tax.pairs])
    axes.set_ylim(len(tax.pairs) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper right", ncols=4)
    return figure


def _draw_bars(axes: Axes, tax: Tax, calls: dict[str, Calls]) -> None:
    for row, pair in enumerate(tax.pairs):
        # One bar of each kind is enough for the legend.
        axes.barh(row - 0.2, pair.wire_mean, _HEIGHT, color=style.BLUE, label="" if row else "wire client")
        mine = calls[pair.operation]
        whole, left = mine.waited + mine.paused + mine.own, 0.0
        for name, words, colour in _PARTS:
            width = pair.stock_mean * getattr(mine, name) / whole if whole else 0.0
            axes.barh(row + 0.2, width, _HEIGHT, left=left, color=colour, label="" if row else words)
            left += width
        axes.annotate(
            f"× {units.number(pair.factor)}",  # noqa: RUF001
            (left, row + 0.2),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=style.GREY,
        )
