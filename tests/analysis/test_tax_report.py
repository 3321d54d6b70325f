from __future__ import annotations

import csv
from pathlib import Path

import pytest

from analysis import figures
from analysis.client_tax import Tax, calls_of, compare
from analysis.figures import style
from analysis.frame import read
from analysis.report import write_report
from hpcstress.plan import Plan
from hpcstress.record import Operation
from tests.analysis.results import rows, steps_of, write
from tests.analysis.test_client_tax import Call, Told, by_stock, by_wire
from tests.analysis.test_figures import overlapping

CALLS: list[Call] = [(Operation.create_run, [1]), (Operation.log_params, [1, 3, 1]), (Operation.finish_run, [1, 1])]


def result(path: Path, runs: list[Told], client: str, **options: object) -> Path:
    attempts = rows(row for run in runs for row in run.rows)
    plan = Plan(runs=(len(runs),), repeats=1).with_options({"client": client, **options})
    return write(path, attempts, {"steps": steps_of(attempts, [len(runs)])}, plan=plan.to_toml())


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result(tmp_path_factory.mktemp("wire") / "result.h5", [by_wire(run, CALLS) for run in range(5)], "wire")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result(tmp_path_factory.mktemp("stock") / "result.h5", [by_stock(run, CALLS) for run in range(5)], "stock")


def test_both_clients_on_one_plan_are_one_page_with_a_picture_and_a_table(
    wire: Path, stock: Path, tmp_path: Path
) -> None:
    other = result(tmp_path / "result.h5", [by_wire(0, CALLS)], "wire", params=7)
    page = write_report([other, wire, stock], tmp_path / "out").read_text("utf-8")

    # The other one is of another load. Only MLflow's client hides something: it is told there and in the comparison.
    assert page.count("<h1>The client tax") == 1
    assert page.count("client hides</h2>") == 2
    assert (tmp_path / "out" / "client-tax-1.png").stat().st_size > 1000
    with (tmp_path / "out" / "client-tax-1.csv").open() as file:
        told = [(row["operation"], int(row["calls"])) for row in csv.DictReader(file)]
    assert told == [("create_run", 5), ("log_params", 5), ("finish_run", 5)]


def test_in_the_picture_every_word_can_be_read(wire: Path, stock: Path) -> None:
    tax, calls = compare(read(wire), read(stock)), calls_of(read(stock))
    with style.context():
        for drawn in (figures.client_tax(tax, calls), figures.client_tax(Tax((), tax.wire, tax.stock), calls)):
            assert overlapping(drawn) == []


def test_in_the_picture_a_call_is_as_long_as_its_parts_together(wire: Path, stock: Path) -> None:
    tax, calls = compare(read(wire), read(stock)), calls_of(read(stock))
    with style.context():
        [axes] = figures.client_tax(tax, calls).axes
    for row, pair in enumerate(tax.pairs):
        bars = [bar for bar in axes.patches if abs(bar.get_y() + bar.get_height() / 2 - row - 0.2) < 0.1]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(pair.stock_mean)
