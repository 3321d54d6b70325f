"""mlflow-scale's matrix of tenants and users: what each of its cells gave, in its tables and k6's summaries.

Four things differ from what is published. Latencies are those of all requests, failures included, where there only
requests that passed have any. The p95 over several operations comes from all their requests, where there it is a mean
of p95s. Rates are those of the time in which there was load. Nothing that was not measured is written as 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from analysis.frame import OPERATIONS, Frame
from analysis.percentiles import Sample, merge
from analysis.statistics import Statistics
from analysis.tables import Row, write_csv
from analysis.usage import usage
from hpcstress.plan import Rung
from hpcstress.record import Operation

WORKLOADS = ("tenants",)

# What these operations are called there; all others have the same name.
_NAMES = {
    "log_param": "log_parameter",
    "finish_run": "update_run_status",
    "download_artifact": "fetch_artifact",
}
_CATEGORIES = {
    "read": ("get_run", "get_experiment", "fetch_artifact", "list_artifacts", "list_workspaces"),
    "write": (
        *("create_run", "create_experiment", "log_metric", "log_parameter", "log_artifact", "update_run_status"),
        *("create_prompt", "create_prompt_version"),
    ),
    "search": ("search_runs", "search_experiments", "search_prompts"),
}


def category(operation: str) -> str:
    """Return whether an operation reads, writes or searches."""
    return next((name for name, members in _CATEGORIES.items() if operation in members), "other")


@dataclass(frozen=True)
class Use:
    """Hold what a part of the server, or the generator, used during a cell: CPU in cores and memory in bytes."""

    cpu_average: float
    cpu_largest: float
    memory_average: float
    memory_largest: float


@dataclass(frozen=True)
class Cell:
    """Hold what came of some users on some tenants: service times and failures by operation, rates, use of machines.

    `seconds` is how long there was load. `per_second` counts all requests, `passed_per_second` good ones by operation.
    """

    tenants: int
    users: int
    began: float
    seconds: float
    samples: Mapping[str, Sample]
    passed: Mapping[str, int]
    failed: Mapping[str, int]
    per_second: float
    passed_per_second: Mapping[str, float]
    used: Mapping[str, Use]

    @property
    def name(self) -> str:
        """Return the short name of the cell."""
        return f"T{self.tenants}_C{self.users}"

    @property
    def requests(self) -> Sample:
        """Return the service times of all requests."""
        return merge(self.samples.values())


def cells_of(frame: Frame, statistics: Statistics) -> list[Cell]:
    """Return the cells of a result, repeats together, in the order of tenants and users."""
    cells = []
    for rung in statistics.climb.rungs:
        rows = [row for row in statistics.operations if row.rung == rung and row.operation != "connect"]
        steps = [step for step in statistics.steps if step.rung == rung]
        names = {row.operation: _NAMES.get(row.operation, row.operation) for row in rows}
        cells.append(
            Cell(
                tenants=int(frame.option("tenants", rung.variation) or 1),
                users=rung.size,
                began=min(step.began for step in steps),
                seconds=sum(step.load_seconds for step in steps),
                samples={
                    names[OPERATIONS[code]]: sample
                    for (of, code), sample in statistics.samples.items()
                    if of == rung and code != Operation.connect
                },
                passed={names[row.operation]: row.good for row in rows},
                failed={names[row.operation]: row.failed for row in rows},
                per_second=sum(row.per_second for row in rows),
                passed_per_second={names[row.operation]: row.answers_per_second for row in rows},
                used={**_server_use(frame, statistics, rung), **_generator_use(frame, statistics, rung)},
            )
        )
    return sorted(cells, key=lambda cell: (cell.tenants, cell.users))


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells of which those with the same tenants and users are one: what would have been measured by one job."""
    together: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.tenants, cell.users), []).append(cell)
    return [of[0] if len(of) == 1 else _merge(of) for _, of in sorted(together.items())]


def _merge(cells: list[Cell]) -> Cell:
    seconds = sum(cell.seconds for cell in cells)
    operations = dict.fromkeys(name for cell in cells for name in cell.samples)
    passed, failed, in_time = Counter[str](), Counter[str](), dict.fromkeys(operations, 0.0)
    for cell in cells:
        passed.update(cell.passed)
        failed.update(cell.failed)
        for name, rate in cell.passed_per_second.items():
            in_time[name] += rate * cell.seconds
    return Cell(
        tenants=cells[0].tenants,
        users=cells[0].users,
        began=min(cell.began for cell in cells),
        seconds=seconds,
        samples={name: merge(cell.samples[name] for cell in cells if name in cell.samples) for name in operations},
        passed={name: passed[name] for name in operations},
        failed={name: failed[name] for name in operations},
        per_second=sum(cell.per_second * cell.seconds for cell in cells) / seconds,
        passed_per_second={name: in_time[name] / seconds for name in operations},
        used=_merge_use(cells),
    )


def _merge_use(cells: list[Cell]) -> dict[str, Use]:
    """Return what each part used in all cells that tell of it, the longer ones weighing more."""
    merged_use = {}
    for part in dict.fromkeys(name for cell in cells for name in cell.used):
        found = [(cell.used[part], cell.seconds) for cell in cells if part in cell.used]
        uses, seconds = zip(*found, strict=True)
        merged_use[part] = Use(
            cpu_average=float(np.average([used.cpu_average for used in uses], weights=seconds)),
            cpu_largest=max(used.cpu_largest for used in uses),
            memory_average=float(np.average([used.memory_average for used in uses], weights=seconds)),
            memory_largest=max(used.memory_largest for used in uses),
        )
    return merged_use


def _server_use(frame: Frame, statistics: Statistics, rung: Rung) -> dict[str, Use]:
    found = {}
    steps = [step for step in statistics.steps if step.rung == rung and np.isfinite(step.began + step.duration)]
    for part in usage(frame, 0.0) if steps else ():
        inside = np.zeros(len(part.time), bool)
        for step in steps:
            inside |= (part.time >= step.began) & (part.time <= step.began + step.duration + 1)
        known = inside & np.isfinite(part.cores)
        if known.any():
            cores, memory = part.cores[known], part.memory[known]
            found[part.part] = Use(*map(float, (cores.mean(), cores.max(), memory.mean(), memory.max())))
    return found


def _generator_use(frame: Frame, statistics: Statistics, rung: Rung) -> dict[str, Use]:
    numbers = [step.step for step in statistics.steps if step.rung == rung]
    rows = frame.health[np.isin(frame.health["step"], numbers)]
    rows = rows[rows["wall_seconds"] > 0]
    if not len(rows):
        return {}
    cores = [float((of["cpu_seconds"] / of["wall_seconds"]).sum()) for of in _by_step(rows)]
    memory = [float(of["max_rss"].sum()) for of in _by_step(rows)]
    return {"hpcstress": Use(float(np.mean(cores)), max(cores), float(np.mean(memory)), max(memory))}


def _by_step(rows: Any) -> list[Any]:
    return [rows[rows["step"] == number] for number in np.unique(rows["step"])]


def write(cells: list[Cell], folder: Path) -> list[Path]:
    """Write k6's summaries, the tables of use and the five reports as they are there; return the files."""
    written = []
    for cell in cells:
        written.append(folder / f"summary_tenants-{cell.tenants}_concurrency_{cell.users}.json")
        written[-1].write_text(json.dumps(_k6_summary(cell), indent=2), "utf-8")
        if cell.used:
            written.append(folder / f"metrics_{cell.tenants}_concurrency_{cell.users}.csv")
            write_csv(written[-1], _use_rows(cell))
    for name, rows in _reports(cells).items():
        written.append(folder / f"{name}.csv")
        write_csv(written[-1], rows)
    return written


def operations_of(cells: Iterable[Cell]) -> list[str]:
    """Return the operations that any cell has, in alphabetical order."""
    return sorted({name for cell in cells for name in cell.samples})


def _ms(seconds: float) -> float:
    return seconds * 1e3


def _k6_summary(cell: Cell) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, sample in cell.samples.items():
        metrics[f"{name}_response_time"] = _trend(sample)
        metrics[f"{name}_passed"] = _counter(cell.passed[name], cell.passed_per_second[name])
        metrics[f"{name}_failed"] = _counter(cell.failed[name], cell.failed[name] / cell.seconds)
    requests, failed = cell.requests, sum(cell.failed.values())
    metrics["http_req_duration"] = _trend(requests)
    metrics["http_reqs"] = _counter(len(requests), cell.per_second)
    # In k6's words, a request that failed is one that passes as a failure.
    share = {"rate": failed / max(1, len(requests)), "passes": failed, "fails": len(requests) - failed}
    metrics["http_req_failed"] = {"type": "rate", "contains": "default", "values": share}
    return {
        "concurrency": cell.users,
        "tenants": cell.tenants,
        "data": {"metrics": metrics, "state": {"testRunDurationMs": _ms(cell.seconds)}},
        "timestamp": datetime.fromtimestamp(cell.began, UTC).isoformat() if np.isfinite(cell.began) else None,
    }


def _trend(sample: Sample) -> dict[str, Any]:
    levels = {"min": 0.0, "med": 0.5, "max": 1.0, "p(90)": 0.9, "p(95)": 0.95}
    values = {"avg": _ms(sample.mean()), **{name: _ms(sample.at(level)) for name, level in levels.items()}}
    return {"type": "trend", "contains": "time", "values": values}


def _counter(count: int, rate: float) -> dict[str, Any]:
    return {"type": "counter", "contains": "default", "values": {"count": count, "rate": rate}}


def _use_rows(cell: Cell) -> list[Row]:
    return [
        {"component": part, "metric": metric, "aggregation": aggregation, "unit": unit, "value": value}
        for part, used in cell.used.items()
        for metric, unit, values in (
            ("cpu", "cores", (used.cpu_average, used.cpu_largest)),
            ("memory", "bytes", (used.memory_average, used.memory_largest)),
        )
        for aggregation, value in zip(("avg", "max"), values, strict=True)
    ]


def _reports(cells: list[Cell]) -> dict[str, list[Row]]:
    whole = [_whole(cell, operations_of(cells)) for cell in cells]
    keys = ("tenants", "concurrency")
    reports = {
        "report_summary": whole,
        "report_p95_latencies": [
            {name: value for name, value in row.items() if name in keys or name.endswith("_p95_ms")} for row in whole
        ],
        "report_rps": [
            {name: row[name] for name in (*keys, *sorted(name for name in row if _is_rate(name)))} for row in whole
        ],
    }
    if len({cell.tenants for cell in cells}) > 1:
        by_operation = [
            (name, {"operation": name, "category": category(name)}, [name]) for name in operations_of(cells)
        ]
        categories = sorted({category(name) for name in operations_of(cells)})
        members = {name: [of for of in operations_of(cells) if category(of) == name] for name in categories}
        by_category = [(name, {"category": name}, members[name]) for name in categories]
        reports["report_latency_analysis_by_tenants"] = _changes(cells, by_operation, "")
        reports["report_latency_analysis_summary"] = _changes(cells, by_category, "avg_")
    return reports


def _is_rate(name: str) -> bool:
    return name.endswith("_rps") or name == "http_reqs_rate"


def _whole(cell: Cell, operations: list[str]) -> Row:
    row: Row = {"tenants": cell.tenants, "concurrency": cell.users}
    for name in operations:
        sample = cell.samples.get(name)
        for column, value in (
            ("avg", sample.mean() if sample else None),
            ("p90", sample.at(0.90) if sample else None),
            ("p95", sample.at(0.95) if sample else None),
            ("max", sample.at(1.0) if sample else None),
        ):
            row[f"{name}_{column}_ms"] = None if value is None else _ms(value)
    for name in operations:
        row[f"{name}_passed"] = cell.passed.get(name)
        row[f"{name}_rps"] = cell.passed_per_second.get(name)
        row[f"{name}_failed"] = cell.failed.get(name)
    failed, total = sum(cell.failed.values()), len(cell.requests)
    row["http_reqs_total"], row["http_reqs_rate"] = total, cell.per_second
    row["http_req_failed_rate"], row["http_req_failed_count"] = failed / max(1, total), failed
    return row


def _changes(cells: list[Cell], groups: list[tuple[str, Row, list[str]]], prefix: str) -> list[Row]:
    """Return the p95 of each group of operations by tenants, and how it changes from the fewest of them."""
    tenants = sorted({cell.tenants for cell in cells})
    found = {(cell.tenants, cell.users): cell for cell in cells}
    rows = []
    for _, heads, operations in groups:
        for users in sorted({cell.users for cell in cells}):
            p95 = {}
            for number in tenants:
                cell = found.get((number, users))
                sample = merge(cell.samples[name] for name in operations if name in cell.samples) if cell else ()
                p95[number] = round(_ms(sample.at(0.95)), 2) if isinstance(sample, Sample) and len(sample) else None
            row: Row = {**heads, "concurrency": users}
            for number in tenants:
                row[f"{prefix}{number}_tenant{'s' if number > 1 else ''}_p95_ms"] = p95[number]
            base = p95[tenants[0]]
            for number in tenants[1:]:
                value = p95[number]
                change = round(100 * (value - base) / base, 1) if base and value is not None else None
                row[f"{prefix}change_{tenants[0]}_to_{number}_pct"] = change
            rows.append(row)
    return rows
