from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from analysis import frame
from analysis.export import export
from analysis.frame import dataframe
from analysis.statistics import measure
from hpcstress.errors import UsageRefusal
from hpcstress.record import COLUMNS, RECORD
from tests.analysis import scripts
from tests.analysis.results import rows, write

TABLES = ["attempts", "steps", "operations", "ranks", "health", "server", "events", "prometheus", "audit"]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_all_attempts_come_back_as_they_were(file_format: str, usual_result: Path, tmp_path: Path, monkeypatch) -> None:
    # Pieces that do not fit evenly.
    monkeypatch.setattr(frame.pieces, "__defaults__", (700,))

    files = export([usual_result], file_format, tmp_path)

    assert [path.name for path in files] == [f"{name}.{file_format}" for name in TABLES]
    read = pd.read_csv if file_format == "csv" else pd.read_parquet
    found, written = read(files[0]), dataframe(usual_result)
    assert tuple(found.columns) == COLUMNS
    assert len(found) == len(written) > 1400
    for name in COLUMNS:
        assert found[name].astype(str).tolist() == written[name].astype(str).tolist()


def test_parquet_keeps_the_types_of_the_record(usual_result: Path, tmp_path: Path) -> None:
    schema = parquet.read_schema(export([usual_result], "parquet", tmp_path)[0])

    for name in set(COLUMNS) - {"op", "outcome"}:
        assert schema.field(name).type.to_pandas_dtype() == np.dtype(RECORD[name]).type


def test_the_tables_come_along(usual_result: Path, tmp_path: Path) -> None:
    statistics = measure(frame.read(usual_result))

    export([usual_result], "csv", tmp_path)

    steps = pd.read_csv(tmp_path / "steps.csv")
    assert steps["size"].tolist() == [10, 30, 100, 10, 30, 100]
    assert steps["service_p99"].tolist() == [step.service.p99.value for step in statistics.steps]
    assert pd.read_csv(tmp_path / "operations.csv")["attempts"].sum() == frame.read(usual_result).length
    assert pd.read_csv(tmp_path / "ranks.csv")["host"].tolist() == ["node0000"] * 4
    assert set(pd.read_csv(tmp_path / "server.csv")["part"]) == {"mlflow", "postgres"}


def test_the_files_lie_beside_the_result_by_default(tmp_path: Path) -> None:
    result = write(tmp_path / "result.h5", rows([{}]), {})

    assert export([result])[0] == tmp_path / "export" / "attempts.csv"


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_an_empty_result_is_exported_as_empty_tables(file_format: str, tmp_path: Path) -> None:
    files = export([write(tmp_path / "result.h5", rows([]), {})], file_format, tmp_path)

    assert all(path.is_file() for path in files)


def test_several_results_go_into_numbered_folders(usual_result: Path, tmp_path: Path) -> None:
    files = export([usual_result, Path(shutil.copy(usual_result, tmp_path / "again.h5"))], "csv", tmp_path)

    assert {path.parent.name for path in files} == {"1", "2"}
    assert (tmp_path / "2" / "attempts.csv").read_bytes() == (tmp_path / "1" / "attempts.csv").read_bytes()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One result of each workload that has published tables."""
    folder = tmp_path_factory.mktemp("published")
    made = {
        "parameters": (scripts.parameters, {"sizes": (1,), "sweep": "params=10,100"}),
        "artifacts": (scripts.artifacts, {"sizes": (1,), "sweep": "artifact_size=1MB,10MB", "artifacts": 2}),
        "parallel-runs": (scripts.parallel_run, {"sizes": (1, 2, 10)}),
        "tenants": (scripts.tenants, {"sizes": (5,), "users": True, "duration": 0.5, "sweep": "tenants=1,10"}),
    }
    return {
        name: scripts.job(folder / f"{name}.h5", script, workload=name, **told) for name, (script, told) in made.items()
    }


def test_mantiks_tables_are_made_of_all_results_together(published: dict[str, Path], tmp_path: Path) -> None:
    again = Path(shutil.copy(published["parameters"], tmp_path / "again.h5"))
    results = [*(published[name] for name in ("parameters", "artifacts", "parallel-runs")), again]

    files = export(results, "mantik", tmp_path)

    assert [path.name for path in files] == [
        "results-parameters.csv",
        "results-artifacts.csv",
        "results-parallel-runs.csv",
    ]
    parameters, artifacts, runs = map(pd.read_csv, files)
    assert list(parameters) == ["# params", "method", "duration", "duration per param", "succeeded"]
    assert len(parameters) == 2 * 2 * 3
    assert artifacts["total size [MB]"].tolist() == [2, 2, 20, 20]
    assert runs["# parallel runs"].tolist() == [1, 2, 10]
    assert runs["succeeded"].all()


def test_mlflow_scales_tables_are_written(published: dict[str, Path], tmp_path: Path) -> None:
    files = export([published["tenants"]], "mlflow-scale", tmp_path)

    assert {path.name for path in files} > {"summary_tenants-10_concurrency_5.json", "report_summary.csv"}
    assert pd.read_csv(tmp_path / "report_summary.csv")["tenants"].tolist() == [1, 10]


@pytest.mark.parametrize(
    ("names", "file_format", "words"),
    [
        (["tenants"], "mantik", "of the workload tenants: mantik's tables are of parameters or artifacts or parallel-"),
        (["parameters", "tenants"], "mantik", "of the workload tenants"),
        (["parameters"], "mlflow-scale", "of the workload parameters: mlflow-scale's tables are of tenants."),
        ([], "csv", "There is nothing to export"),
        (["parameters"], "mantic", "Did you mean mantik?"),
        (["parameters"], "mlflow_scale", "Did you mean mlflow-scale?"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused_before_anything_is_written(
    names: list[str], file_format: str, words: str, published: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageRefusal, match=words):
        export([published[name] for name in names], file_format, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", ["csv", "mantik"])
def test_a_result_that_is_given_twice_is_refused(file_format: str, published: dict[str, Path], tmp_path: Path) -> None:
    result = published["parameters"]

    with pytest.raises(UsageRefusal, match=r"parameters\.h5 is given twice: give each result once\."):
        export([result, result.parent / ".." / result.parent.name / result.name], file_format, tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file_format", "script", "told"),
    [
        ("mantik", scripts.parameters, {"workload": "parameters", "sizes": (1,), "params": 10}),
        ("mlflow-scale", scripts.tenants, {"workload": "tenants", "sizes": (5,), "users": True, "duration": 0.5}),
    ],
)
def test_results_of_both_clients_are_not_mixed(
    file_format: str, script: scripts.Script, told: dict[str, Any], tmp_path: Path
) -> None:
    both = [
        scripts.job(tmp_path / f"{client}.h5", script, tenants=1, client=client, **told) for client in ("wire", "stock")
    ]

    with pytest.raises(UsageRefusal, match=r"\(mlflow 3.17.2 sqlite; mlflow 3.17.2 sqlite, MLflow's client\): export"):
        export(both, file_format, tmp_path / "out")

    assert export(both[1:], file_format, tmp_path / "out")


def test_results_of_several_servers_are_not_mixed(published: dict[str, Path], tmp_path: Path) -> None:
    told = {"sizes": (5,), "users": True, "duration": 0.5, "facts": scripts.server_facts(database="postgresql")}
    other = scripts.job(tmp_path / "other.h5", scripts.tenants, workload="tenants", tenants=1, **told)

    with pytest.raises(
        UsageRefusal, match=r"several servers or clients \(mlflow 3.17.2 postgresql; mlflow 3.17.2 sqlite\)"
    ):
        export([published["tenants"], other], "mlflow-scale", tmp_path / "out")


def test_parallel_runs_of_users_are_no_parallel_runs_of_mantik(tmp_path: Path) -> None:
    path = scripts.job(
        tmp_path / "r.h5", scripts.parallel_run, sizes=(2,), users=True, duration=0.2, workload="parallel-runs"
    )

    with pytest.raises(UsageRefusal, match="is of users"):
        export([path], "mantik", tmp_path / "out")


def test_a_format_that_is_not_known_is_refused(usual_result: Path) -> None:
    with pytest.raises(UsageRefusal, match=r"Known are: csv, parquet, mantik, mlflow-scale\."):
        export([usual_result], "xlsx")
