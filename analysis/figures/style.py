"""How figures look: colours for colour-blind readers, too, plain numbers on logarithmic axes, labels beside lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from analysis.units import plain

# Okabe and Ito's palette; percentiles are an order, and so shades of one colour.
BLUE, RED, GREEN, ORANGE, SKY, PURPLE, GREY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
    "#6b7280",
)
PERCENTILES = {"p50": "#6db3e3", "p95": "#1f78b4", "p99": "#08306b"}
CAUSES = (RED, ORANGE, PURPLE, GREEN, SKY, BLUE)
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": "#374151",
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
    # Files that are the same whenever they are made, so that they can be compared.
    "svg.hashsalt": "hpcstress",
    # Names of servers and hosts are text and no formulas, whatever dollar signs they hold.
    "text.parse_math": False,
}


def context() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved."""
    return mpl.rc_context(_RC)


def use() -> None:
    """Draw all figures of this program so from now on."""
    mpl.rcParams.update(_RC)


def text(words: object) -> str:
    """Return words as one line that the font can show."""
    return plain("".join(char if ord(char) < 0x250 or char in "…–µ×" else "?" for char in str(words)), 48)  # noqa: RUF001


def shades(count: int) -> list[str]:
    """Return colours for things in an order, from light to dark, all of them dark enough for a white page."""
    return (
        [to_hex(mpl.colormaps["viridis_r"](place)) for place in np.linspace(0.3, 1, count)]
        if count > 1
        else [BLUE] * count
    )


class Line(NamedTuple):
    """Say how one of several series is drawn."""

    colour: str
    marker: str
    dashes: Literal["-", "--", ":", "-."]


def lines(count: int) -> list[Line]:
    """Return how to draw some series: no two of 24 look the same, and no two of 7 without colours."""
    dashes: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
    return [Line(SERIES[number % 6], "osD^vPX"[number % 7], dashes[number // 6 % 4]) for number in range(count)]


def duration(value: float) -> str:
    """Write a tick of an axis of seconds: `1 µs`, `10 ms`, `1 s`, `1,000 s`."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.999 * factor:
            return f"{value / factor:,.6g} {unit}"
    return f"{value * 1e9:.4g} ns"


def amount(value: float) -> str:
    """Write a tick of an axis of counts: `0.1`, `10`, `10,000`."""
    return f"{value:,.6g}"


def log_axis(axis: Axis, values: Sequence[float], write: FuncFormatter | None = None) -> None:
    """Make an axis logarithmic, its limits around the positive ones of some values, with ticks at 1, 2, 5, 10."""
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = _round(min(known) / 1.12, down=True), _round(max(known) * 1.12, down=False)
    if high / low < 5:
        low, high = _round(low / 1.5, down=True), _round(high * 1.5, down=False)
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades <= 2.4 else (1,)
    stride = max(1, math.ceil(decades / 7))
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers if power % stride == 0 for factor in factors]
    set_log(axis, low, high)
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]))
    axis.set_major_formatter(write or FuncFormatter(lambda value, _: amount(value)))


def seconds_axis(axis: Axis, values: Sequence[float]) -> None:
    """Make an axis of durations logarithmic."""
    log_axis(axis, values, FuncFormatter(lambda value, _: duration(value)))


def size_axis(axes: Axes, sizes: Sequence[float], room: float = 0.13, write: Callable[[float], str] = amount) -> None:
    """Make the x axis one of step sizes: logarithmic, with a tick at each size for which there is room."""
    low, high = min(sizes, default=1), max(sizes, default=1)
    margin = (high / low) ** 0.08 if high > low else 2.0
    low_limit, high_limit = low / margin, high * margin
    ticks: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not ticks or math.log(ticks[-1] / size) > room * math.log(high_limit / low_limit):
            ticks.append(size)
    set_log(axes.xaxis, low_limit, high_limit)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def set_log(axis: Axis, low: float, high: float) -> None:
    """Make an axis logarithmic between two limits, without small ticks."""
    axes = axis.axes
    if axis is axes.xaxis:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Write labels (height in data, text, colour) at the right edge, moved apart so that none covers another.

    The limits of the axes have to be set before; the gap is a share of their height.
    """
    labels = sorted((label for label in labels if math.isfinite(label[0])), key=lambda label: label[0])
    across = axes.transData + axes.transAxes.inverted()
    heights = [float(across.transform((axes.get_xlim()[1], height))[1]) for height, _, _ in labels]
    for height, (_, words, colour) in zip(apart(heights, gap), labels, strict=True):
        axes.annotate(
            words,
            (1, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return rising heights between 0 and 1 moved until they lie a gap apart; what does not fit reaches below 0."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, 0.0, placed[-1] + gap if placed else 0.0))
    ceiling = 1.0
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    return placed


def nothing(axes: Axes, words: str) -> None:
    """Say why there is nothing to draw, in place of ticks that would measure nothing."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(NullLocator())
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("")
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _round(value: float, *, down: bool) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 2, 5, 10)
    factor = value / power
    if down:
        return power * max(step for step in steps if step <= factor * 1.0001)
    return power * min(step for step in steps if step >= factor * 0.9999)
