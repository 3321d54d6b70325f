from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import figures
from analysis.efficiency import Curve, Measured, Parts, curves, measured, rows
from analysis.figures import style
from analysis.frame import read
from analysis.report import write_report
from analysis.statistics import measure
from hpcstress.plan import Plan
from tests.analysis.conftest import Told
from tests.analysis.results import MS, SECOND, steps_of, table, write
from tests.analysis.results import rows as attempts_of
from tests.analysis.test_figures import overlapping

STEP = Measured(
    1, 10, users=False, rate=0.0, variation="", plan=(), answers_per_second=100.0, service=0.1, parts=Parts(0.1, 0.9, 0)
)


def job(
    path: Path,
    ranks: int,
    sizes: tuple[int, ...],
    *,
    service: int = 100 * MS,
    own: int = 0,
    cpu: float = 0.0,
    lazy: int = 0,
) -> Path:
    """Write a result whose ranks play their runs one after the other, each a request; the last ranks may be lazy.

    Before each request the generator needs some time of its own.
    """
    made = []
    for step, size in enumerate(sizes):
        for run in range(size):
            rank, before = run % ranks, run // ranks
            slow = 2 if rank >= ranks - lazy else 1
            due = before * slow * (own + service)
            start = due + slow * own
            made.append(
                {"step": step, "run": run, "rank": rank, "due": due, "start": start, "end": start + slow * service}
            )
    attempts = attempts_of(made)
    steps = steps_of(attempts, sizes)
    health = [
        {"step": step, "rank": rank, "cpu_seconds": cpu * steps["last_done"][step] / SECOND, "wall_seconds": 1}
        for step in range(len(sizes))
        for rank in range(ranks)
    ]
    path.parent.mkdir(exist_ok=True)
    plan = Plan(runs=sizes, repeats=1).to_toml()
    return write(path, attempts, {"steps": steps, "health": table("health", health)}, plan=plan, facts={"ranks": ranks})


def of(*paths: Path) -> list[Curve]:
    found = []
    for path in paths:
        frame = read(path)
        found += measured(frame, measure(frame).steps)
    return curves(found)


def test_ranks_that_share_the_same_runs_evenly_scale_ideally(tmp_path: Path) -> None:
    (curve,) = of(*(job(tmp_path / f"{ranks}.h5", ranks, (24,)) for ranks in (1, 2, 4, 8)))

    assert (curve.kind, curve.name) == ("strong", "24 runs")
    assert [point.ranks for point in curve.points] == [1, 2, 4, 8]
    assert [point.rates for point in curve.points] == [(10.0,), (20.0,), (40.0,), (80.0,)]
    assert [point.efficiency for point in curve.points] == pytest.approx([1, 1, 1, 1])
    assert all(point.parts == pytest.approx((0, 1, 0)) for point in curve.points)
    assert curve.sentence == "Strong scaling, 24 runs: 8 ranks reach 100% of the ideal that 1 rank sets."


def test_as_many_runs_per_rank_are_weak_scaling_and_a_slower_server_is_named(tmp_path: Path) -> None:
    (curve,) = of(
        job(tmp_path / "1.h5", 2, (20,)),
        job(tmp_path / "2.h5", 4, (40,), service=200 * MS),
    )

    assert (curve.kind, curve.name) == ("weak", "10 runs per rank")
    assert [point.efficiency for point in curve.points] == pytest.approx([1, 0.5])
    assert [point.size for point in curve.points] == [20, 40]
    assert curve.sentence == (
        "Weak scaling, 10 runs per rank: 4 ranks reach 50% of the ideal that 2 ranks set; the median request takes 2.0 "
        "times as long, 0.20 s instead of 0.10 s. Of the ranks' time 100% is waiting for the server, 0% the generator "
        "itself, 0% idle."
    )


def test_time_in_which_requests_were_due_and_none_was_under_way_is_the_generators(tmp_path: Path) -> None:
    *_, curve = of(job(tmp_path / "1.h5", 1, (8,)), job(tmp_path / "2.h5", 2, (8,), own=300 * MS))

    assert curve.points[-1].parts == pytest.approx((0.75, 0.25, 0))
    assert curve.points[-1].efficiency == pytest.approx(0.25)
    assert "25% is waiting for the server, 75% the generator itself, 0% idle." in curve.sentence


def test_cpu_time_is_the_generators_where_it_is_more(tmp_path: Path) -> None:
    (curve,) = of(job(tmp_path / "1.h5", 1, (8,), cpu=0.4), job(tmp_path / "2.h5", 2, (8,), cpu=0.4))

    assert curve.points[-1].parts == pytest.approx((0.4, 0.6, 0))


def test_ranks_that_are_done_before_the_last_one_are_idle(tmp_path: Path) -> None:
    (curve,) = of(job(tmp_path / "1.h5", 2, (8,)), job(tmp_path / "2.h5", 4, (8,), lazy=1))

    assert curve.points[-1].parts == pytest.approx((0, 5 / 8, 3 / 8))


def test_one_set_of_results_may_show_both(tmp_path: Path) -> None:
    found = of(*(job(tmp_path / f"{ranks}.h5", ranks, (8, 16)) for ranks in (1, 2)))

    assert [(curve.kind, curve.name) for curve in found] == [
        ("strong", "8 runs"),
        ("strong", "16 runs"),
        ("weak", "8 runs per rank"),
    ]


def test_other_plans_are_other_curves() -> None:
    other = replace(STEP, plan=(("params", "7"),), ranks=2)

    assert curves([STEP, other]) == []
    found = curves([STEP, other, replace(STEP, ranks=4), replace(other, ranks=8)])
    assert [[point.ranks for point in curve.points] for curve in found] == [[1, 4], [2, 8]]


def test_where_iterations_come_at_a_rate_only_the_rate_per_rank_makes_a_curve() -> None:
    steps = [replace(STEP, users=True, ranks=ranks, size=10 * ranks, rate=5.0 * ranks) for ranks in (1, 3)]

    (curve,) = curves([*steps, replace(steps[0], ranks=3)])

    assert (curve.kind, curve.name) == ("weak", "10 users per rank at 5.0 iterations/s")
    assert [point.ranks for point in curve.points] == [1, 3]


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(1, 1e6)), min_size=1, max_size=30),
    st.permutations(range(30)),
)
def test_repeats_are_sorted_and_the_order_of_results_does_not_matter(
    told: list[tuple[int, float]], order: list[int]
) -> None:
    steps = [replace(STEP, ranks=ranks, answers_per_second=rate) for ranks, rate in told]
    shuffled = [steps[place] for place in order if place < len(steps)]

    found = [curve for curve in curves(steps) if curve.kind == "strong"]

    assert rows(found) == rows(curve for curve in curves(shuffled) if curve.kind == "strong")
    for curve in found:
        assert [point.ranks for point in curve.points] == sorted({ranks for ranks, _ in told})
        for point in curve.points:
            assert list(point.rates) == sorted(rate for ranks, rate in told if ranks == point.ranks)
            assert np.allclose(np.array(point.efficiencies) * curve.ideal(point.ranks), point.rates)
        assert curve.points[0].efficiency == pytest.approx(1)


@pytest.mark.slow
def test_the_report_of_several_results_shows_it_and_that_of_one_does_not(tmp_path: Path, usual_report: Told) -> None:
    results = [job(tmp_path / str(ranks) / "result.h5", ranks, (8, 16)) for ranks in (1, 2)]

    page = write_report(results, tmp_path / "both")

    assert "Strong scaling, 16 runs: 2 ranks reach 100% of the ideal that 1 rank sets." in page.read_text("utf-8")
    with (tmp_path / "both" / "efficiency.csv").open() as file:
        table = [*csv.DictReader(file)]
    assert [(row["scaling"], row["load"], row["ranks"], row["efficiency_median"]) for row in table[:2]] == [
        ("strong", "8 runs", "1", "1.0"),
        ("strong", "8 runs", "2", "1.0"),
    ]
    assert (tmp_path / "both" / "efficiency.png").stat().st_size > 10_000
    alone = Path(usual_report.words.splitlines()[-1].removeprefix("The report is "))
    assert "More ranks" not in alone.read_text("utf-8")
    assert not (alone.parent / "efficiency.png").exists()


@pytest.mark.parametrize("sizes", [1, 3, 9])
def test_no_text_of_the_figure_covers_another(sizes: int) -> None:
    steps = [
        replace(STEP, ranks=ranks, size=size * factor, answers_per_second=100.0 * ranks**0.8 * (1 + 0.1 * repeat))
        for ranks in (1, 2, 4, 8, 16, 64)
        for size in [10 * 2**number for number in range(sizes)]
        for factor in (1, ranks)
        for repeat in range(3)
    ]

    with style.context():
        assert overlapping(figures.efficiency(curves(steps))) == []
        assert overlapping(figures.efficiency([])) == []
