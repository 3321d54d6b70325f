"""Everything in a result file as files that other programs read: CSV or Parquet, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from analysis.frame import OPERATIONS, OUTCOMES, Columns, pieces, read
from analysis.statistics import measure
from analysis.tables import tables
from hpcstress.errors import UsageRefusal
from hpcstress.record import COLUMNS, RECORD
from hpcstress.result import TABLES, Rows

FORMATS = ("csv", "parquet")

_NAMED = {"op": OPERATIONS, "outcome": OUTCOMES}

_ATTEMPTS = pa.schema(
    [(name, pa.string() if name in _NAMED else pa.from_numpy_dtype(RECORD[name])) for name in COLUMNS]
)


def export(result: Path, file_format: str = "csv", folder: Path | None = None) -> list[Path]:
    """Write all attempts, what was made from them, and the other tables; return the files.

    By default they go into a folder `export` beside the result. Attempts pass through a piece at a time; what is made
    from them takes some 70 bytes of memory for each, as a report does.
    """
    if file_format not in FORMATS:
        raise UsageRefusal(f"There is no format {file_format!r}: choose {' or '.join(FORMATS)}.")
    frame = read(result)
    made = {name: pa.Table.from_pylist(rows) for name, rows in tables(measure(frame)).items()}
    kept = {name: _table(getattr(frame, name)) for name in TABLES if name not in made}
    del frame
    folder = result.parent / "export" if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"attempts.{file_format}"]
    _write(written[0], _ATTEMPTS, _batches(result))
    for name, table in {**made, **kept}.items():
        written.append(folder / f"{name}.{file_format}")
        _write(written[-1], table.schema, iter(table.to_batches()))
    return written


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
