from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import figures
from analysis.figures import style
from analysis.frame import Frame, read
from analysis.statistics import measure
from analysis.timeline import Span, Timeline, timeline
from analysis.usage import told, usage
from hpcstress.record import Operation, Outcome
from tests.analysis import scripts
from tests.analysis.results import BEGAN, MS, Fault, Outage, frame_of, rows, steps_of, story, table, usual, write

EVERY_CAUSE = [
    Fault(100, Operation.log_params, outcome, 0.07, 0.1 + 0.05 * outcome)
    for outcome in Outcome
    if outcome is not Outcome.ok
]
DEAD = [Fault(size, Operation.connect, Outcome.refused, 1.0, 0.0003) for size in (10, 30, 100)]
LOCKED = [Fault(size, Operation.create_run, Outcome.auth, 1.0, 0.1) for size in (10, 30, 100)]

RESULTS: dict[str, Callable[[Path], Path]] = {
    "usual": usual,
    "outage": lambda path: story(path, outage=Outage(100, 1.5, 4.0), spread=6.0),
    "one step, one repeat, one rank, no server": lambda path: story(path, runs=(50,), repeats=1, ranks=1, server=False),
    "64 ranks, many steps": lambda path: story(
        path, runs=(64, 128, 256, 512, 1024, 2048), repeats=3, ranks=64, capacity=400
    ),
    "every cause": lambda path: story(path, faults=EVERY_CAUSE),
    "no connection": lambda path: story(path, faults=DEAD),
    "no success": lambda path: story(path, faults=LOCKED, server=False),
    "far objective": lambda path: story(path, objective=3600.0),
    "empty": lambda path: write(path, rows([]), {}),
    "users": lambda path: users(path, sizes=(4, 8), repeats=2),
    "one user": lambda path: users(path, sizes=(1,)),
    "users at a rate": lambda path: users(path, sizes=(4, 8), rate=20.0),
    "one size, a sweep of numbers": lambda path: users(path, sizes=(4,), sweep="params=10,100,1000"),
    "two sizes, a sweep": lambda path: users(path, sizes=(4, 8), sweep="params=10,100 metrics=1,2,3"),
    "a sweep of words": lambda path: users(path, sizes=(4,), sweep="method=log_param,log_params,log_batch"),
    "prometheus": lambda path: prometheus(path, parts=6),
    "prometheus and a server": lambda path: prometheus(path, parts=3, server=True),
    "tenants and users": lambda path: scripts.job(path, scripts.tenants, **scripts.MATRIX),
}


def users(path: Path, **told: Any) -> Path:
    return scripts.job(path, scripts.batches, users=True, duration=0.5, workload="log-batch", **told)


def prometheus(path: Path, parts: int, *, server: bool = False) -> Path:
    """Write a result of a foreign server, of which a Prometheus told, or of hpcstress's own."""
    series = [
        ("cpu", "groupname=a-service{:02}-with-a-long-name", 1.0),
        ("memory", "groupname=a-service{:02}-with-a-long-name", 1e9),
        ("mlflow_requests", "status={:03}", 30.0),
        ("queue", "__name__=queue, instance=10.11.12.13:{:05}", 1e6),
    ]
    told = table(
        "prometheus",
        [
            {"time": BEGAN + second, "query": query, "labels": labels.format(part), "value": scale * (part + 1)}
            for query, labels, scale in series
            for part in range(parts)
            for second in range(20)
        ],
    )
    return story(path, server=server, prometheus=told)


def drawn(frame: Frame) -> Iterator[tuple[str, Figure]]:
    statistics = measure(frame)
    yield "scaling", figures.scaling(statistics.steps, frame.objective)
    yield "operations", figures.operations(statistics)
    yield "percentiles", figures.percentiles(statistics, frame.objective)
    yield "timeline", figures.timeline(timeline(frame))
    line = timeline(frame, alike=True)
    yield "usage", figures.usage(line, usage(frame, line.origin), told(frame, line.origin), 4)
    yield "health", figures.health(frame, statistics.steps)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of visible texts that cover each other, after the figure has been laid out."""
    figure.draw_without_rendering()
    hidden = {text for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    written = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in written if text.get_visible()]
    return [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]


@pytest.mark.parametrize("name", RESULTS)
def test_no_text_covers_another(name: str, tmp_path: Path) -> None:
    frame = read(RESULTS[name](tmp_path / "result.h5"))

    with style.context():
        covered = {figure_name: pairs for figure_name, figure in drawn(frame) if (pairs := overlapping(figure))}

    assert covered == {}


def test_forty_steps_of_ten_thousand_runs_are_named_where_there_is_room() -> None:
    counts = np.array([10_000, 1])
    spans = tuple(
        Span("10,000", repeat, 9.0 * repeat, 9.0 * repeat + 8, 4.0, counts, counts, {}, counts, counts)
        for repeat in range(40)
    )
    line = Timeline(spans, "runs", users=False, origin=0.0)

    with style.context():
        for figure in (figures.timeline(line), figures.usage(line, ())):
            assert overlapping(figure) == []
            assert 10 < texts(figure).count("10,000") < 40


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_formulas_and_letters_of_strange_names_are_drawn_as_text(tmp_path: Path) -> None:
    frame = read(story(tmp_path / "r.h5", runs=(10,), repeats=1))
    frame.server["part"] = b"$\\frac{\xff\x1b"

    with style.context():
        figure = figures.usage(timeline(frame), usage(frame, BEGAN))
        FigureCanvasAgg(figure).draw()

    assert "$\\frac{?" in texts(figure)


def test_steps_and_use_share_an_axis_of_time(tmp_path: Path) -> None:
    frame = read(story(tmp_path / "r.h5", runs=(50, 100), repeats=1, capacity=4))
    line = timeline(frame, alike=True)

    figure = figures.usage(line, usage(frame, line.origin))

    first, second = line.spans
    length = second.end - first.begin
    shaded = [patch.get_x() for patch in figure.axes[0].patches if hasattr(patch, "get_x")][:2]
    assert shaded == pytest.approx([0.0, second.begin / length])
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    mlflow = next(part for part in usage(frame, line.origin) if part.part == "mlflow")
    cores = figure.axes[2].lines[0]
    known = np.isfinite(mlflow.cores) & (np.abs(mlflow.time / length - 0.5) <= 0.55)
    assert cores.get_xdata() == pytest.approx(mlflow.time[known] / length)
    assert cores.get_ydata() == pytest.approx(mlflow.cores[known])


def test_what_is_not_known_of_any_part_has_no_panel(tmp_path: Path) -> None:
    frame = read(story(tmp_path / "r.h5"))
    titles = ["CPU in cores, of 2", "Resident memory in GB", "Connections", "Open files"]

    assert [axes.get_title(loc="left") for axes in usage_of(frame, 2).axes][2:] == titles
    frame.server["files"] = frame.server["connections"] = -1
    assert [axes.get_title(loc="left") for axes in usage_of(frame, 0).axes][2:] == ["CPU in cores", titles[1]]


def usage_of(frame: Frame, cores: int) -> Figure:
    with style.context():
        return figures.usage(timeline(frame), usage(frame, BEGAN), (), cores)


def test_of_more_parts_than_can_be_told_apart_the_busiest_are_drawn(tmp_path: Path) -> None:
    frame = read(prometheus(tmp_path / "r.h5", parts=40))

    with style.context():
        figure = figures.usage(timeline(frame), usage(frame, BEGAN), told(frame, BEGAN))

        assert overlapping(figure) == []
    named = [words for words in texts(figure) if words.startswith("a-service")]
    assert [int(name[9:11]) for name in named] == [*range(33, 40)]
    assert "33 more in the table" in texts(figure)


def test_the_objective_is_a_line_where_it_is_near_and_a_note_where_it_is_far(tmp_path: Path) -> None:
    steps = measure(read(story(tmp_path / "r.h5"))).steps

    assert "objective 1 s" in texts(figures.scaling(steps, 1.0))
    assert "objective of p99: 3600 s" in texts(figures.scaling(steps, 3600.0))


@pytest.mark.parametrize(
    ("told", "words"),
    [({}, True), ({"rate": 20.0}, False), ({"sizes": (4,), "sweep": "params=1,10"}, False)],
)
def test_only_more_runs_or_users_are_expected_to_do_more(tmp_path: Path, told: dict[str, Any], words: bool) -> None:
    steps = measure(read(users(tmp_path / "r.h5", **{"sizes": (4, 8), **told}))).steps

    assert ("ideal" in texts(figures.scaling(steps, 1.0))) is words


def test_of_very_many_curves_some_are_drawn(tmp_path: Path) -> None:
    statistics = measure(read(users(tmp_path / "r.h5", sizes=tuple(range(1, 14)))))

    figure = figures.percentiles(statistics, 1.0)

    assert "10 of 13 sizes are shown" in texts(figure)
    named = {int(words.split()[0]) for words in texts(figure) if words.endswith((" user", " users"))}
    assert len(named) == 10
    assert {1, 13} < named


def test_repeats_show_as_points_and_as_a_band(tmp_path: Path) -> None:
    steps = measure(read(story(tmp_path / "r.h5", runs=(10, 30), repeats=3))).steps

    duration = figures.scaling(steps, 1.0).axes[0]

    points = duration.lines[1].get_xydata().tolist()
    assert points == [[step.size, step.duration] for size in (10, 30) for step in steps if step.size == size]
    assert len(duration.collections) == 2


def test_failures_are_stacked_to_their_share_of_all_attempts(usual_result: Path) -> None:
    statistics = measure(read(usual_result))

    failures = figures.scaling(statistics.steps, 1.0).axes[3]

    tall = max(bar.get_y() + bar.get_height() for bar in failures.patches)
    steps = [step for step in statistics.steps if step.size == 100]
    tried = sum(step.requests + step.connect.count for step in steps)
    assert tall == pytest.approx(100 * sum(step.failed for step in steps) / tried)


def test_a_percentile_of_too_few_requests_is_drawn_hollow(usual_result: Path) -> None:
    statistics = measure(read(usual_result))

    figure = figures.operations(statistics)

    assert "n too small: a lower bound" in texts(figure)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == sum(
        not estimate.enough
        for row in statistics.operations
        if row.operation == "connect"
        for estimate in (row.service.p50, row.service.p95, row.service.p99)
    )


def test_a_curve_ends_at_the_slowest_request(usual_result: Path) -> None:
    statistics = measure(read(usual_result))

    axes = figures.percentiles(statistics, 1.0).axes[0]

    ends = [float(line.get_ydata()[-1]) for line in axes.lines if len(line.get_xdata()) == 300]
    assert ends == [statistics.requests(rung).values[-1] / 1e9 for rung in statistics.climb.rungs]


@pytest.mark.parametrize(
    ("began", "error", "words"),
    [
        ([0, 4 * MS], 0, {"start"}),
        ([0, 4 * MS], 20_000, {"start", "error"}),
        ([0, 0], 20_000, {"error"}),
        ([0, 0], 0, {"one clock"}),
        ([0], 0, {"one clock"}),
    ],
)
def test_when_ranks_truly_began_is_shown_also_where_they_have_one_clock(
    began: list[int], error: int, words: set[str]
) -> None:
    attempts = rows([{"step": 0, "run": run, "end": 50 * MS} for run in range(10)])
    health = [{"rank": rank, "wall_seconds": 1.0, "began_ns": late} for rank, late in enumerate(began)]
    ranks = [{"rank": rank, "complete": True, "error_ns": error if rank else 0} for rank in range(len(began))]
    frame = frame_of(attempts, steps_of(attempts, [10]), health=table("health", health), ranks=table("ranks", ranks))
    assert {"start", "error", "one clock"} & {*texts(figures.health(frame, measure(frame).steps))} == words
