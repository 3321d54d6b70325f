from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.frame import read
from analysis.published.labels import server_label
from analysis.published.operations import PANEL, Case, cases_of
from analysis.statistics import measure
from hpcstress.record import Operation
from tests.analysis import scripts


def cases(path: Path, script: scripts.Script, workload: str, **told: Any) -> list[Case]:
    made = {"sizes": (4,), "users": True, "duration": 1.0, **told}
    frame = read(scripts.job(path, script, workload=workload, **made))
    return cases_of(frame, measure(frame), "server")


@pytest.mark.parametrize(
    ("workload", "options", "operation", "name"),
    [
        ("log-batch", {"metrics": 10, "params": 0}, "log_batch", "LogMetricBatch10"),
        ("log-batch", {"metrics": 0, "params": 100}, "log_batch", "LogParamBatch100"),
        ("log-batch", {"metrics": 300, "params": 50, "tags": 50}, "log_batch", "LogBatch 50/50/300"),
        ("create-run", {}, "create_run", "CreateRun"),
        ("search-runs", {}, "search_runs", "SearchRuns"),
        ("search-experiments", {}, "search_experiments", "SearchExperiments"),
    ],
)
def test_an_iteration_is_named_as_published(
    tmp_path: Path, workload: str, options: dict[str, int], operation: str, name: str
) -> None:
    script = scripts.batches if workload == "log-batch" else scripts.one(Operation[operation], 0.02)

    (case,) = cases(tmp_path / "r.h5", script, workload, **options)

    assert (case.name, case.operation) == (name, operation)
    assert case.seconds == 1.0


def test_failures_are_in_the_times_and_not_among_the_iterations(tmp_path: Path) -> None:
    (case,) = cases(tmp_path / "r.h5", scripts.one(Operation.create_run, 0.05, failing=0.5), "create-run")

    assert 0 < case.failed < case.attempts
    assert case.per_second <= case.attempts - case.failed
    assert case.mean < 0.04


def test_several_numbers_of_users_and_payloads_are_cases_of_their_own(tmp_path: Path) -> None:
    found = cases(tmp_path / "r.h5", scripts.batches, "log-batch", sizes=(2, 4), sweep="metrics=10,500 params=0 tags=0")

    assert [case.label for case in found] == [
        "LogMetricBatch10\n2 users",
        "LogMetricBatch10\n4 users",
        "LogMetricBatch500\n2 users",
        "LogMetricBatch500\n4 users",
    ]


def test_every_operation_that_is_measured_is_shown_in_the_order_of_the_panel(tmp_path: Path) -> None:
    found = cases(tmp_path / "r.h5", scripts.logging(1.0), "logging")

    assert [case.name for case in found] == [
        "CreateRun",
        "LogMetricBatch10\n(40 metrics)",
        "LogMetricBatch500\n(1,000 metrics)",
        "LogParamBatch10\n(10 params)",
        "LogParamBatch100\n(100 params)",
        "LogMetricSingle\n(1 metric)",
        "LogMetricBatch100\n(400 metrics)",
        "UpdateRun",
    ]
    assert [case.operation in PANEL for case in found] == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        (scripts.server_facts(), "mlflow 3.17.2 sqlite"),
        ({"server": {"name": "fasttrackml"}}, "fasttrackml"),
        ({"server": None, "uri": "https://mlflow.example"}, "https://mlflow.example"),
        ({"client": "null"}, "null client"),
        ({}, "a server"),
        ({"server": {"name": "m\x1b[2J", "settings": 5}}, "m [2J"),
    ],
)
def test_a_server_is_called_by_what_is_known_of_it(facts: dict[str, Any], label: str) -> None:
    assert server_label(facts) == label
