"""Servers compared: how many times as fast one is as another, and how each scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.comparison import Answer, Comparison, Pair, Verdict
from analysis.figures import style
from analysis.figures.parts import Spread, draw_spread, new_figure, place_axis, values_of
from analysis.ladders import Climb, Ladder
from analysis.rivals import Rival, Round
from analysis.wording import ratio, subject
from hpcstress.plan import Rung

# Colour and marker: the verdict has to be seen without colours, too.
_LOOKS = {
    Verdict.faster: (style.GREEN, ">"),
    Verdict.slower: (style.RED, "<"),
    Verdict.same: (style.BLUE, "s"),
    Verdict.undecided: (style.GREY, "o"),
}
_LADDERS = 4
_WIDEST = 1000.0
# The letters of two names for which a title has room in one line.
_WIDE = 50


def forest(pair: Pair, climbed: Climb, margin: float) -> Figure:
    """Draw a line for every question: how many times as fast the second server is, with the interval."""
    answers = [answer for answer in pair.answers if answer.compared]
    figure = new_figure(10.2, 1.5 + 0.34 * max(3, len(answers)))
    axes = figure.subplots()
    first, second = style.text(pair.first.name), style.text(pair.second.name)
    axes.set_title(f"How many times as fast {second} is{' ' if len(first + second) < _WIDE else chr(10)}as {first}")
    if not answers:
        style.nothing(axes, "nothing could be compared")
        return figure
    low, high = _limits([value for answer in answers for value in answer.ratio])
    axes.axvspan(1 / (1 + margin), 1 + margin, color="#e5e7eb", linewidth=0)
    axes.axvline(1, color=style.GREY, linewidth=1)
    for place, answer in enumerate(answers):
        colour, marker = _LOOKS[answer.verdict]
        left, right = max(answer.ratio.low, low), min(answer.ratio.high, high)
        if left < right:
            axes.plot([left, right], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        for end, beyond in ((low, answer.ratio.low < low), (high, answer.ratio.high > high)):
            if beyond:
                axes.plot(end, place, "<" if end == low else ">", color=colour, markersize=4, clip_on=False)
        filled = "white" if answer.verdict is Verdict.undecided else colour
        axes.plot(answer.ratio.value, place, marker, color=colour, markerfacecolor=filled, markersize=8)
        axes.annotate(
            f"{ratio(answer)}  {answer.verdict}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
        )
    style.log_axis(axes.xaxis, [low, high], FuncFormatter(lambda value, _: f"{value:,.6g}×"))  # noqa: RUF001
    axes.set_xlim(low, high)
    axes.set_ylim(len(answers) - 0.4, -0.6)
    axes.set_yticks(range(len(answers)), [style.text(subject(answer, climbed)) for answer in answers])
    axes.tick_params(axis="y", length=0)
    for parted in [n for n in range(1, len(answers)) if _kind(answers[n]) != _kind(answers[n - 1])]:
        axes.axhline(parted - 0.5, color="#d1d5db", linewidth=0.8)
    axes.set_xlabel(f"{first} is faster  ←        →  {second} is faster")
    figure.legend(
        handles=[
            Line2D([], [], color=colour, marker=marker, linestyle="-", markersize=7, label=verdict)
            for verdict, (colour, marker) in _LOOKS.items()
        ],
        loc="outside lower right",
        ncols=4,
    )
    return figure


def _kind(answer: Answer) -> str:
    return answer.question.subject if answer.question.rung else ""


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of the axis that show 1 and every ratio, and no interval beyond all measure."""
    known = [1 / 1.3, 1.3, *(value for value in values if 1 / _WIDEST <= value <= _WIDEST)]
    return min(known) / 1.12, max(known) * 1.12


def scaling(comparison: Comparison) -> Figure:
    """Draw each server's throughput, and how long its runs take, against the load; the spread is that of the rounds."""
    climbed, rivals = comparison.climb, comparison.rivals
    ladders = climbed.ladders[:_LADDERS]
    timed = any(step.timed for rival in rivals for one in rival.rounds for step in one.statistics.steps)
    figure = new_figure(10.2, 0.9 + 3.4 * max(1, len(ladders)))
    grid = figure.subplots(max(1, len(ladders)), 2, squeeze=False)
    for (throughput, duration), ladder in zip(grid, ladders, strict=False):
        of = f" ({style.text(ladder.name)})" if len(climbed.ladders) > 1 else ""
        _draw(throughput, f"Good answers per second{of}", climbed, ladder, rivals, Round.throughput, style.log_axis)
        if timed:
            _draw(duration, f"p99 of requests{of}", climbed, ladder, rivals, _latency, style.seconds_axis)
        else:
            _draw(duration, f"Mean duration of a run{of}", climbed, ladder, rivals, _duration, style.seconds_axis)
    figure.legend(
        handles=[
            Line2D([], [], color=line.colour, marker=line.marker, linestyle=line.dashes, label=style.text(rival.name))
            for rival, line in zip(rivals, style.lines(len(rivals)), strict=True)
        ],
        loc="outside upper left",
        ncols=4,
    )
    return figure


def _draw(
    axes: Axes,
    title: str,
    climbed: Climb,
    ladder: Ladder,
    rivals: Sequence[Rival],
    value: Callable[[Round, Rung], float | None],
    make_axis: Callable[..., None],
) -> None:
    axes.set_title(title)
    place_axis(axes, climbed)
    spreads = [_spread(rival, climbed, ladder, value) for rival in rivals]
    known = [value for spread in spreads for value in values_of(spread)]
    if not known:
        style.nothing(axes, "nothing was measured")
        return
    make_axis(axes.yaxis, known)
    for spread, line in zip(spreads, style.lines(len(rivals)), strict=True):
        draw_spread(axes, spread, *line)


def _spread(rival: Rival, climbed: Climb, ladder: Ladder, value: Callable[[Round, Rung], float | None]) -> Spread:
    """Return one number of every round by the rung's place; what is not known, or nothing, is left out."""
    found: Spread = {}
    for rung in ladder.rungs:
        values = [number for one in rival.rounds if (number := value(one, rung)) and math.isfinite(number)]
        if values:
            found[climbed.axis.place(rung)] = values
    return found


def _duration(one: Round, rung: Rung) -> float | None:
    return one.run_durations.get(rung)


def _latency(one: Round, rung: Rung) -> float | None:
    """Return the p99 of a round's worst repeat."""
    return max((step.judged.p99.value for step in one.steps(rung)), default=None)
