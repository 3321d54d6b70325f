from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.frame import Frame, read
from analysis.percentiles import Sample
from analysis.published.matrix import Cell, Use, cells_of, merged, write
from analysis.statistics import measure
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from tests.analysis import scripts
from tests.analysis.results import BEGAN, MS, SECOND, frame_of, rows, steps_of, table


def cell(tenants: int = 1, users: int = 10, seconds: float = 10.0, **milliseconds: list[int]) -> Cell:
    """Return a cell of requests that passed, by operation, given how long each took."""
    samples = {name: Sample(np.array(values) * MS) for name, values in milliseconds.items()}
    return Cell(
        tenants=tenants,
        users=users,
        began=BEGAN,
        seconds=seconds,
        samples=samples,
        passed={name: len(sample) for name, sample in samples.items()},
        failed=dict.fromkeys(samples, 0),
        per_second=sum(map(len, samples.values())) / seconds,
        passed_per_second={name: len(sample) / seconds for name, sample in samples.items()},
        used={},
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    path = tmp_path_factory.mktemp("matrix") / "result.h5"
    told = {**scripts.MATRIX, "sizes": (5, 10), "sweep": "tenants=1,100", "duration": 1.0}
    return read(scripts.job(path, scripts.tenants, repeats=2, **told))


def test_a_cell_is_a_number_of_tenants_and_of_users_with_all_its_repeats(matrix: Frame) -> None:
    cells = cells_of(matrix, measure(matrix))

    assert [(cell.tenants, cell.users, cell.name) for cell in cells] == [
        (1, 5, "T1_C5"),
        (1, 10, "T1_C10"),
        (100, 5, "T100_C5"),
        (100, 10, "T100_C10"),
    ]
    assert sum(len(cell.requests) for cell in cells) == matrix.length
    assert [cell.seconds for cell in cells] == [2.0] * 4


def test_operations_have_their_published_names(matrix: Frame) -> None:
    names = set(cells_of(matrix, measure(matrix))[0].samples)

    assert {"log_parameter", "update_run_status", "fetch_artifact", "create_prompt_version"} < names
    assert not names & {"log_param", "finish_run", "download_artifact", "connect"}


def of(attempts: list[dict[str, Any]], **parts: Any) -> Frame:
    made = rows(attempts)
    plan = {**Plan(users=(4,), duration=2.0).as_mapping(), "workload": "tenants"}
    return frame_of(made, steps_of(made, [4]), **{"plan": plan, **parts})


def test_latencies_and_rates_are_those_of_all_requests_and_failures_do_not_pass() -> None:
    attempts = [{"end": 100 * MS}] * 8 + [{"end": SECOND, "outcome": Outcome.timeout}] * 2
    attempts += [{"op": Operation.list_workspaces, "outcome": Outcome.not_supported}, {"op": Operation.connect}]

    (found,) = cells_of(frame := of(attempts), measure(frame))

    assert found.samples["create_run"].at(0.95) == 1.0
    assert (found.passed, found.failed) == (
        {"create_run": 8, "list_workspaces": 0},
        {"create_run": 2, "list_workspaces": 0},
    )
    # All ended within the two seconds of the load.
    assert found.per_second == 5.5
    assert found.passed_per_second["create_run"] == 4.0


def test_without_tenants_in_the_plan_there_is_one() -> None:
    (found,) = cells_of(frame := of([{}]), measure(frame))

    assert found.tenants == 1


def test_use_is_that_of_the_time_of_the_cell_and_the_generator_is_a_part() -> None:
    server = table(
        "server",
        [
            {"time": BEGAN + second, "part": "mlflow", "cpu_seconds": spent, "rss": memory}
            for second, spent, memory in (
                (-5, 0, 10),
                (-4, 90, 10),
                (0, 100, 10),
                (1, 102, 20),
                (2, 106, 40),
                (9, 200, 99),
            )
        ],
    )
    health = table("health", [{"rank": rank, "cpu_seconds": 1.0, "wall_seconds": 2.0, "max_rss": 7} for rank in (0, 1)])

    (found,) = cells_of(frame := of([{"end": 2 * SECOND}], server=server, health=health), measure(frame))

    assert found.used["mlflow"].cpu_largest == 4.0
    assert found.used["mlflow"].memory_largest == 40.0
    assert found.used["mlflow"].memory_average == pytest.approx(70 / 3)
    assert found.used["hpcstress"] == Use(1.0, 1.0, 14.0, 14.0)


def test_cells_of_several_results_are_merged_to_what_one_job_would_have_measured() -> None:
    both = merged(
        [cell(get_run=[10, 20], seconds=1.0), cell(tenants=9, get_run=[1]), cell(get_run=[30], get_x=[5], seconds=3.0)]
    )

    one, nine = both
    assert (one.tenants, nine.tenants) == (1, 9)
    assert one.samples["get_run"].values.tolist() == [10 * MS, 20 * MS, 30 * MS]
    assert one.passed == {"get_run": 3, "get_x": 1}
    assert one.seconds == 4.0
    assert one.per_second == 1.0
    assert one.passed_per_second == {"get_run": 0.75, "get_x": 0.25}


def test_merged_cells_have_the_use_of_all_of_them_by_how_long_they_lasted() -> None:
    first = replace(cell(get_run=[1], seconds=1.0), used={"mlflow": Use(4.0, 8.0, 100.0, 400.0)})
    second = replace(cell(get_run=[1], seconds=3.0), used={"mlflow": Use(2.0, 3.0, 20.0, 30.0), "db": Use(1, 1, 1, 1)})

    (one,) = merged([first, second])

    assert one.used == {"mlflow": Use(2.5, 8.0, 40.0, 400.0), "db": Use(1, 1, 1, 1)}


def test_the_summary_is_that_of_k6(tmp_path: Path) -> None:
    made = cell(tenants=3, users=20, get_run=[*range(1, 101)])

    (path, *_) = write([made], tmp_path)

    assert path.name == "summary_tenants-3_concurrency_20.json"
    told = json.loads(path.read_text())
    assert (told["tenants"], told["concurrency"]) == (3, 20)
    assert told["timestamp"].startswith("2025-10-09T08:53:20")
    metrics = told["data"]["metrics"]
    assert metrics["get_run_response_time"]["type"] == "trend"
    assert metrics["get_run_response_time"]["values"] == {
        "avg": 50.5,
        "min": 1.0,
        "med": 50.0,
        "max": 100.0,
        "p(90)": 90.0,
        "p(95)": 95.0,
    }
    assert metrics["get_run_passed"]["values"] == {"count": 100, "rate": 10.0}
    assert metrics["get_run_failed"]["values"] == {"count": 0, "rate": 0.0}
    assert metrics["http_reqs"]["values"] == {"count": 100, "rate": 10.0}
    assert metrics["http_req_failed"]["values"] == {"rate": 0.0, "passes": 0, "fails": 100}


def test_in_k6s_words_a_request_that_failed_passes_as_a_failure(tmp_path: Path) -> None:
    made = replace(cell(get_run=[10] * 8), passed={"get_run": 6}, failed={"get_run": 2})

    told = json.loads(write([made], tmp_path)[0].read_text())["data"]["metrics"]

    assert told["http_req_failed"]["values"] == {"rate": 0.25, "passes": 2, "fails": 6}
    assert told["get_run_failed"]["values"] == {"count": 2, "rate": 0.2}
    assert told["get_run_passed"]["values"]["count"] == 6
    (row,) = read_csv(tmp_path / "report_summary.csv")
    assert (row["http_req_failed_rate"], row["http_req_failed_count"], row["get_run_passed"]) == ("0.25", "2", "6")


def test_the_reports_have_the_published_columns(matrix: Frame, tmp_path: Path) -> None:
    files = {path.name for path in write(cells_of(matrix, measure(matrix)), tmp_path)}

    assert {name for name in files if name.startswith("report")} == {
        "report_summary.csv",
        "report_p95_latencies.csv",
        "report_rps.csv",
        "report_latency_analysis_by_tenants.csv",
        "report_latency_analysis_summary.csv",
    }
    assert {"summary_tenants-100_concurrency_5.json", "metrics_100_concurrency_5.csv"} < files
    summary = read_csv(tmp_path / "report_summary.csv")
    heads = list(summary[0])
    assert heads[:6] == [
        "tenants",
        "concurrency",
        *(f"create_experiment_{of}_ms" for of in ("avg", "p90", "p95", "max")),
    ]
    assert heads[-4:] == ["http_reqs_total", "http_reqs_rate", "http_req_failed_rate", "http_req_failed_count"]
    assert {"get_run_passed", "get_run_rps", "get_run_failed"} < set(heads)
    assert len(summary) == 4
    assert list(read_csv(tmp_path / "report_p95_latencies.csv")[0])[:3] == [
        "tenants",
        "concurrency",
        "create_experiment_p95_ms",
    ]
    rates = list(read_csv(tmp_path / "report_rps.csv")[0])
    assert rates[2:] == sorted(rates[2:])
    assert "http_reqs_rate" in rates
    use = read_csv(tmp_path / "metrics_1_concurrency_10.csv")
    assert list(use[0]) == ["component", "metric", "aggregation", "unit", "value"]
    assert {row["component"] for row in use} == {"mlflow", "postgres", "hpcstress"}


def test_a_percentile_over_several_operations_comes_from_all_their_requests(tmp_path: Path) -> None:
    # 90 fast ones and 10 slow ones: the mean of both p95s, 505 ms, is nobody's p95.
    few = cell(tenants=1, get_run=[10] * 90, get_experiment=[1000] * 10)
    many = cell(tenants=10, get_run=[20] * 98, get_experiment=[1000] * 2)

    write([few, many], tmp_path)

    (row,) = read_csv(tmp_path / "report_latency_analysis_summary.csv")
    assert row == {
        "category": "read",
        "concurrency": "10",
        "avg_1_tenant_p95_ms": "1000.0",
        "avg_10_tenants_p95_ms": "20.0",
        "avg_change_1_to_10_pct": "-98.0",
    }
    experiment, run = read_csv(tmp_path / "report_latency_analysis_by_tenants.csv")
    assert list(run) == [
        *("operation", "category", "concurrency"),
        *("1_tenant_p95_ms", "10_tenants_p95_ms", "change_1_to_10_pct"),
    ]
    assert [*run.values()] == ["get_run", "read", "10", "10.0", "20.0", "100.0"]
    assert experiment["change_1_to_10_pct"] == "0.0"


def test_what_was_not_measured_is_left_empty(tmp_path: Path) -> None:
    write(
        [cell(users=5, get_run=[10]), cell(users=10, search_runs=[30]), cell(tenants=2, users=5, get_run=[20])],
        tmp_path,
    )

    rows = read_csv(tmp_path / "report_summary.csv")
    assert [row["get_run_p95_ms"] for row in rows] == ["10.0", "", "20.0"]
    assert [row["get_run_passed"] for row in rows] == ["1", "", "1"]
    analysed = read_csv(tmp_path / "report_latency_analysis_by_tenants.csv")
    found = {(row["operation"], row["concurrency"]): row["change_1_to_2_pct"] for row in analysed}
    assert found == {
        ("get_run", "5"): "100.0",
        ("get_run", "10"): "",
        ("search_runs", "5"): "",
        ("search_runs", "10"): "",
    }


def test_of_one_number_of_tenants_nothing_changes(tmp_path: Path) -> None:
    files = write([cell(get_run=[1])], tmp_path)

    assert [path.name for path in files] == [
        "summary_tenants-1_concurrency_10.json",
        "report_summary.csv",
        "report_p95_latencies.csv",
        "report_rps.csv",
    ]
