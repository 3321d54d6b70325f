"""Results as files that other programs read: all rows as CSV or Parquet, or the tables of published benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from analysis.frame import OPERATIONS, OUTCOMES, Columns, Frame, pieces, read, see_that_each_is_another
from analysis.published import mantik, matrix
from analysis.published.labels import label_of
from analysis.statistics import measure
from analysis.tables import tables, write_csv
from hpcstress.errors import UsageRefusal
from hpcstress.quantity import nearest
from hpcstress.record import COLUMNS, RECORD
from hpcstress.result import TABLES, Rows

FORMATS = ("csv", "parquet", "mantik", "mlflow-scale")

_NAMED = {"op": OPERATIONS, "outcome": OUTCOMES}

_ATTEMPTS = pa.schema(
    [(name, pa.string() if name in _NAMED else pa.from_numpy_dtype(RECORD[name])) for name in COLUMNS]
)


def export(results: Sequence[Path], file_format: str = "csv", folder: Path | None = None) -> list[Path]:
    """Write results in a format into a folder, by default `export` beside the first one; return the files.

    csv and parquet hold all rows, what was made from them, and the other tables; several results go into numbered
    folders. Rows pass through a piece at a time; what is made from them takes some 70 bytes of memory for each, as a
    report does. mantik and mlflow-scale are the tables of these benchmarks, of all results together, which
    have to be of one server and one client.
    """
    if file_format not in FORMATS:
        raise UsageRefusal(f"There is no format {file_format!r}. {nearest(file_format, FORMATS)}")
    if not results:
        raise UsageRefusal("There is nothing to export: give the path of at least one result.")
    see_that_each_is_another(results)
    folder = results[0].parent / "export" if folder is None else folder
    if file_format == "mantik":
        return _mantik(results, folder)
    if file_format == "mlflow-scale":
        return _matrix(results, folder)
    homes = [folder] if len(results) == 1 else [folder / str(number) for number in range(1, len(results) + 1)]
    return [path for result, home in zip(results, homes, strict=True) for path in _whole(result, file_format, home)]


def _whole(result: Path, file_format: str, folder: Path) -> list[Path]:
    frame = read(result)
    made = {name: pa.Table.from_pylist(rows) for name, rows in tables(measure(frame)).items()}
    kept = {name: _table(getattr(frame, name)) for name in TABLES if name not in made}
    del frame
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"attempts.{file_format}"]
    _write(written[0], _ATTEMPTS, _batches(result))
    for name, table in {**made, **kept}.items():
        written.append(folder / f"{name}.{file_format}")
        _write(written[-1], table.schema, iter(table.to_batches()))
    return written


def _mantik(results: Sequence[Path], folder: Path) -> list[Path]:
    timed: dict[str, list[mantik.Timing]] = {}
    for frame in _frames(results, mantik.WORKLOADS, "mantik"):
        if frame.users:
            raise UsageRefusal(
                f"{frame.path} is of users: mantik's tables are of runs that begin at once, with --runs."
            )
        timed.setdefault(str(frame.plan["workload"]), []).extend(mantik.timings(frame))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for workload, timings in timed.items():
        written.append(folder / f"results-{workload}.csv")
        write_csv(written[-1], mantik.table(workload, timings))
    return written


def _matrix(results: Sequence[Path], folder: Path) -> list[Path]:
    cells: list[matrix.Cell] = []
    for frame in _frames(results, matrix.WORKLOADS, "mlflow-scale"):
        cells += matrix.cells_of(frame, measure(frame))
    folder.mkdir(parents=True, exist_ok=True)
    return matrix.write([cell for cell in matrix.merged(cells) if len(cell.requests)], folder)


def _frames(results: Sequence[Path], workloads: Sequence[str], file_format: str) -> Iterator[Frame]:
    labels = set()
    for result in results:
        frame = read(result)
        workload = frame.plan["workload"]
        if workload not in workloads:
            raise UsageRefusal(
                f"{result} is of the workload {workload}: {file_format}'s tables are of {' or '.join(workloads)}."
            )
        labels.add(label_of(frame))
        if len(labels) > 1:
            # There is no column that would tell them apart.
            told = "; ".join(sorted(labels))
            raise UsageRefusal(f"These results are of several servers or clients ({told}): export one at a time.")
        yield frame


def _write(path: Path, schema: Any, batches: Iterator[Any]) -> None:
    writer = parquet.ParquetWriter if path.suffix == ".parquet" else csv.CSVWriter
    with writer(str(path), schema) as file:
        for batch in batches:
            file.write_batch(batch)


def _batches(result: Path) -> Iterator[Any]:
    for columns in pieces(result):
        yield pa.record_batch([_array(name, columns) for name in COLUMNS], schema=_ATTEMPTS)


def _array(name: str, columns: Columns) -> Any:
    if name not in _NAMED:
        return pa.array(columns[name])
    return pa.DictionaryArray.from_arrays(columns[name], list(_NAMED[name])).cast(pa.string())


def _table(rows: Rows) -> Any:
    return pa.table({name: _plain(rows[name]) for name in rows.dtype.names or ()})


def _plain(values: Rows) -> Any:
    if values.dtype.kind == "S":
        return pa.array([bytes(value).decode("utf-8", "replace") for value in values], pa.string())
    return pa.array(np.ascontiguousarray(values))
