"""mlflow-go's cases and FastTrackML's operations: how long each took on every server, failures included."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.frame import OPERATIONS, Planned
from analysis.statistics import Statistics
from hpcstress.plan import Rung
from hpcstress.quantity import count

GO_WORKLOADS = ("log-batch", "create-run", "search-runs", "search-experiments")
FAST_WORKLOADS = ("logging", "retrieval")

# The operation of which a workload's iteration consists, and what mlflow-go calls it.
_GO = {
    "log-batch": ("log_batch", ""),
    "create-run": ("create_run", "CreateRun"),
    "search-runs": ("search_runs", "SearchRuns"),
    "search-experiments": ("search_experiments", "SearchExperiments"),
}

# FastTrackML's names, in the order of its panel; those in the second line it measures, and never shows.
PANEL = {
    "search_runs": "SearchRuns",
    "search_experiments": "SearchExperiments",
    "get_metric_history": "MetricHistory",
    "create_run": "CreateRun",
    "log_40_metrics": "LogMetricBatch10",
    "log_1000_metrics": "LogMetricBatch500",
    "log_10_params": "LogParamBatch10",
    "log_100_params": "LogParamBatch100",
}
_NEVER_SHOWN = {
    "log_metric": "LogMetricSingle",
    "log_400_metrics": "LogMetricBatch100",
    "finish_run": "UpdateRun",
}
# What each holds, which its published name does not say.
_TRUE_SIZES = {
    "log_40_metrics": "40 metrics",
    "log_400_metrics": "400 metrics",
    "log_1000_metrics": "1,000 metrics",
    "log_10_params": "10 params",
    "log_100_params": "100 params",
    "log_metric": "1 metric",
}


@dataclass(frozen=True)
class Case:
    """Hold what one operation took on one server, in seconds, and how often it was done.

    `users` is 0 where all steps of the result have the same number of them. `seconds` is how long there was load, and
    `per_second` how many good answers came in each of them.
    """

    server: str
    name: str
    users: int
    operation: str
    mean: float
    p50: float
    p99: float
    attempts: int
    failed: int
    seconds: float
    per_second: float

    @property
    def label(self) -> str:
        """Return the name, and in a line of its own how many users there were, if that tells cases apart."""
        return f"{self.name}\n{count(self.users, 'user')}" if self.users else self.name


def cases_of(frame: Planned, statistics: Statistics, server: str) -> list[Case]:
    """Return the cases of a result: of one of mlflow-go's workloads its iterations, of any other all operations."""
    workload = str(frame.plan["workload"])
    cases = []
    for row in statistics.operations:
        if row.operation == "connect" or (workload in _GO and row.operation != _GO[workload][0]):
            continue
        several = len({other.size for other in statistics.climb.rungs}) > 1
        cases.append(
            Case(
                server=server,
                name=_name(frame, row.rung, workload, row.operation),
                users=row.size if several else 0,
                operation=row.operation,
                mean=row.mean,
                p50=row.service.p50.value,
                p99=row.service.p99.value,
                attempts=row.attempts,
                failed=row.failed,
                seconds=sum(step.load_seconds for step in statistics.steps if step.rung == row.rung),
                per_second=row.answers_per_second,
            )
        )
    return sorted(cases, key=lambda case: (_place(case.operation), case.users)) if workload not in _GO else cases


def _name(frame: Planned, rung: Rung, workload: str, operation: str) -> str:
    if workload not in _GO and workload not in FAST_WORKLOADS:
        return operation.replace("_", " ")
    if workload not in _GO:
        name = {**PANEL, **_NEVER_SHOWN}.get(operation, operation.replace("_", " "))
        return f"{name}\n({_TRUE_SIZES[operation]})" if operation in _TRUE_SIZES else name
    if workload != "log-batch":
        return _GO[workload][1]
    amounts = {name: int(frame.option(name, rung.variation)) for name in ("tags", "params", "metrics")}
    if not amounts["tags"] + amounts["params"]:
        return f"LogMetricBatch{amounts['metrics']}"
    if not amounts["tags"] + amounts["metrics"]:
        return f"LogParamBatch{amounts['params']}"
    return f"LogBatch {amounts['tags']}/{amounts['params']}/{amounts['metrics']}"


def _place(operation: str) -> int:
    order = [*PANEL, *_NEVER_SHOWN, *OPERATIONS]
    return order.index(operation)
