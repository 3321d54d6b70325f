"""The pictures of the benchmarks that hpcstress unites, of all results that have the data for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis import figures
from analysis.frame import Frame
from analysis.published import mantik, matrix, operations
from analysis.published.labels import label_of
from analysis.statistics import Statistics


class Shown(NamedTuple):
    """Hold one picture: the name of its file, what it shows, for those who cannot see it, too, and the figure."""

    name: str
    caption: str
    figure: Figure


class Section(NamedTuple):
    """Hold the pictures that one benchmark publishes, and what is different here."""

    title: str
    words: str
    pictures: list[Shown]


class Gallery:
    """Take what pictures need out of results, one after the other, so that not all of them are in memory at once."""

    def __init__(self) -> None:
        self._timings: dict[str, dict[str, list[mantik.Timing]]] = {}
        self._cells: dict[str, list[matrix.Cell]] = {}
        self._go: list[operations.Case] = []
        self._fast: list[operations.Case] = []
        self._titles: list[str] = []

    def add(self, frame: Frame, statistics: Statistics) -> None:
        """Keep what a result has for pictures, if it has anything."""
        workload = str(frame.plan["workload"])
        label = label_of(frame)
        if workload in mantik.WORKLOADS and not frame.users:
            self._timings.setdefault(workload, {}).setdefault(label, []).extend(mantik.timings(frame))
        elif workload in matrix.WORKLOADS:
            self._cells.setdefault(label, []).extend(matrix.cells_of(frame, statistics))
        elif workload in operations.GO_WORKLOADS:
            self._go += _apart(self._go, operations.cases_of(frame, statistics, label))
        elif workload in operations.FAST_WORKLOADS:
            self._fast += _apart(self._fast, operations.cases_of(frame, statistics, label))

    def sections(self) -> Iterator[Section]:
        """Yield what there is to be shown."""
        if any(timed for servers in self._timings.values() for timed in servers.values()):
            yield Section("mantik's figures", _MANTIK, list(self._mantik()))
        for label, cells in self._cells.items():
            named = f"mlflow-scale's charts of {label}" if len(self._cells) > 1 else "mlflow-scale's charts"
            together = [cell for cell in matrix.merged(cells) if len(cell.requests)]
            if together:
                prefix = f"{list(self._cells).index(label) + 1}-" if len(self._cells) > 1 else ""
                drawn = figures.matrix.charts(together)
                pictures = [Shown(prefix + name, _CHARTS[name], figure) for name, figure in drawn]
                yield Section(named, _SCALE, pictures)
        if self._go:
            yield Section(
                "mlflow-go's charts",
                _GO,
                [
                    Shown(
                        "results_duration",
                        "How long a request takes, by case and server",
                        figures.servers.durations(self._go),
                    ),
                    Shown(
                        "results_iterations",
                        "How many iterations are done well, by case and server",
                        figures.servers.iterations(self._go),
                    ),
                ],
            )
        if self._fast:
            known = dict.fromkeys(case.operation for case in self._fast)
            others = [name for name in known if name not in operations.PANEL]
            pictures = []
            if any(name in operations.PANEL for name in known):
                figure = figures.servers.panel(self._fast, list(operations.PANEL))
                pictures.append(Shown("performanceReport", "FastTrackML's operations, by server", figure))
            if others:
                figure = figures.servers.panel(self._fast, others)
                pictures.append(
                    Shown("performanceReport-others", "What it measures and does not show, by server", figure)
                )
            yield Section("FastTrackML's panel", _FAST, pictures)

    def _repr_html_(self) -> str:
        """Show all pictures in a notebook."""
        html = []
        for section in self.sections():
            html.append(f"<h3>{escape(section.title)}</h3><p>{escape(section.words)}</p>")
            for shown in section.pictures:
                address = figures.Picture(shown.figure).address()
                html.append(f'<p><img alt="{escape(shown.caption)}" src="{address}" style="background: white"></p>')
        return "".join(html) or "<p>This result is of no workload of a published benchmark.</p>"

    def _mantik(self) -> Iterator[Shown]:
        for workload in mantik.WORKLOADS:
            series: dict[str, list[mantik.Timing]] = {}
            servers = self._timings.get(workload, {})
            for label, timed in servers.items():
                for timing in timed:
                    name = f"{timing.method}, {label}" if len(servers) > 1 else timing.method
                    series.setdefault(name, []).append(timing)
            if series:
                caption = f"Duration and duration per unit of {workload.replace('-', ' ')}, a line for each method"
                yield Shown(f"results-{workload}", caption, figures.mantik.by_method(workload, series))


def _apart(known: list[operations.Case], new: list[operations.Case]) -> list[operations.Case]:
    """Return cases under a name of their own, if another result of such a server has the same ones."""
    taken, number = {(case.server, case.label) for case in known}, 1
    told = new
    while any((case.server, case.label) in taken for case in told):
        number += 1
        told = [replace(case, server=f"{case.server} #{number}") for case in new]
    return told


_MANTIK = (
    "A duration is that of a whole MLflow run, as there, and of parallel runs it lasts until the last one is done. "
    "Failures are kept, and a duration is divided by what was really logged. The third figure was never drawn there."
)
_SCALE = (
    "Latencies and rates come from all requests, failures included. A percentile over several operations comes from "
    "all their requests, and is no mean of percentiles."
)
_GO = (
    "The bar is the mean, as there; the p50 and the p99 are those of all requests, failures included. Iterations that "
    "failed do not count."
)
_FAST = (
    "The bar is the mean, as there; the p50 and the p99 are those of all requests, failures included. Behind the "
    "published names stand the true sizes."
)
_CHARTS = {
    "chart_summary_dashboard": "Requests per second, requests, failures and mean latency of every cell",
    "chart_response_times_by_concurrency": "The p95 of every operation over users, for each number of tenants",
    "chart_response_times_by_tenants": "The p95 of every operation over tenants, for each number of users",
    "chart_rps_by_concurrency": "Good answers per second of every operation over users, for each number of tenants",
    "chart_rps_by_tenants": "Good answers per second of every operation over tenants, for each number of users",
    "chart_throughput_heatmap": "Requests per second over tenants and users",
    "chart_response_times_p95_heatmap": "The p95 of all requests over tenants and users",
    "chart_passed_counts": "Requests that passed, by operation, and those that failed, of every cell",
    "chart_cpu_utilization": "CPU that each part of the server and the generator used",
    "chart_memory_utilization": "Memory that each part of the server and the generator used",
    "chart_mlflow_cpu_by_concurrency": "CPU of the server over users, a line for each number of tenants",
    "chart_mlflow_cpu_by_tenants": "CPU of the server over tenants, a line for each number of users",
}
