"""mlflow-scale's twelve charts of tenants and users: latencies, rates, failures, and what the machines used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figures import style
from analysis.figures.parts import new_figure
from analysis.published.matrix import Cell, Use, category, operations_of
from analysis.units import count

Cells = Sequence[Cell]

# Reading, writing and searching are told apart by colour, operations within them by shade and marker.
_SHADES = {"read": "Blues", "write": "Oranges", "search": "Greens", "other": "Purples"}
_MARKERS = "osD^vPX*<>"


def charts(cells: Cells) -> Iterator[tuple[str, Figure]]:
    """Yield all charts for which there is data, by the names that they have there."""
    yield "chart_summary_dashboard", _dashboard(cells)
    yield "chart_response_times_by_concurrency", _by_users(cells, "p95 of requests", _p95)
    yield "chart_response_times_by_tenants", _by_tenants(cells, "p95 of requests", _p95)
    yield "chart_rps_by_concurrency", _by_users(cells, "good answers per second", _passed_per_second)
    yield "chart_rps_by_tenants", _by_tenants(cells, "good answers per second", _passed_per_second)
    yield "chart_throughput_heatmap", _heatmap(cells, "Requests per second", lambda cell: cell.per_second, _rounded)
    yield (
        "chart_response_times_p95_heatmap",
        _heatmap(cells, "p95 of all requests", lambda cell: cell.requests.at(0.95) if len(cell.requests) else math.nan),
    )
    yield "chart_passed_counts", _passed(cells)
    if any(cell.used for cell in cells):
        yield "chart_cpu_utilization", _used(cells, "CPU used on average (cores)", lambda use: use.cpu_average)
        yield (
            "chart_memory_utilization",
            _used(cells, "Memory used on average (GB)", lambda use: use.memory_average / 1e9),
        )
    if any(set(cell.used) - {"hpcstress"} for cell in cells):
        yield "chart_mlflow_cpu_by_concurrency", _server_cpu(cells, by_users=True)
        yield "chart_mlflow_cpu_by_tenants", _server_cpu(cells, by_users=False)


def _p95(cell: Cell, operation: str) -> float:
    sample = cell.samples.get(operation)
    return sample.at(0.95) if sample else math.nan


def _passed_per_second(cell: Cell, operation: str) -> float:
    return cell.passed_per_second.get(operation) or math.nan


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _dashboard(cells: Cells) -> Figure:
    figure = new_figure(10.2, 7.0)
    ((rate, total), (failed, mean)) = figure.subplots(2, 2)
    shares = [100 * sum(cell.failed.values()) / max(1, len(cell.requests)) for cell in cells]
    colours = [style.GREEN if share == 0 else style.ORANGE if share < 5 else style.RED for share in shares]
    means = [1e3 * cell.requests.mean() if len(cell.requests) else 0 for cell in cells]
    _bars(rate, "Requests per second", cells, [cell.per_second for cell in cells])
    _bars(total, "Requests", cells, [len(cell.requests) for cell in cells])
    _bars(failed, "Requests that failed (%)", cells, shares, colours)
    _bars(mean, "Mean of all requests (ms)", cells, means)
    if not any(shares):
        failed.text(0.5, 0.5, "none", transform=failed.transAxes, ha="center", color=style.GREY)
    figure.supxlabel("T: tenants, C: users at once", fontsize=9, color=style.GREY)
    return figure


def _bars(
    axes: Axes, title: str, cells: Cells, values: Sequence[float], colours: str | Sequence[str] = style.BLUE
) -> None:
    axes.set_title(title)
    axes.grid(visible=False, axis="x")
    axes.bar(range(len(cells)), values, 0.75, color=colours)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(0, 1.08 * max([*values, 1e-9]) if any(values) else 1)
    _name_cells(axes, cells)


def _name_cells(axes: Axes, cells: Cells) -> None:
    slanted = len(cells) > 6
    axes.set_xticks(range(len(cells)), [cell.name for cell in cells], rotation=90 if slanted else 0, fontsize=8)
    axes.set_xlim(-0.7, len(cells) - 0.3)


def _colours(operations: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every operation."""
    styles = {}
    for kind, shade in _SHADES.items():
        mine = [name for name in operations if category(name) == kind]
        places = np.linspace(0.95, 0.45, len(mine)) if len(mine) > 1 else [0.75]
        for name, place, marker in zip(mine, places, _MARKERS, strict=False):
            styles[name] = to_hex(mpl.colormaps[shade](place)), marker
        styles.update({name: (style.GREY, ".") for name in mine if name not in styles})
    return styles


def _operations_legend(figure: Figure, operations: Sequence[str]) -> None:
    styles = _colours(operations)
    ranked = sorted(operations, key=lambda name: (list(_SHADES).index(category(name)), name))
    handles = [
        Line2D([], [], color=styles[name][0], marker=styles[name][1], label=style.text(name.replace("_", " ")))
        for name in ranked
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)


def _by_users(cells: Cells, words: str, value: Callable[[Cell, str], float]) -> Figure:
    tenants = sorted({cell.tenants for cell in cells})
    groups = [(count(number, "tenant"), [c for c in cells if c.tenants == number]) for number in tenants]
    return _subplots(groups, words, value, "users", lambda cell: cell.users)


def _by_tenants(cells: Cells, words: str, value: Callable[[Cell, str], float]) -> Figure:
    users = sorted({cell.users for cell in cells})
    groups = [(count(number, "user"), [c for c in cells if c.users == number]) for number in users]
    return _subplots(groups, words, value, "tenants", lambda cell: cell.tenants)


def _subplots(
    groups: list[tuple[str, list[Cell]]],
    words: str,
    value: Callable[[Cell, str], float],
    label: str,
    place: Callable[[Cell], int],
) -> Figure:
    operations = operations_of(cell for _, cells in groups for cell in cells)
    styles = _colours(operations)
    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = new_figure(10.2, max(4.4, 0.5 + 3.0 * lines))
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    values = [value(cell, name) for _, cells in groups for cell in cells for name in operations]
    places = sorted({place(cell) for _, cells in groups for cell in cells})
    for axes, (title, cells) in zip(grid.flat, groups, strict=False):
        axes.set_title(title)
        for name in operations:
            colour, marker = styles[name]
            points = [(place(cell), value(cell, name)) for cell in cells]
            points = [(x, y) for x, y in points if math.isfinite(y)]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.3)
        style.size_axis(axes, places)
        if "second" in words:
            style.log_axis(axes.yaxis, values)
        else:
            style.seconds_axis(axes.yaxis, values)
    for axes in list(grid.flat)[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel(label, fontsize=9.5, color="#374151")
    figure.supylabel(words, fontsize=9.5, color="#374151")
    _operations_legend(figure, operations)
    return figure


def _heatmap(
    cells: Cells,
    title: str,
    value: Callable[[Cell], float],
    write: Callable[[float], str] = lambda value: style.duration(float(f"{value:.2g}")),
) -> Figure:
    tenants, users = sorted({cell.tenants for cell in cells}), sorted({cell.users for cell in cells})
    table = np.full((len(tenants), len(users)), np.nan)
    for cell in cells:
        table[tenants.index(cell.tenants), users.index(cell.users)] = value(cell)
    figure = new_figure(2.4 + 1.5 * max(3, len(users)), 1.4 + 0.8 * max(2, len(tenants)))
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.imshow(table, cmap="YlOrRd", aspect="auto", vmin=0)
    axes.set_xticks(range(len(users)), [f"{number:,}" for number in users])
    axes.set_yticks(range(len(tenants)), [f"{number:,}" for number in tenants])
    axes.tick_params(length=0)
    axes.set_xlabel("users")
    axes.set_ylabel("tenants")
    top = np.nanmax(table) if np.isfinite(table).any() else 1.0
    for (line, column), found in np.ndenumerate(table):
        words = write(found) if math.isfinite(found) else "not played"
        axes.text(column, line, words, ha="center", va="center", color="white" if found > 0.6 * top else "#111827")
    return figure


def _passed(cells: Cells) -> Figure:
    operations = operations_of(cells)
    ranked = sorted(operations, key=lambda name: (list(_SHADES).index(category(name)), name))
    styles = _colours(operations)
    figure = new_figure(10.2, 5.2)
    axes = figure.subplots()
    axes.set_title("Requests that passed, and those that failed")
    axes.grid(visible=False, axis="x")
    bottom = np.zeros(len(cells))
    for name in ranked:
        heights = np.array([cell.passed.get(name, 0) for cell in cells], float)
        axes.bar(range(len(cells)), heights, 0.75, bottom, color=styles[name][0], edgecolor="white", linewidth=0.4)
        bottom += heights
    failed = [sum(cell.failed.values()) for cell in cells]
    axes.bar(range(len(cells)), failed, 0.75, bottom, color="#111827")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
    _name_cells(axes, cells)
    axes.set_xlabel("T: tenants, C: users at once")
    handles = [Patch(color="#111827", label="failed")] if any(failed) else []
    handles += [Patch(color=styles[name][0], label=style.text(name.replace("_", " "))) for name in reversed(ranked)]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def _parts(cells: Cells) -> list[str]:
    return list(dict.fromkeys(part for cell in cells for part in cell.used))


def _used(cells: Cells, title: str, value: Callable[[Use], float]) -> Figure:
    parts = _parts(cells)
    figure = new_figure(10.2, 4.6)
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(visible=False, axis="x")
    width = 0.8 / len(parts)
    for number, (part, line) in enumerate(zip(parts, style.lines(len(parts)), strict=True)):
        known = [(place, value(cell.used[part])) for place, cell in enumerate(cells) if part in cell.used]
        places = [place + (number - (len(parts) - 1) / 2) * width for place, _ in known]
        words = "hpcstress (the generator)" if part == "hpcstress" else part
        axes.bar(places, [height for _, height in known], width, color=line.colour, label=style.text(words))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
    _name_cells(axes, cells)
    axes.set_xlabel("T: tenants, C: users at once")
    figure.legend(loc="outside upper right", ncols=4)
    return figure


def _server_cpu(cells: Cells, *, by_users: bool) -> Figure:
    """Draw the CPU of the server's first part, MLflow itself, with a line for each number of the other kind."""
    part = next(part for part in _parts(cells) if part != "hpcstress")
    cells = [cell for cell in cells if part in cell.used]
    figure = new_figure(10.2, 4.4)
    axes = figure.subplots()
    axes.set_title(f"CPU of {style.text(part)} on average (cores)")
    axes.set_xlabel("users" if by_users else "tenants")
    style.size_axis(axes, sorted({cell.users if by_users else cell.tenants for cell in cells}), room=0.06)
    groups = sorted({cell.tenants if by_users else cell.users for cell in cells})
    labels = []
    for number, colour in zip(groups, style.shades(len(groups)), strict=True):
        mine = [cell for cell in cells if (cell.tenants if by_users else cell.users) == number]
        heights = [cell.used[part].cpu_average for cell in mine]
        axes.plot([cell.users if by_users else cell.tenants for cell in mine], heights, "o-", color=colour)
        labels.append((heights[-1], count(number, "tenant" if by_users else "user"), colour))
    axes.set_ylim(0, 1.1 * max([cell.used[part].cpu_average for cell in cells] + [1e-3]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.amount(value)))
    style.label_right(axes, labels)
    return figure
