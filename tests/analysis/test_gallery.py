from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from analysis.figures import Picture, style
from analysis.frame import read
from analysis.gallery import Gallery, Section
from analysis.statistics import measure
from hpcstress.record import Operation
from tests.analysis import scripts
from tests.analysis.results import rows, usual, write
from tests.analysis.test_figures import overlapping, texts

POSTGRES = scripts.server_facts(database="postgresql")


def sections(*results: Path) -> list[Section]:
    gallery = Gallery()
    for path in results:
        frame = read(path)
        gallery.add(frame, measure(frame))
    with style.context():
        return list(gallery.sections())


def parameters(folder: Path) -> list[Path]:
    told = {"sizes": (1,), "sweep": "params=10,100,1000,10000", "repeats": 2, "workload": "parameters"}
    return [scripts.job(folder / "1.h5", scripts.failing_parameters, **told)]


def artifacts(folder: Path) -> list[Path]:
    told = {"sizes": (1,), "sweep": "artifact_size=1MB,10MB,100MB,1000MB", "workload": "artifacts"}
    return [
        scripts.job(folder / "1.h5", scripts.artifacts, **told),
        scripts.job(folder / "2.h5", scripts.artifacts, facts=POSTGRES, **told),
    ]


def parallel_runs(folder: Path) -> list[Path]:
    sizes = (*range(1, 11), 100, 1000)
    return [scripts.job(folder / "1.h5", scripts.parallel_run, sizes=sizes, workload="parallel-runs")]


def tenants(folder: Path) -> list[Path]:
    return [scripts.job(folder / "1.h5", scripts.tenants, **scripts.MATRIX)]


def one_tenant_and_no_server_of_ours(folder: Path) -> list[Path]:
    told = {"sizes": (5,), "users": True, "duration": 0.5, "workload": "tenants", "tenants": 1}
    return [scripts.job(folder / "1.h5", scripts.tenants, server=False, **told)]


def tenants_of_two_servers(folder: Path) -> list[Path]:
    told = {"sizes": (5,), "users": True, "duration": 0.5, "workload": "tenants", "sweep": "tenants=1,10"}
    return [
        scripts.job(folder / "1.h5", scripts.tenants, **told),
        scripts.job(folder / "2.h5", scripts.tenants, facts=POSTGRES, **told),
    ]


def go(folder: Path) -> list[Path]:
    made = []
    for number, facts in enumerate((scripts.server_facts(), POSTGRES)):
        told = {"sizes": (20,), "users": True, "duration": 0.5, "facts": facts}
        for name, script, options in (
            ("b10", scripts.batches, {"workload": "log-batch", "metrics": 10, "params": 0}),
            ("b500", scripts.batches, {"workload": "log-batch", "metrics": 500, "params": 0}),
            ("p100", scripts.batches, {"workload": "log-batch", "metrics": 0, "params": 100}),
            ("create", scripts.one(Operation.create_run, 0.02, 0.1 * number), {"workload": "create-run"}),
            ("runs", scripts.one(Operation.search_runs, 0.1), {"workload": "search-runs"}),
            ("experiments", scripts.one(Operation.search_experiments, 0.02), {"workload": "search-experiments"}),
        ):
            made.append(scripts.job(folder / f"{name}{number}.h5", script, **told, **options))
    return made


def fasttrackml(folder: Path) -> list[Path]:
    made = []
    for slow, facts in (
        (2.0, scripts.server_facts()),
        (1.0, POSTGRES),
        (0.3, scripts.server_facts("fasttrackml", "0.6")),
    ):
        told = {"sizes": (5,), "users": True, "duration": 0.5, "facts": facts}
        made.append(scripts.job(folder / f"l{slow}.h5", scripts.logging(slow), workload="logging", **told))
        made.append(scripts.job(folder / f"r{slow}.h5", scripts.retrieval(slow), workload="retrieval", **told))
    return made


CHARTS = [
    "chart_summary_dashboard",
    "chart_response_times_by_concurrency",
    "chart_response_times_by_tenants",
    "chart_rps_by_concurrency",
    "chart_rps_by_tenants",
    "chart_throughput_heatmap",
    "chart_response_times_p95_heatmap",
    "chart_passed_counts",
    "chart_cpu_utilization",
    "chart_memory_utilization",
    "chart_mlflow_cpu_by_concurrency",
    "chart_mlflow_cpu_by_tenants",
]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (parameters, ["results-parameters"]),
        (artifacts, ["results-artifacts"]),
        (parallel_runs, ["results-parallel-runs"]),
        (tenants, CHARTS),
        # Of a server that somebody else runs, only the generator's own use is known.
        (one_tenant_and_no_server_of_ours, CHARTS[:10]),
        (tenants_of_two_servers, [f"{number}-{name}" for number in (1, 2) for name in CHARTS]),
        (go, ["results_duration", "results_iterations"]),
        (fasttrackml, ["performanceReport", "performanceReport-others"]),
    ],
)
def test_every_benchmark_has_its_pictures_and_in_none_a_text_covers_another(
    make: Callable[[Path], list[Path]], names: list[str], tmp_path: Path
) -> None:
    found = sections(*make(tmp_path))

    assert [shown.name for section in found for shown in section.pictures] == names
    with style.context():
        covered = {
            shown.name: pairs for section in found for shown in section.pictures if (pairs := overlapping(shown.figure))
        }
    assert covered == {}


def figure_of(name: str, *results: Path) -> Figure:
    (figure,) = (shown.figure for section in sections(*results) for shown in section.pictures if shown.name == name)
    return figure


def test_mantiks_figures_have_an_axis_on_each_side_and_a_line_for_each_method(tmp_path: Path) -> None:
    figure = figure_of("results-parameters", *parameters(tmp_path))

    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("duration (solid)", "duration per parameter (dashed)")
    assert left.get_xscale() == left.get_yscale() == right.get_yscale() == "log"
    assert [line.get_linestyle() for line in left.lines if len(line.get_xdata()) == 4][:1] == ["-"]
    assert [line.get_linestyle() for line in right.lines if len(line.get_xdata()) == 4][:1] == ["--"]
    # What failed is a cross, on both axes: log_params at 1,000 and 10,000, in two repeats.
    for axes in (left, right):
        assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "X"] == [1000, 10000] * 2
    assert {"log_param", "log_params", "log_batch", "failed"} < set(texts(figure))


def test_servers_are_told_apart_where_there_are_several(tmp_path: Path) -> None:
    words = texts(figure_of("results-artifacts", *artifacts(tmp_path)))

    assert "log_artifact, mlflow 3.17.2 sqlite" in words
    assert "log_artifacts, mlflow 3.17.2 postgresql" in words


def test_clients_are_told_apart_where_there_are_both(tmp_path: Path) -> None:
    both = [
        scripts.job(tmp_path / f"{client}.h5", scripts.parameters, workload="parameters", sizes=(1,), client=client)
        for client in ("wire", "stock")
    ]

    words = texts(figure_of("results-parameters", *both))

    assert {"log_param, mlflow 3.17.2 sqlite", "log_param, mlflow 3.17.2 sqlite, MLflow's client"} < set(words)


def test_a_cell_that_was_not_played_is_said_to_be_missing(tmp_path: Path) -> None:
    told = {"users": True, "duration": 0.5, "workload": "tenants"}
    results = [
        scripts.job(tmp_path / "1.h5", scripts.tenants, sizes=(5, 10), tenants=1, **told),
        scripts.job(tmp_path / "2.h5", scripts.tenants, sizes=(5,), tenants=10, **told),
    ]

    assert texts(figure_of("chart_throughput_heatmap", *results)).count("not played") == 1


def test_a_server_measured_twice_has_a_bar_for_each_time(tmp_path: Path) -> None:
    told = {"sizes": (5,), "users": True, "duration": 0.5, "workload": "create-run"}
    script = scripts.one(Operation.create_run, 0.02)
    results = [scripts.job(tmp_path / f"{seed}.h5", script, seed=seed, **told) for seed in (1, 2, 3)]

    words = texts(figure_of("results_duration", *results))

    assert {"mlflow 3.17.2 sqlite", "mlflow 3.17.2 sqlite #2", "mlflow 3.17.2 sqlite #3"} < set(words)


def test_bars_stand_for_means_and_marks_for_percentiles_of_all_requests(tmp_path: Path) -> None:
    path = scripts.job(
        tmp_path / "r.h5", scripts.retrieval(1.0), sizes=(5,), users=True, duration=0.5, workload="retrieval"
    )
    (row, *_) = [row for row in measure(read(path)).operations if row.operation == "search_runs"]

    axes = figure_of("performanceReport", path).axes[0]

    assert axes.get_title(loc="left") == "SearchRuns"
    assert [bar.get_height() for bar in axes.patches] == [row.mean]
    assert axes.lines[0].get_ydata().tolist() == [row.service.p50.value, row.service.p99.value]


def test_iterations_are_counted_in_the_time_of_the_load_if_it_was_the_same(tmp_path: Path) -> None:
    told = {"sizes": (5,), "users": True, "workload": "create-run"}
    script = scripts.one(Operation.create_run, 0.02)
    half = scripts.job(tmp_path / "1.h5", script, duration=0.5, **told)
    whole = scripts.job(tmp_path / "2.h5", script, duration=1.0, facts=POSTGRES, **told)

    figure = figure_of("results_iterations", half)
    assert "Iterations done well in 0.5 seconds" in texts(figure)
    done = sum(row.answers_per_second for row in measure(read(half)).operations) * 0.5
    assert [bar.get_height() for bar in figure.axes[0].patches] == [done]
    assert "Iterations done well per second" in texts(figure_of("results_iterations", half, whole))


def test_what_has_no_data_has_no_picture(tmp_path: Path) -> None:
    empty = write(tmp_path / "1.h5", rows([]), {})
    users = scripts.job(
        tmp_path / "2.h5", scripts.parallel_run, sizes=(2,), users=True, duration=0.5, workload="parallel-runs"
    )
    unknown = scripts.job(tmp_path / "3.h5", scripts.parallel_run, sizes=(2,), workload="from-the-future")

    assert sections(empty, users, unknown) == []


def test_in_a_notebook_a_gallery_shows_its_pictures_and_names_nothing_as_markup(tmp_path: Path) -> None:
    told = {"sizes": (5,), "users": True, "duration": 0.2, "workload": "tenants"}
    gallery = Gallery()
    for path in (
        usual(tmp_path / "1.h5", facts={"server": {"name": "<script>"}}),
        scripts.job(tmp_path / "2.h5", scripts.tenants, tenants=1, facts={"server": {"name": "<script>"}}, **told),
        scripts.job(tmp_path / "3.h5", scripts.tenants, tenants=1, **told),
    ):
        frame = read(path)
        gallery.add(frame, measure(frame))

    html = gallery._repr_html_()
    assert "mlflow-scale&#x27;s charts of &lt;script&gt;" in html

    assert html.count('<img alt="Duration and duration per unit of parallel runs') == 1
    assert "<script" not in html


def test_a_picture_is_png_in_a_notebook_and_svg_in_a_page(tmp_path: Path) -> None:
    picture = Picture(figure_of("results-parallel-runs", *parallel_runs(tmp_path)))

    picture.save(tmp_path / "p.png")

    assert (tmp_path / "p.png").read_bytes() == picture._repr_png_()
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.address().startswith("data:image/svg+xml;base64,")
