from __future__ import annotations

from hpcstress.plan import Plan
from hpcstress.record import Operation
from tests.workloads.paper import names, played, run_of

LOG_BATCH = Plan(workload="log-batch", metrics=2, params=3, tags=1)


def test_each_iteration_logs_one_batch_to_a_run_of_the_users_own() -> None:
    client = played(LOG_BATCH, turns=4)
    assert names(client) == ["create_run", *["log_batch"] * 4, "get_run", "finish_run"]
    batches = [payload for operation, payload in client.requests if operation is Operation.log_batch]
    assert batches == [run_of(LOG_BATCH).batch(number) for number in range(4)]
    assert all((len(batch.metrics), len(batch.params), len(batch.tags)) == (2, 3, 1) for batch in batches)


def test_no_parameter_is_logged_twice() -> None:
    # To log the same one again inserts nothing: it would measure something else.
    batches = [
        payload for operation, payload in played(LOG_BATCH, turns=4).requests if operation is Operation.log_batch
    ]
    keys = [key for batch in batches for key, _ in batch.params]
    assert len(set(keys)) == len(keys) == 12


def test_a_run_ends_after_a_hundred_batches_and_the_user_goes_on_with_another() -> None:
    client = played(LOG_BATCH, turns=1000)
    assert names(client).count("log_batch") == client.turns == 100
    assert names(client)[-1] == "finish_run"


def test_what_a_request_cannot_hold_is_split() -> None:
    client = played(Plan(workload="log-batch", metrics=800, params=100, tags=100))
    assert names(client).count("log_batch") == 1
    client = played(Plan(workload="log-batch", metrics=801, params=100, tags=100))
    assert names(client).count("log_batch") == 2
