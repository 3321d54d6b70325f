from __future__ import annotations

from pathlib import Path

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
from tests.analysis.results import rows, write

TABLES = ["attempts", "steps", "operations", "ranks", "health", "server", "audit"]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_all_attempts_come_back_as_they_were(file_format: str, usual_result: Path, tmp_path: Path, monkeypatch) -> None:
    # Pieces that do not fit evenly.
    monkeypatch.setattr(frame.pieces, "__defaults__", (700,))

    files = export(usual_result, file_format, tmp_path)

    assert [path.name for path in files] == [f"{name}.{file_format}" for name in TABLES]
    read = pd.read_csv if file_format == "csv" else pd.read_parquet
    found, written = read(files[0]), dataframe(usual_result)
    assert tuple(found.columns) == COLUMNS
    assert len(found) == len(written) > 1400
    for name in COLUMNS:
        assert found[name].astype(str).tolist() == written[name].astype(str).tolist()


def test_parquet_keeps_the_types_of_the_record(usual_result: Path, tmp_path: Path) -> None:
    schema = parquet.read_schema(export(usual_result, "parquet", tmp_path)[0])

    for name in set(COLUMNS) - {"op", "outcome"}:
        assert schema.field(name).type.to_pandas_dtype() == np.dtype(RECORD[name]).type


def test_the_tables_come_along(usual_result: Path, tmp_path: Path) -> None:
    statistics = measure(frame.read(usual_result))

    export(usual_result, "csv", tmp_path)

    steps = pd.read_csv(tmp_path / "steps.csv")
    assert steps["size"].tolist() == [10, 30, 100, 10, 30, 100]
    assert steps["service_p99"].tolist() == [step.service.p99.value for step in statistics.steps]
    assert pd.read_csv(tmp_path / "operations.csv")["attempts"].sum() == frame.read(usual_result).length
    assert pd.read_csv(tmp_path / "ranks.csv")["host"].tolist() == ["node0000"] * 4
    assert set(pd.read_csv(tmp_path / "server.csv")["part"]) == {"mlflow", "postgres"}


def test_the_files_lie_beside_the_result_by_default(tmp_path: Path) -> None:
    result = write(tmp_path / "result.h5", rows([{}]), {})

    assert export(result)[0] == tmp_path / "export" / "attempts.csv"


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_an_empty_result_is_exported_as_empty_tables(file_format: str, tmp_path: Path) -> None:
    files = export(write(tmp_path / "result.h5", rows([]), {}), file_format, tmp_path)

    assert all(path.is_file() for path in files)


def test_a_format_that_is_not_known_is_refused(usual_result: Path) -> None:
    with pytest.raises(UsageRefusal, match="choose csv or parquet"):
        export(usual_result, "xlsx")
