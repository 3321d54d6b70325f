"""Statistics as flat tables, one row per step or operation: what CSV and Parquet files hold. All times are seconds."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from analysis.percentiles import LEVELS, Percentiles
from analysis.statistics import Statistics
from hpcstress.record import Outcome

Row = dict[str, Any]

_CAUSES = [outcome.name for outcome in Outcome if outcome is not Outcome.ok]


def tables(statistics: Statistics) -> dict[str, list[Row]]:
    """Return the tables `steps` and `operations` as rows of plain values."""
    return {"steps": [*map(flat, statistics.steps)], "operations": [*map(flat, statistics.operations)]}


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows that have the same columns."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def flat(row: Any) -> Row:
    """Return one row of statistics as plain values, percentiles in columns of their own."""
    flat: Row = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Percentiles):
            flat[f"{field.name}_count"] = value.count
            for level in LEVELS:
                estimate = getattr(value, level)
                flat[f"{field.name}_{level}"] = estimate.value
                flat[f"{field.name}_{level}_low"] = estimate.low
                flat[f"{field.name}_{level}_high"] = estimate.high
            flat[f"{field.name}_max"] = value.largest
        elif isinstance(value, Mapping):
            flat.update({f"{field.name}_{cause}": value.get(cause, 0) for cause in _CAUSES})
        elif isinstance(value, tuple):
            flat[field.name] = " ".join(value)
        else:
            flat[field.name] = value
    return flat
