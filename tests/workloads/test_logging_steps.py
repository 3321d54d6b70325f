from __future__ import annotations

import pytest

from hpcstress.plan import Plan
from hpcstress.record import Operation
from tests.workloads.paper import names, played

LOGGING = Plan(workload="logging")
ITERATION = [
    *("create_run", "log_metric", "log_40_metrics", "log_400_metrics", "log_1000_metrics"),
    *("log_10_params", "log_100_params", "finish_run"),
]


def test_an_iteration_has_fasttrackmls_eight_requests() -> None:
    assert names(played(LOGGING)) == ITERATION
    assert names(played(LOGGING, turns=3)) == ITERATION * 3


@pytest.mark.parametrize(
    ("operation", "metrics", "keys", "params"),
    [
        (Operation.log_40_metrics, 40, 10, 0),
        (Operation.log_400_metrics, 400, 100, 0),
        (Operation.log_1000_metrics, 1000, 500, 0),
        (Operation.log_10_params, 0, 0, 10),
        (Operation.log_100_params, 0, 0, 100),
    ],
)
def test_a_step_has_the_size_that_its_name_says(operation: Operation, metrics: int, keys: int, params: int) -> None:
    [batch] = [payload for what, payload in played(LOGGING).requests if what is operation]
    assert (len(batch.metrics), len(batch.params), len(batch.tags)) == (metrics, params, 0)
    assert len({metric.key for metric in batch.metrics}) == keys
    assert len({(metric.key, metric.step) for metric in batch.metrics}) == metrics
    assert len({key for key, _ in batch.params}) == params


def test_no_two_batches_of_a_run_and_no_two_runs_log_the_same() -> None:
    client = played(LOGGING, turns=2)
    batches = [payload for operation, payload in client.requests if operation.name.endswith(("metrics", "params"))]
    keys = [{metric.key for metric in batch.metrics} | {key for key, _ in batch.params} for batch in batches[:3]]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert len({repr(batch) for batch in batches}) == len(batches) == 10
