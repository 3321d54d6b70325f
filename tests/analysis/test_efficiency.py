from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import figures
from analysis.efficiency import Curve, Measured, Parts, apart, curves, measured, rows
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
    ranks=1,
    size=10,
    users=False,
    rate=0.0,
    variation="",
    server="",
    plan=(),
    answers_per_second=100.0,
    service=0.1,
    parts=Parts(0.1, 0.9, 0),
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
    stopped: bool = False,
    facts: Mapping[str, object] | None = None,
    **options: str,
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
    steps["runs_finished"][-1] -= stopped
    plan = Plan(runs=sizes, repeats=1).with_options(options).to_toml()
    told = {"ranks": ranks, **(facts or {})}
    tables = {"steps": steps, "health": table("health", health)}
    return write(path, attempts, tables, plan=plan, facts=told, complete=not stopped)


def steps_in(*paths: Path) -> list[Measured]:
    return [step for path in paths for frame in [read(path)] for step in measured(frame, measure(frame).steps)]


def of(*paths: Path) -> list[Curve]:
    return curves(steps_in(*paths))


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


def test_no_rank_has_more_time_of_its_own_than_it_was_busy(tmp_path: Path) -> None:
    # Two threads of a rank may use two cores; the second of two ranks is idle half of the time.
    curve = of(job(tmp_path / "1.h5", 1, (3,), cpu=1.9), job(tmp_path / "2.h5", 2, (3,), cpu=1.9))[0]

    assert [point.parts for point in curve.points] == [
        pytest.approx((1, 0, 0), abs=1e-9),
        pytest.approx((0.75, 0, 0.25), abs=1e-9),
    ]


@pytest.mark.parametrize(("service", "slower"), [(104 * MS, False), (120 * MS, True)])
def test_a_request_that_takes_a_tenth_longer_is_told(tmp_path: Path, service: int, *, slower: bool) -> None:
    (curve,) = of(job(tmp_path / "1.h5", 1, (9,)), job(tmp_path / "2.h5", 2, (9,), service=service, lazy=1))

    assert ("the median request takes" in curve.sentence) == slower
    assert curve.points[-1].efficiency < 0.9


def test_a_step_that_was_stopped_is_no_point(tmp_path: Path) -> None:
    whole, stopped = job(tmp_path / "1.h5", 1, (8, 9)), job(tmp_path / "2.h5", 2, (8, 9), stopped=True)

    assert [step.size for step in steps_in(stopped)] == [8]
    assert [curve.name for curve in of(whole, stopped)] == ["8 runs"]


def test_plans_whose_runs_are_of_another_size_are_other_curves(tmp_path: Path) -> None:
    first, other = job(tmp_path / "1.h5", 1, (8,)), job(tmp_path / "2.h5", 2, (8,), params="7")

    assert of(first, other) == []
    # What is no load may differ.
    (curve,) = of(first, job(tmp_path / "3.h5", 2, (8,), audit="0", warmup="3"))
    assert [point.ranks for point in curve.points] == [1, 2]


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


def test_servers_of_two_addresses_are_not_on_one_curve_and_that_is_said(tmp_path: Path) -> None:
    # By MLFLOW_TRACKING_URI: neither plan has an address.
    steps = steps_in(
        job(tmp_path / "1.h5", 1, (8,), facts={"uri": "http://a:5000", "server_version": "3.4.0", "server": None}),
        job(tmp_path / "2.h5", 2, (8,), facts={"uri": "http://b:5000", "server_version": "3.4.0", "server": None}),
    )

    assert curves(steps) == []
    assert apart(steps) == (
        "Only results of the same server make a curve, and here are 2 servers: http://a:5000 (3.4.0) with 1 rank; "
        "http://b:5000 (3.4.0) with 2 ranks."
    )


def test_a_server_that_became_another_version_is_another_one(tmp_path: Path) -> None:
    facts = {"uri": "http://a:5000", "server": None}

    assert (
        of(
            *(
                job(tmp_path / f"{ranks}.h5", ranks, (8,), facts=facts | {"server_version": f"3.{ranks}.0"})
                for ranks in (1, 2)
            )
        )
        == []
    )


def test_one_server_is_one_however_its_address_was_given(tmp_path: Path) -> None:
    facts = {"uri": "http://a:5000", "server": None}
    steps = steps_in(
        job(tmp_path / "1.h5", 1, (8,), facts=facts),
        job(tmp_path / "2.h5", 2, (8,), facts=facts, uri="http://a:5000/"),
    )

    (curve,) = curves(steps)
    assert curve.name == "8 runs"
    assert apart(steps) == ""


def test_a_server_that_was_started_anew_each_time_is_the_same_by_how_it_was_started(tmp_path: Path) -> None:
    def started(ranks: int, spec: str, **options: str) -> list[Measured]:
        facts = {"uri": f"http://127.0.0.1:{5000 + ranks}", "server": {"name": "mlflow", "server": spec}}
        return steps_in(job(tmp_path / f"{spec}-{ranks}.h5", ranks, (8,), facts=facts, **options))

    usual = [*started(1, "mlflow-postgres"), *started(2, "mlflow-postgres", server="mlflow-postgres")]
    small = [*started(1, "mlflow-sqlite", server="mlflow-sqlite"), *started(4, "mlflow-sqlite")]

    assert [[point.ranks for point in curve.points] for curve in curves(usual)] == [[1, 2]]
    assert [(curve.name, [point.ranks for point in curve.points]) for curve in curves(usual + small)] == [
        ("parallel-runs on mlflow-postgres, 8 runs", [1, 2]),
        ("parallel-runs on mlflow-sqlite, 8 runs", [1, 4]),
    ]
    assert "mlflow-postgres with 1, 2 ranks; mlflow-sqlite with 1, 4 ranks" in apart(usual + small)


def test_nothing_is_said_of_servers_whose_ranks_make_no_curve_anyway() -> None:
    one, other = (replace(STEP, server=server) for server in "ab")

    assert apart([one, other]) == ""
    assert apart([one, replace(one, ranks=2), replace(other, size=7)]) == ""
    # That of b would be a further repeat of a's.
    assert apart([one, replace(one, ranks=2), other]) != ""


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
def test_the_report_says_why_results_of_two_servers_make_no_curve(tmp_path: Path) -> None:
    results = [
        job(tmp_path / str(ranks) / "result.h5", ranks, (8,), facts={"uri": f"http://{ranks}:5000"}) for ranks in (1, 2)
    ]

    page = write_report(results, tmp_path / "both").read_text("utf-8")

    assert "here are 2 servers: http://1:5000 with 1 rank; http://2:5000 with 2 ranks." in page
    assert "of the ideal" not in page
    assert not (tmp_path / "both" / "efficiency.png").exists()


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
