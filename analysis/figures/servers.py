"""Servers side by side: mlflow-go's two bar charts, and FastTrackML's panel of operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figures import style
from analysis.figures.parts import new_figure
from analysis.published.operations import Case
from analysis.units import seconds
from hpcstress.quantity import count

Cases = Sequence[Case]


def durations(cases: Cases) -> Figure:
    """Draw how long a request of each case took on every server: the mean as a bar, the median and the p99 on it."""
    figure, axes = _clusters(cases, "How long a request takes", lambda case: case.mean)
    for case, place, width in _placed(cases, _servers(cases)):
        _draw_marks(axes, case, place, width)
    axes.set_ylim(0, 1.12 * max(max(case.mean, case.p99) for case in cases))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value) if value else "0"))
    figure.legend(handles=[*_server_handles(cases), *_mark_handles(cases)], loc="outside upper right", ncols=5)
    return figure


def iterations(cases: Cases) -> Figure:
    """Draw how many iterations were done well while there was load, or in a second if that was not always as long."""
    lengths = {round(case.seconds, 1) for case in cases}
    same = len(lengths) == 1
    title = f"Iterations done well in {max(lengths):g} seconds" if same else "Iterations done well per second"
    figure, axes = _clusters(cases, title, lambda case: case.per_second * (case.seconds if same else 1))
    for case, place, _ in _placed(cases, _servers(cases)):
        value = case.per_second * (case.seconds if same else 1)
        words = f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
        _write(axes, place, value, words, style.GREY)
        if case.failed:
            share = 100 * case.failed / case.attempts
            axes.annotate(
                f"{share:.2g} % failed",
                (place, value),
                (0, 14),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=style.RED,
            )
    axes.set_ylim(0, 1.2 * max([axes.dataLim.y1, 1e-9]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
    figure.legend(handles=_server_handles(cases), loc="outside upper right", ncols=5)
    return figure


def panel(cases: Cases, operations: Sequence[str]) -> Figure:
    """Draw an axes for each operation and a bar for each server: the mean, the median and the p99 of its requests."""
    names = [name for name in operations if any(case.operation == name for case in cases)]
    columns = min(4, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    figure = new_figure(10.2, 1.0 + 2.7 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    servers = _servers(cases)
    for axes, name in zip(grid.flat, names, strict=False):
        mine = [case for case in cases if case.operation == name]
        axes.set_title("\n".join(map(style.text, mine[0].name.splitlines())), fontsize=9.5)
        axes.grid(visible=False, axis="x")
        for case, place, width in _placed(mine, servers):
            axes.bar(place, case.mean, 0.9 * width, color=_colour(cases, case.server))
            _draw_marks(axes, case, place, width)
        users = list(dict.fromkeys(case.users for case in mine))
        axes.set_xlim(-0.6, len(users) - 0.4)
        axes.set_xticks(range(len(users)), [count(size, "user") if size else "" for size in users])
        axes.set_ylim(0, 1.15 * max(max(case.mean, case.p99) for case in mine))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value) if value else "0"))
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    if not names:
        grid[0, 0].set_visible(True)
        style.nothing(grid[0, 0], "nothing was sent")
    figure.legend(handles=[*_server_handles(cases), *_mark_handles(cases)], loc="outside upper left", ncols=4)
    return figure


def _servers(cases: Cases) -> list[str]:
    return list(dict.fromkeys(case.server for case in cases))


def _names(cases: Cases) -> list[str]:
    return list(dict.fromkeys(case.label for case in cases))


def _colour(cases: Cases, server: str) -> str:
    servers = _servers(cases)
    return style.lines(len(servers))[servers.index(server)].colour


def _placed(cases: Cases, servers: Sequence[str]) -> list[tuple[Case, float, float]]:
    """Return where the bar of each case stands, and how wide it is: one cluster for each name and number of users."""
    names = _names(cases)
    width = 0.8 / len(servers)
    return [
        (case, names.index(case.label) + (servers.index(case.server) - (len(servers) - 1) / 2) * width, width)
        for case in cases
    ]


def _clusters(cases: Cases, title: str, value: Callable[[Case], float]) -> tuple[Figure, Axes]:
    figure = new_figure(10.2, 4.8)
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(visible=False, axis="x")
    for case, place, width in _placed(cases, _servers(cases)):
        axes.bar(place, value(case), 0.92 * width, color=_colour(cases, case.server))
    names = _names(cases)
    slanted = len(names) > 6
    axes.set_xticks(
        range(len(names)),
        [style.text(name.replace("\n", ", ")) for name in names],
        rotation=25 if slanted else 0,
        ha="right" if slanted else "center",
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    return figure, axes


def _draw_marks(axes: Axes, case: Case, place: float, width: float) -> None:
    half = 0.3 * width
    axes.plot([place, place], [case.p50, case.p99], color="#111827", linewidth=1)
    axes.plot([place - half, place + half], [case.p99, case.p99], color="#111827", linewidth=1.4)
    axes.plot(place, case.p50, "o", color="#111827", markerfacecolor="white", markersize=4)
    if case.failed:
        _write(axes, place, max(case.p99, case.mean), f"{100 * case.failed / case.attempts:.2g} %", style.RED)


def _write(axes: Axes, place: float, height: float, words: str, colour: str) -> None:
    axes.annotate(words, (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=8, color=colour)


def _server_handles(cases: Cases) -> list[Patch]:
    return [Patch(color=_colour(cases, server), label=style.text(server)) for server in _servers(cases)]


def _mark_handles(cases: Cases) -> list[Line2D]:
    handles = [
        Line2D(
            [],
            [],
            color="#111827",
            marker="o",
            markerfacecolor="white",
            markersize=4,
            label="bar: mean; ring: p50; line: up to p99",
        )
    ]
    if any(case.failed for case in cases):
        handles.append(Line2D([], [], color=style.RED, marker="", linestyle="", label="red: share that failed"))
    return handles
